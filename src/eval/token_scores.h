// Logits of many positions without a buffer of positions x vocabulary: rows pass through in chunks.
#pragma once

#include "eval/statistics.h"
#include "eval/windows.h"
#include "runtime/language_model.h"

#include <functional>

namespace lowbit {

// Rows of logits that are held at once: 64 MiB of them, but at least 16 and at most 256 rows.
int64_t logit_rows(int64_t vocab_size);

// Adds the negative log likelihood (nats) of ids [first_scored, ids.size()) to `nll`, given the ids before
// each. hidden: [ids.size(), hidden_size], the last block's output. kCorruptFile when a logit is not finite;
// `where` names the window.
void score_tokens(const LanguageModel::State& state, const std::vector<int32_t>& ids, int64_t first_scored,
                  const float* hidden, size_t window, RunningMean& nll);

// What the NLL of the scored positions comes to.
PerplexityResult perplexity_of(const RunningMean& nll, const WindowPlan& plan, int64_t context,
                               double seconds);

[[noreturn]] void fail_not_finite(const std::filesystem::path& folder, size_t window, int64_t position);

// kInvalidArgument when windows of `context` ids are longer than the model's context, or it is an encoder.
void check_context(const LanguageModel& model, int64_t context);

}  // namespace lowbit
