// Rows of int8, of weights and of inputs: value = scale * code, code in [-127, 127], one scale for a row. As
// LLM.int8() has them (Dettmers et al., arXiv 2208.07339), with the roundings of bitsandbytes. Scalar truth
// for kernels and dialects; bytes: docs/formats/bitsandbytes.md.
#pragma once

#include "format/weight.h"

#include <cstdint>
#include <span>

namespace lowbit {

constexpr float kInt8Largest = 127;  // of a code's magnitude

// What codes are made with: code = round_half_even(value * factor). 127 times the rounded reciprocal, not
// 127 / largest: so bitsandbytes on the CPU. 0 for a row of zeros.
inline float int8_factor(float largest) { return largest > 0 ? kInt8Largest * (1 / largest) : 0; }
inline float int8_scale(float largest) { return largest / kInt8Largest; }

// The largest magnitude; NaN when a value is not finite.
float largest_magnitude(std::span<const float> values);
// Clamped to [-127, 127].
void encode_int8(std::span<const float> values, float factor, int8_t* codes);

// A matrix as files keep it, rows one behind the other, as layers hold it. codes: [out, in]; a file may hold
// -128 too. scales: [out].
QuantizedTensor from_int8_rows(const int8_t* codes, std::span<const float> scales, int64_t in_features);

}  // namespace lowbit
