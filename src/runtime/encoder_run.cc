#include "runtime/encoder_run.h"

#include "base/fail.h"
#include "runtime/forward.h"

#include <algorithm>
#include <numeric>

namespace lowbit {

EncoderInputs encode_inputs(const LanguageModel::State& state, const Tokenizer& tokenizer,
                            std::span<const EncoderText> texts, const EncoderLimits& limits) {
  const int64_t positions = state.model.config().max_positions;
  if (limits.max_length < 0 || limits.max_length > positions) {
    fail(ErrorCode::kInvalidArgument,
         "max_length is {}, expected 1 to {}, the model's max_position_embeddings, or 0 for as many as it "
         "may be",
         limits.max_length, positions);
  }
  const int64_t most = limits.max_length > 0 ? limits.max_length : positions;
  EncoderInputs result;
  result.inputs.resize(texts.size());
  state.threads->parallel_for(static_cast<int64_t>(texts.size()), 16, [&](int64_t begin, int64_t end, int) {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i)
      result.inputs[i] = tokenizer.encode_input(texts[i].text, texts[i].second, most);
  });
  size_t first_long = texts.size();
  for (size_t i = 0; i < texts.size(); ++i) {
    const EncoderInput& input = result.inputs[i];
    if (input.ids.empty()) {
      fail(ErrorCode::kInvalidArgument,
           "text {} is empty, and the model's tokenizer puts no special token beside it: there is nothing to "
           "read",
           i + 1);
    }
    result.tokens += static_cast<int64_t>(input.ids.size());
    if (input.full_length <= most) continue;
    first_long = std::min(first_long, i);
    ++result.truncated;
  }
  if (result.truncated > 0 && !limits.truncate) {
    fail(ErrorCode::kInvalidArgument,
         "{} of {} texts are longer than {} tokens ({}); the first is text {} with {}: shorten them, or have "
         "them cut with truncate",
         result.truncated, texts.size(), most, most == positions ? "max_position_embeddings" : "max_length",
         first_long + 1, result.inputs[first_long].full_length);
  }
  return result;
}

void run_encoder(const LanguageModel::State& state, std::span<const EncoderInput> inputs, int64_t batch_size,
                 std::string_view phase, const Log& log,
                 const std::function<void(size_t index, const float* hidden)>& visit) {
  const OpContext ops = state.ops();
  std::vector<size_t> order(inputs.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return inputs[a].ids.size() > inputs[b].ids.size(); });
  std::vector<std::vector<int32_t>> ids, types;
  for (const size_t i : order) {
    ids.push_back(inputs[i].ids);
    if (state.model.config().token_types > 0) types.push_back(inputs[i].types);
  }
  const auto total = static_cast<int64_t>(inputs.size());
  log.report({phase, 0, total, ""});
  forward_windows(
      state.model, ops, ids, batch_size, ops.activations(),
      [&](size_t row, const float* hidden) {
        visit(order[row], hidden);
        log.report({phase, static_cast<int64_t>(row) + 1, total, ""});
      },
      types);
  if (ops.gpu) ops.gpu->wait("running an encoder");
}

}  // namespace lowbit
