// What the kernels that choose grids get. Plain data only: files of special instruction sets include this.
#pragma once

#include "format/levels.h"

#include <cstdint>

namespace lowbit {

// Units: rows.
struct ClipSearchArgs {
  const float* w;  // [columns][rows] with `w_stride` floats between columns
  int64_t w_stride;
  const float* column_weights;  // [columns], >= 0
  int64_t columns;
  float norm;
  int candidates;  // 1: the plain range; candidate i shrinks it by 1 - i * step
  double step;
  int max_code;
  bool sym;
  float* scales;       // [rows]
  float* zero_points;  // [rows]
  int least_zero_point;
  const Levels* levels = nullptr;  // null: the affine grid. Otherwise scales alone are chosen, no zero_points
};

constexpr int64_t kClipSearchRows = 16;  // rows that a kernel takes at a time, in scratch
constexpr int64_t clip_search_scratch_bytes(int64_t columns) {
  return (columns + 1) * kClipSearchRows * 4 + 64;
}

void clip_search_ref(const ClipSearchArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void clip_search_avx2(const ClipSearchArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void clip_search_avx512(const ClipSearchArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;

}  // namespace lowbit
