// Scale and zero point of one group of columns, for all rows of a matrix.
#pragma once

#include "format/levels.h"
#include "lowbit/quantize.h"
#include "ops/context.h"

#include <vector>

namespace lowbit {

struct GridChoice {
  AffineOptions affine;
  float mse = 0;             // 0: plain range
  int least_zero_point = 0;  // 1 where a version 1 file is written: it cannot hold 0
  bool as_autogptq = false;  // FP32 scales, and its fault with symmetric groups that have no negative value
  const Levels* levels = nullptr;  // of a codebook: scales alone are chosen
};

// w: [columns][rows], `rows` floats apart. scales, zero_points: [rows]. column_weights: [columns] or null.
// All lie where the operators compute; as_autogptq is for the CPU alone.
void choose_grids(const OpContext& ops, const GridChoice& choice, const float* w, int64_t columns,
                  int64_t rows, const float* column_weights, float* scales, float* zero_points);

}  // namespace lowbit
