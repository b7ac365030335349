// Encoding of x for decode (XForm::kInt16), one block at a time. Every version gives the same bits.
#pragma once

#include "ops/matmul_args.h"

#include <cstdint>

namespace lowbit {

// Below this largest magnitude the reciprocal would overflow: such a block counts as zeros.
constexpr float kLeastMagnitude = 1e-30f;

// Codes go up to 127 * 256 + 127, so that each is two signed bytes (high and low) for kernels that multiply
// bytes.
constexpr float kLargestCode = 32639.0f;

struct Int16Block {
  const float* x;        // [count]
  int64_t count = 0;     // 1 ... kXBlock
  int64_t padded = 0;    // count rounded up to whole units
  int64_t unit = 0;      // 4, 8, 16 or 32 columns
  const uint8_t* order;  // [32]: position_order of ops/matmul_prepare.h
  int16_t* codes;        // [padded]
  float* scale;
  int32_t* sum;
};

// Rounds to the nearest of 65,279 steps of the largest magnitude. scale NaN when a value is not finite.
void encode_int16_ref(const Int16Block& block) noexcept;
void encode_int16_avx2(const Int16Block& block) noexcept;

}  // namespace lowbit
