// Encoding of x: for decode (XForm::kInt16) one block at a time, for int8 (XForm::kInt8) one row. Every
// version gives the same bits.
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

struct Int8Row {
  const float* x;  // [count]
  int64_t count = 0;
  int64_t padded = 0;  // a multiple of 64
  float limit = 0;     // outliers begin here; infinity: there are none
  int8_t* codes;       // [padded]
  uint64_t* outliers;  // [padded / 64]
  float* scale;
  int32_t* sum;
};

// Rounds what is below `limit` to the nearest of 255 steps, as format/int8.h does; the scale is the largest
// magnitude of these over 127. Outliers get code 0 and their bit. scale NaN, and no outliers, when a value is
// not finite.
void encode_int8_ref(const Int8Row& row) noexcept;
void encode_int8_avx2(const Int8Row& row) noexcept;
void encode_int8_avx512(const Int8Row& row) noexcept;

// Static inputs: a row on a grid that is given.
struct Int8GridRow {
  const float* x;  // [count]
  int64_t count = 0;
  int64_t padded = 0;  // a multiple of 64
  float input_scale = 0;
  int zero_point = 0;
  int8_t* codes;  // [padded], zeros behind `count`
  float* scale;
  int32_t* sum;
};

// As encode_input of format/int8.h. scale is input_scale; NaN, and all codes 0, when a value is not finite.
void encode_int8_grid_ref(const Int8GridRow& row) noexcept;
void encode_int8_grid_avx2(const Int8GridRow& row) noexcept;

}  // namespace lowbit
