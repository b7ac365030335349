// From logits to tokens: the largest, or a draw by temperature, top-k and top-p (Holtzman et al., arXiv
// 1904.09751). CPU and GPU give the same tokens for the same logits, to the bit (sampling_args.h), whatever
// the batch.
#pragma once

#include "ops/context.h"
#include "ops/cuda/sampling_gpu.h"
#include "ops/sampling_args.h"

#include <cstdint>
#include <optional>
#include <span>

namespace lowbit {

struct SamplingRow {
  std::span<const int32_t> previous;  // prompt and answer so far; only read for a repetition penalty
  uint64_t* random = nullptr;         // the state of the row's random stream; moves on with each draw
};

// chosen[r]: a token of logits[r]; -1 where the largest is infinite or all are NaN, which otherwise is passed
// over. logits: F32 [rows, vocab] where the operators compute, may be changed; chosen: in this machine's
// memory.
//
// Logits of previous tokens are divided (if not positive multiplied) by the penalty. Candidates are the
// tokens that have a weight, exp((logit - largest) / temperature); of them the top_k with the largest logits,
// of equal ones those of smaller ids; of these the fewest, likeliest first, whose weights reach top_p of the
// sum. The draw is a point in the sum of the candidates' weights, in the order of the ids: so near ties,
// which another kernel may round to the other side, cannot change which token a point means. kUnsupported:
// more than kMostSampledTokens to draw from.
void sample(const OpContext& context, const SamplingRule& rule, float* logits, int64_t vocab,
            std::span<const SamplingRow> rows, int32_t* chosen);

// What a GPU keeps from one token to the next, so that it can sample without the host: gpu_sample of args()
// and GpuAdvanceArgs. The addresses stay.
class GpuSampling {
 public:
  GpuSampling(const OpContext& context, const SamplingRule& rule, float* logits, int64_t vocab, int64_t rows);
  void begin(const OpContext& context, std::span<const SamplingRow> rows);  // before the first tokens
  const GpuSamplingArgs& args() const { return args_; }

 private:
  std::optional<Scratch> kept_, work_;
  size_t kept_bytes_ = 0;
  GpuSamplingArgs args_;
};

}  // namespace lowbit
