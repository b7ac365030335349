// From logits to a token: greedy, or temperature, top-k and top-p (Holtzman et al., arXiv 1904.09751).
#pragma once

#include "lowbit/generate.h"

#include <cstdint>
#include <span>
#include <vector>

namespace lowbit {

// Whether the token with the largest logit is always the one.
bool is_greedy(const GenerateOptions& options);
// The token that finite_argmax found; kInternal when it found none: the model's numbers are broken.
int32_t checked_token(int32_t best);

class Sampler {
 public:
  // stream: prompts of one call draw from different random streams.
  Sampler(const GenerateOptions& options, uint64_t stream);

  // logits: [vocab], may be changed. `previous`: prompt and answer so far, for the repetition penalty.
  // kInternal when no logit is finite: the model's numbers are broken.
  int32_t sample(std::span<float> logits, std::span<const int32_t> previous);

 private:
  double uniform();  // in [0, 1)

  const GenerateOptions& options_;
  uint64_t state_;
  std::vector<int32_t> candidates_;
  std::vector<double> weights_;
};

}  // namespace lowbit
