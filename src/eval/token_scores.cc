#include "eval/token_scores.h"

#include "base/fail.h"
#include "ops/softmax.h"

#include <algorithm>
#include <cmath>

namespace lowbit {

int64_t logit_rows(int64_t vocab_size) {
  return std::clamp<int64_t>((int64_t{16} << 20) / std::max<int64_t>(vocab_size, 1), 16, 256);
}

PerplexityResult perplexity_of(const RunningMean& nll, const WindowPlan& plan, int64_t context,
                               double seconds) {
  PerplexityResult result;
  result.mean_nll = nll.mean();
  result.perplexity = std::exp(nll.mean());
  result.standard_error = nll.standard_error();
  result.tokens = nll.count();
  result.windows = static_cast<int64_t>(plan.windows.size());
  result.context = context;
  result.seconds = seconds;
  result.protocol = plan.protocol;
  return result;
}

void fail_not_finite(const std::filesystem::path& folder, size_t window, int64_t position) {
  fail(ErrorCode::kCorruptFile,
       "{} computes logits that are not finite (window {}, position {}): its weights are damaged, or too "
       "large for the "
       "chosen number formats",
       folder.string(), window, position);
}

void score_tokens(const LanguageModel::State& state, const std::vector<int32_t>& ids, int64_t first_scored,
                  const float* hidden, size_t window, RunningMean& nll) {
  const OpContext ops = state.ops();
  const int64_t vocab = state.model.config().vocab_size, width = state.model.config().hidden_size;
  const int64_t chunk = logit_rows(vocab);
  const Scratch logits = ops.workspace->take(static_cast<size_t>(chunk * vocab) * sizeof(float));
  std::vector<double> losses(static_cast<size_t>(chunk));
  // Row p predicts id p + 1.
  const int64_t end = static_cast<int64_t>(ids.size()) - 1;
  for (int64_t row = first_scored - 1; row < end; row += chunk) {
    const int64_t rows = std::min(chunk, end - row);
    state.model.logits(ops, hidden + row * width, rows, MatmulMode::kPrefill, logits.as<float>());
    token_nll(ops, logits.as<float>(), ids.data() + row + 1, rows, vocab, losses.data());
    for (int64_t i = 0; i < rows; ++i) {
      if (!std::isfinite(losses[static_cast<size_t>(i)])) fail_not_finite(state.folder, window, row + i);
      nll.add(losses[static_cast<size_t>(i)]);
    }
  }
}

void check_context(const LanguageModel& model, int64_t context) {
  require_text_generation(model.state());
  if (context > model.context_length()) {
    fail(ErrorCode::kInvalidArgument,
         "context is {}, but the model was made for at most {} ids (max_position_embeddings)", context,
         model.context_length());
  }
}

}  // namespace lowbit
