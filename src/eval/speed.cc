#include "base/fail.h"
#include "eval/validate.h"
#include "runtime/language_model.h"

#include <algorithm>

namespace lowbit {

SpeedResult measure_speed(const LanguageModel& model, const SpeedOptions& options, const Log& log) {
  validate(options);
  require_text_generation(model.state());
  if (options.prompt_tokens + options.new_tokens > model.context_length()) {
    fail(ErrorCode::kInvalidArgument,
         "{} prompt tokens and {} new ones are more than the model's context of {}", options.prompt_tokens,
         options.new_tokens, model.context_length());
  }
  // Which ids does not matter for speed; a stride through the vocabulary avoids one hot embedding row.
  std::vector<std::vector<int32_t>> prompts(static_cast<size_t>(options.batch_size));
  for (int64_t i = 0; i < options.batch_size * options.prompt_tokens; ++i) {
    prompts[static_cast<size_t>(i / options.prompt_tokens)].push_back(
        static_cast<int32_t>(i * 7919 % model.vocab_size()));
  }
  const GenerateOptions greedy{.max_new_tokens = options.new_tokens, .ignore_eos = true};
  std::vector<double> decode, prefill;
  for (int64_t run = 0; run <= options.repetitions; ++run) {
    GenerateSpeed speed;
    model.generate(prompts, greedy, {}, &speed);
    log.report({.phase = "speed", .done = run, .total = options.repetitions});
    if (run == 0) continue;  // the first run reads the weights from disk
    if (speed.decode_seconds > 0)
      decode.push_back(static_cast<double>(speed.decode_tokens) / speed.decode_seconds);
    if (speed.prefill_seconds > 0)
      prefill.push_back(static_cast<double>(speed.prefill_tokens) / speed.prefill_seconds);
  }
  const auto median = [](std::vector<double>& values) {
    std::sort(values.begin(), values.end());
    return values.empty() ? 0 : values[values.size() / 2];
  };
  SpeedResult result;
  result.decode_tokens_per_second = median(decode);
  result.prefill_tokens_per_second = median(prefill);
  result.protocol = fmt::format(
      "{}, {} prompt tokens, {} new tokens, greedy, median of {} runs after one to warm up",
      options.batch_size == 1 ? "one sequence" : fmt::format("{} sequences at once", options.batch_size),
      options.prompt_tokens, options.new_tokens, options.repetitions);
  return result;
}

}  // namespace lowbit
