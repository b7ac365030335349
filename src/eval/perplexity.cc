#include "base/fail.h"
#include "eval/token_scores.h"
#include "eval/validate.h"
#include "eval/windows.h"
#include "runtime/forward.h"

#include <chrono>

namespace lowbit {

PerplexityResult perplexity(const LanguageModel& model, const std::filesystem::path& text,
                            const PerplexityOptions& options, const Log& log) {
  validate(options);
  check_context(model, options.context);
  const LanguageModel::State& state = model.state();
  const Tokenizer& tokenizer = model.tokenizer();
  const int32_t bos = options.protocol == "llama.cpp" ? added_bos(tokenizer) : -1;
  const WindowPlan plan = plan_windows(load_text_ids(tokenizer, text), options, bos);

  const auto start = std::chrono::steady_clock::now();
  RunningMean nll;
  const int64_t total = static_cast<int64_t>(plan.windows.size());
  log.report({.phase = "perplexity", .done = 0, .total = total});
  forward_windows(
      state.model, state.ops(), plan.windows, options.batch_size, state.cache_dtype,
      [&](size_t window, const float* hidden) {
        score_tokens(state, plan.windows[window], plan.first_scored[window], hidden, window, nll);
        log.report({.phase = "perplexity", .done = static_cast<int64_t>(window) + 1, .total = total});
      });

  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  PerplexityResult result = perplexity_of(nll, plan, options.context, seconds);
  result.memory = model.memory();
  return result;
}

}  // namespace lowbit
