// What the tests of generating on a GPU share.
#pragma once

#include "lowbit/generate.h"
#include "ops/sampling.h"
#include "runtime/forward.h"
#include "runtime/language_model.h"
#include "runtime/sampler.h"

#include <algorithm>
#include <vector>

namespace lowbit::testing {

inline std::vector<std::vector<int32_t>> tokens_of(const std::vector<GenerateResult>& results) {
  std::vector<std::vector<int32_t>> tokens;
  for (const GenerateResult& result : results) tokens.push_back(result.token_ids);
  return tokens;
}

// What generate() gives, when every row of logits comes to this machine and is sampled here, and each answer
// is decoded alone.
inline std::vector<std::vector<int32_t>> sampled_on_host(const LanguageModel& model,
                                                         const std::vector<std::vector<int32_t>>& prompts,
                                                         const GenerateOptions& options) {
  const LanguageModel::State& state = model.state();
  const OpContext ops = state.ops();
  const int64_t width = state.model.config().hidden_size, vocab = model.vocab_size();
  size_t longest = 0;
  for (const auto& prompt : prompts) longest = std::max(longest, prompt.size());
  const int64_t capacity = static_cast<int64_t>(longest) + options.max_new_tokens;
  const int64_t count = static_cast<int64_t>(prompts.size());
  const RopeTables rope = state.model.rope_tables(ops, capacity);
  KvCache cache(state.model.config(), count, capacity, state.cache_dtype, state.gpu.get());
  const SamplingRule rule = sampling_rule(options);
  std::vector<std::vector<int32_t>> previous = prompts, answers(prompts.size());
  std::vector<uint64_t> random;
  auto choose = [&](size_t i, const float* hidden) {
    const Scratch logits = ops.workspace->take(static_cast<size_t>(vocab) * sizeof(float));
    state.model.logits(ops, hidden, 1, MatmulMode::kDecode, logits.as<float>());
    std::vector<float> here(static_cast<size_t>(vocab));
    ops.gpu->copy_out(here.data(), logits.as<float>(), here.size() * sizeof(float));
    const SamplingRow row{previous[i], &random[i]};
    int32_t id = -1;
    sample({}, rule, here.data(), vocab, std::span(&row, 1), &id);
    answers[i].push_back(id), previous[i].push_back(id);
  };
  std::vector<SequenceTokens> batch;
  int64_t rows = 0;
  for (int64_t i = 0; i < count; ++i) {
    batch.push_back({i, prompts[static_cast<size_t>(i)]});
    rows += static_cast<int64_t>(batch.back().ids.size());
    random.push_back(random_stream(options.seed, static_cast<uint64_t>(i)));
  }
  const Scratch hidden = ops.workspace->take(static_cast<size_t>(rows * width) * sizeof(float));
  forward(state.model, ops, rope, batch, MatmulMode::kPrefill, cache, hidden.as<float>());
  int64_t row = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    row += static_cast<int64_t>(prompts[i].size());
    choose(i, hidden.as<float>() + (row - 1) * width);
  }
  const Scratch last = ops.workspace->take(static_cast<size_t>(width) * sizeof(float));
  for (size_t i = 0; i < prompts.size(); ++i) {
    while (static_cast<int64_t>(answers[i].size()) < options.max_new_tokens) {
      const SequenceTokens next{static_cast<int64_t>(i), std::span(&answers[i].back(), 1)};
      forward(state.model, ops, rope, std::span(&next, 1), MatmulMode::kDecode, cache, last.as<float>());
      choose(i, last.as<float>());
    }
  }
  return answers;
}

}  // namespace lowbit::testing
