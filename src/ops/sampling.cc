#include "ops/sampling.h"

#include "base/fail.h"
#include "ops/parallel.h"
#include "ops/softmax.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace lowbit {
namespace {

struct Candidate {
  uint64_t rank, weight;
};

// random: 64 bits.
int32_t draw(const SamplingRule& rule, std::span<const float> logits, int32_t best, uint64_t random,
             std::vector<Candidate>& candidates) {
  const float most = logits[static_cast<size_t>(best)];
  const double factor = weight_factor(rule.temperature);
  candidates.clear();
  for (size_t id = 0; id < logits.size(); ++id) {
    if (const uint64_t weight = sampling_weight(most, logits[id], factor))
      candidates.push_back({rank_of(logits[id], static_cast<int32_t>(id)), weight});
  }
  auto sum = [&] {
    uint64_t total = 0;
    for (const Candidate& candidate : candidates) total += candidate.weight;
    return total;
  };
  if (rule.top_k > 0 && rule.top_k < static_cast<int64_t>(candidates.size())) {
    std::ranges::nth_element(candidates, candidates.begin() + rule.top_k, std::greater(), &Candidate::rank);
    candidates.resize(static_cast<size_t>(rule.top_k));
  }
  if (rule.top_p < 1) {
    std::ranges::sort(candidates, std::greater(), &Candidate::rank);
    const uint64_t need = mass_needed(sum(), rule.top_p);
    size_t count = 0;
    for (uint64_t kept = 0; kept < need; ++count) kept += candidates[count].weight;
    candidates.resize(count);
  }
  if (rule.top_k > 0 || rule.top_p < 1) {
    std::ranges::sort(candidates, std::less(),
                      [](const Candidate& candidate) { return id_of_rank(candidate.rank); });
  }
  uint64_t point = high_product(random, sum());
  for (const Candidate& candidate : candidates) {
    if (point < candidate.weight) return id_of_rank(candidate.rank);
    point -= candidate.weight;
  }
  LOWBIT_ASSERT(false);  // the point lies in the sum
  return best;
}

void check_vocab(const SamplingRule& rule, int64_t vocab) {
  if (rule.draws() && vocab > kMostSampledTokens) {
    fail(ErrorCode::kUnsupported,
         "tokens can be drawn from a vocabulary of up to {}, this one has {}: set temperature to 0",
         kMostSampledTokens, vocab);
  }
}

}  // namespace

void sample(const OpContext& context, const SamplingRule& rule, float* logits, int64_t vocab,
            std::span<const SamplingRow> rows, int32_t* chosen) {
  const int64_t count = static_cast<int64_t>(rows.size());
  check_vocab(rule, vocab);
  if constexpr (kHasCuda) {
    if (context.gpu) {
      GpuSampling sampling(context, rule, logits, vocab, static_cast<int64_t>(rows.size()));
      sampling.begin(context, rows);
      gpu_sample(sampling.args(), context.gpu->stream());
      std::vector<uint64_t> ranks(rows.size());
      context.gpu->copy_out(ranks.data(), sampling.args().best, ranks.size() * sizeof ranks[0]);
      for (size_t row = 0; row < rows.size(); ++row) {
        chosen[row] = is_finite_rank(ranks[row]) ? id_of_rank(ranks[row]) : -1;
        if (rule.draws() && chosen[row] >= 0) next_random(*rows[row].random);
      }
      return;
    }
  }
  if (rule.repetition_penalty != 1) {
    std::vector<int32_t> seen;
    for (int64_t row = 0; row < count; ++row) {
      const std::span<const int32_t> previous = rows[static_cast<size_t>(row)].previous;
      seen.assign(previous.begin(), previous.end());
      std::ranges::sort(seen);
      seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
      for (const int32_t id : seen) {
        float& logit = logits[row * vocab + id];
        logit = penalized(logit, rule.repetition_penalty);
      }
    }
  }
  finite_argmax(context, logits, count, vocab, chosen);
  if (!rule.draws()) return;
  split_work(context, count, 1, [&](int64_t begin, int64_t end, int) {
    std::vector<Candidate> candidates;
    for (int64_t row = begin; row < end; ++row) {
      if (chosen[row] < 0) continue;
      chosen[row] = draw(rule, {logits + row * vocab, static_cast<size_t>(vocab)}, chosen[row],
                         next_random(*rows[static_cast<size_t>(row)].random), candidates);
    }
  });
}

// kept_: the largest ranks, the rows' states, the histograms, then the bits of the tokens seen, which begin()
// fills in one copy. work_: lists and sums, which need no beginning.
GpuSampling::GpuSampling(const OpContext& context, const SamplingRule& rule, float* logits, int64_t vocab,
                         int64_t rows) {
  check_vocab(rule, vocab);
  const size_t count = static_cast<size_t>(rows);
  const bool has_cut = rule.draws() && (rule.top_k > 0 || rule.top_p < 1);
  const bool has_penalty = rule.repetition_penalty != 1;
  args_ = {.logits = logits, .rows = rows, .vocab = vocab, .rule = rule};
  args_.factor = rule.draws() ? weight_factor(rule.temperature) : 0;

  const size_t states_at = count * sizeof(uint64_t);
  const size_t histograms_at = states_at + count * sizeof(GpuSamplingState);
  const size_t seen_at =
      histograms_at + (has_cut ? count * 2 * static_cast<size_t>(kSamplingBins) * sizeof(uint64_t) : 0);
  const size_t words = static_cast<size_t>(seen_words(vocab));
  kept_bytes_ = seen_at + (has_penalty ? count * words * sizeof(uint32_t) : 0);
  kept_.emplace(context.workspace->take(kept_bytes_));
  char* const there = kept_->as<char>();
  args_.best = reinterpret_cast<unsigned long long*>(there);
  args_.states = reinterpret_cast<GpuSamplingState*>(there + states_at);
  if (has_cut) args_.histograms = reinterpret_cast<unsigned long long*>(there + histograms_at);
  if (has_penalty) args_.seen = reinterpret_cast<uint32_t*>(there + seen_at);
  if (!rule.draws()) return;
  const size_t sums = count * static_cast<size_t>(sampling_chunks(vocab));
  work_.emplace(context.workspace->take((sums + (has_cut ? count * static_cast<size_t>(vocab) : 0)) *
                                        sizeof(uint64_t)));
  args_.sums = work_->as<unsigned long long>();
  args_.list = args_.sums + sums;
}

void GpuSampling::begin(const OpContext& context, std::span<const SamplingRow> rows) {
  LOWBIT_ASSERT(static_cast<int64_t>(rows.size()) == args_.rows);
  std::vector<char> all(kept_bytes_);
  auto here = [&](const void* there) {
    return all.data() + (static_cast<const char*>(there) - kept_->as<char>());
  };
  for (size_t row = 0; row < rows.size(); ++row) {
    GpuSamplingState state;
    if (args_.rule.draws()) state.random = *rows[row].random;
    std::memcpy(here(args_.states + row), &state, sizeof state);
    if (!args_.seen) continue;
    std::vector<uint32_t> seen(static_cast<size_t>(seen_words(args_.vocab)));
    for (const int32_t id : rows[row].previous) seen[static_cast<size_t>(id / 32)] |= 1u << id % 32;
    std::memcpy(here(args_.seen + row * seen.size()), seen.data(), seen.size() * sizeof(uint32_t));
  }
  context.gpu->copy_in(kept_->as<void>(), all.data(), all.size());
}

}  // namespace lowbit
