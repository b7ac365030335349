// Grids of one group of columns for many rows: from the plain range, or with the range shrunk to where the
// weighted quantization error is least ("mse" search of GPTQ implementations).
#pragma once

#include "format/levels.h"
#include "lowbit/format.h"
#include "ops/context.h"
#include "ops/kernel_table.h"

#include <cstdint>
#include <vector>

namespace lowbit {

struct ClipSearchOptions {
  int grid = 100;           // candidate i shrinks the range by 1 - i / grid
  float max_shrink = 0.8f;  // i < grid * max_shrink
  float norm = 2.4f;        // of the error |w - decoded|^norm, in [1, 4]; 2 is the fast case
};

// The values of one group, [columns][rows] with `stride` floats between columns, and where the grids go:
// [rows] each.
struct GridProblem {
  const float* w = nullptr;
  int64_t stride = 0, columns = 0, rows = 0;
  float* scales = nullptr;       // rounded to F16 as affine_grid does
  float* zero_points = nullptr;  // whole numbers
  int least_zero_point = 0;      // see raise_zero_points
  // Of a codebook: scales are those of format/codebook.h, not rounded, and there are no zero points; what the
  // affine options say is not read.
  const Levels* levels = nullptr;
};

// A row whose zero point is less than least_zero_point gets that one, and its range, which begins at zero, is
// spread over the codes above it: version 1 of the GPTQ file cannot hold a zero point of 0. On this machine.
struct GridRows {
  float* scales = nullptr;
  float* zero_points = nullptr;
  int64_t rows = 0;
};
void raise_zero_points(const GridRows& grids, int max_code, int least_zero_point);

// affine_grid of each row's least and greatest value, or the scale of its largest magnitude; NaN is passed
// over.
void range_grid(const OpContext& context, const GridProblem& problem, const AffineOptions& options);

// The candidate with the least sum over columns of column_weights * |w - decoded|^norm, of equal ones the
// widest. column_weights: [columns], >= 0, or null for 1. Fast kernels compute the power with a relative
// error below 2e-5, so between candidates that are this close they may choose the other. A row with NaN gets
// its plain range. kInvalidArgument: options out of range.
void clip_search(const OpContext& context, const GridProblem& problem, const AffineOptions& options,
                 const ClipSearchOptions& search, const float* column_weights);

std::vector<KernelListing> clip_search_kernels();

}  // namespace lowbit
