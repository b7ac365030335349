// The affine grid of one group: value = scale * (code - zero_point). How scale and zero_point follow from a
// range, and the nearest code of a value. Scalar truth for kernels and methods. Sources: Frantar et al.,
// GPTQ, arXiv 2210.17323 (grid); research on the defects of existing quantizers: a symmetric group without
// negative values keeps its full range here.
#pragma once

#include "base/fields.h"
#include "lowbit/format.h"

#include <cmath>
#include <cstdint>

namespace lowbit {

// Throws kInvalidArgument: bits not in {2, 3, 4, 8}, group_size neither -1 nor positive.
void validate(const AffineOptions& options);

// Groups in a row of `columns`; the last may be short.
constexpr int64_t group_count(int64_t columns, int group_size) {
  return group_size <= 0 ? 1 : (columns + group_size - 1) / group_size;
}
constexpr int64_t effective_group_size(int64_t columns, int group_size) {
  return group_size <= 0 ? columns : group_size;
}

struct AffineGrid {
  float scale = 1;     // already rounded to F16: what is stored is what is used
  int zero_point = 0;  // in [0, 2^bits - 1]
};

// The grid that covers [low, high] (extended to hold 0). Symmetric: zero_point 2^(bits-1), scale
// 2*max/(2^bits - 1). A range of zero width gets scale 1. The scale is rounded to F16, never to zero or
// infinity.
AffineGrid affine_grid(float low, float high, const AffineOptions& options);

// The scale nearest to `scale` that F16 can hold, as a float; at least the smallest F16 subnormal, 2^-24.
float round_scale(float scale);

// clamp(round_half_even(value / scale) + zero_point, 0, 2^bits - 1). NaN gets the zero_point.
inline int nearest_code(float value, AffineGrid grid, int max_code) {
  const float level = std::nearbyint(value / grid.scale) + static_cast<float>(grid.zero_point);
  if (!(level > 0)) return std::isnan(level) ? grid.zero_point : 0;
  return level >= static_cast<float>(max_code) ? max_code : static_cast<int>(level);
}

inline float decode_code(int code, AffineGrid grid) {
  return grid.scale * static_cast<float>(code - grid.zero_point);
}

}  // namespace lowbit
