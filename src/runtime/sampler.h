// How an answer's tokens are chosen: what ops/sampling.h needs, from the options.
#pragma once

#include "lowbit/generate.h"
#include "ops/sampling_args.h"

#include <cstdint>

namespace lowbit {

SamplingRule sampling_rule(const GenerateOptions& options);
// The beginning of a random stream; prompts of one call draw from different ones.
uint64_t random_stream(uint64_t seed, uint64_t prompt);
// The token that was chosen; kInternal where none was: the model's numbers are broken.
int32_t checked_token(int32_t chosen);

}  // namespace lowbit
