#include "quantize/group_grids.h"

#include "format/affine.h"
#include "ops/clip_search.h"

#include <algorithm>
#include <cmath>

namespace lowbit {
namespace {

// research: AutoGPTQ's Quantizer.find_params. A symmetric group without negative values gets the scale of a
// one-sided range but the zero point of the middle, so that its upper half is clipped; reproduced, since
// compat means that.
void autogptq_grids(const AffineOptions& affine, const float* w, int64_t columns, int64_t rows, float* scales,
                    float* zero_points) {
  const float max_code = static_cast<float>((1 << affine.bits) - 1);
  std::vector<float> low(static_cast<size_t>(rows), 0.0f), high(static_cast<size_t>(rows), 0.0f);
  for (int64_t column = 0; column < columns; ++column) {
    for (int64_t row = 0; row < rows; ++row) {
      const float value = w[column * rows + row];
      const size_t r = static_cast<size_t>(row);
      low[r] = std::min(low[r], value);
      high[r] = std::max(high[r], value);
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    float least = low[static_cast<size_t>(row)], most = high[static_cast<size_t>(row)];
    if (affine.sym) {
      most = std::max(std::abs(least), most);
      if (least < 0) least = -most;
    }
    if (least == 0 && most == 0) least = -1, most = 1;
    scales[row] = (most - least) / max_code;
    zero_points[row] = affine.sym ? (max_code + 1) / 2 : std::nearbyint(-least / scales[row]);
  }
}

}  // namespace

void choose_grids(const OpContext& ops, const GridChoice& choice, const float* w, int64_t columns,
                  int64_t rows, const float* column_weights, float* scales, float* zero_points) {
  if (choice.as_autogptq) {
    autogptq_grids(choice.affine, w, columns, rows, scales, zero_points);
    raise_zero_points({scales, zero_points, rows}, (1 << choice.affine.bits) - 1, choice.least_zero_point);
    return;
  }
  const GridProblem problem{
      w, rows, columns, rows, scales, zero_points, choice.least_zero_point, choice.levels};
  if (choice.mse > 0) {
    clip_search(ops, problem, choice.affine, {.norm = choice.mse}, column_weights);
  } else {
    range_grid(ops, problem, choice.affine);
  }
}

}  // namespace lowbit
