#include "runtime/sampler.h"

#include "base/fail.h"

namespace lowbit {

SamplingRule sampling_rule(const GenerateOptions& options) {
  return {options.temperature, options.top_k, options.top_p, options.repetition_penalty};
}

uint64_t random_stream(uint64_t seed, uint64_t prompt) {
  return seed * 0x9e3779b97f4a7c15u + prompt * 0xd1342543de82ef95u + 1;
}

int32_t checked_token(int32_t chosen) {
  if (chosen < 0)
    fail(ErrorCode::kInternal, "the model's logits are not finite: its weights or an activation overflowed");
  return chosen;
}

}  // namespace lowbit
