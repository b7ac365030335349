#include "ops/fit_scales.h"

#include "base/fail.h"
#include "format/affine.h"
#include "ops/columns.h"
#include "ops/cuda/quantize_gpu.h"
#include "ops/gemm.h"
#include "ops/parallel.h"

#include <algorithm>

namespace lowbit {
namespace {

// to -= H[:, group]^T b of the block's columns [begin, end)
void subtract_product(const OpContext& context, const FitScalesArgs& args, const float* b, int64_t begin,
                      int64_t end, float* to) {
  gemm_subtract(context, {.a = args.hessian + args.first * args.hessian_stride + begin,  // H is symmetric
                          .b = b,
                          .c = to,
                          .a_stride = args.hessian_stride,
                          .b_stride = args.rows,
                          .c_stride = args.rows,
                          .rows = end - begin,
                          .columns = args.rows,
                          .depth = args.last - args.first});
}

}  // namespace

void fit_scales(const OpContext& context, const FitScalesArgs& args) {
  if (args.columns > kFitScalesColumns || args.first < 0 || args.last > args.columns) {
    fail(ErrorCode::kInternal, "fit_scales: columns {} to {} of {}", args.first, args.last, args.columns);
  }
  if constexpr (kHasCuda) {
    refuse_levels_on_gpu(context, args.levels);
    if (context.gpu) return gpu_fit_scales(args, context.gpu->stream());
  }
  const int64_t columns = args.last - args.first, rows = args.rows;
  const OpScratch scratch(context, static_cast<size_t>((2 * columns + 2) * rows) * sizeof(float));
  float* levels = scratch.as<float>();
  float* product = levels + columns * rows;  // -H c
  float* slopes = product + columns * rows;
  float* curvatures = slopes + rows;
  const float* gradient = args.gradient + args.first * rows;
  for (int64_t i = 0; i < columns; ++i) {
    const uint8_t* codes = args.codes + (args.first + i) * rows;
    for (int64_t row = 0; row < rows; ++row) {
      levels[i * rows + row] = args.levels ? args.levels->by_code[codes[row]]
                                           : static_cast<float>(codes[row]) - args.zero_points[row];
    }
  }
  std::fill_n(product, (columns + 2) * rows, 0.0f);
  subtract_product(context, args, levels, args.first, args.last, product);
  for (int64_t i = 0; i < columns; ++i) {
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t at = i * rows + row;
      slopes[row] += levels[at] * gradient[at];
      curvatures[row] -= levels[at] * product[at];
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    const float before = args.scales[row], better = before + slopes[row] / curvatures[row];
    const bool is_sane = curvatures[row] > 0 && better > 0.5f * before && better < 2.0f * before;
    args.scales[row] = !is_sane ? before : args.levels ? better : round_scale(better);
    slopes[row] = args.scales[row] - before;
  }
  float* values = args.values + args.first * rows;
  for (int64_t i = 0; i < columns; ++i) {
    for (int64_t row = 0; row < rows; ++row) {
      float& level = levels[i * rows + row];
      values[i * rows + row] = args.scales[row] * level;
      level *= slopes[row];
    }
  }
  subtract_product(context, args, levels, 0, args.columns, args.gradient);
}

}  // namespace lowbit
