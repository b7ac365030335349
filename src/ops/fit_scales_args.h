// What fit_scales gets. Plain data only: GPU kernels include this.
#pragma once

#include "format/levels.h"

#include <cstdint>

namespace lowbit {

// A group [first, last) inside a block of columns. Matrices are [columns][rows] of the block, rows fastest.
struct FitScalesArgs {
  const float* hessian = nullptr;  // H of the block, symmetric: element (i, j) at [i * hessian_stride + j]
  int64_t hessian_stride = 0;
  int64_t columns = 0, rows = 0, first = 0, last = 0;
  const uint8_t* codes = nullptr;
  const float* zero_points = nullptr;  // [rows], of the group
  float* scales = nullptr;             // [rows], of the group
  float* gradient = nullptr;           // H (W - Q), kept up to date in the whole block
  float* values = nullptr;             // of the codes, kept up to date in the group
  const Levels* levels = nullptr;      // of a codebook: no zero points then
};

constexpr int64_t kFitScalesColumns = 128;  // at most, of a block

}  // namespace lowbit
