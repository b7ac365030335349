#include "format/affine.h"
#include "ops/clip_search_args.h"

#include <algorithm>
#include <cmath>

namespace lowbit {

void clip_search_ref(const ClipSearchArgs& args, int64_t begin, int64_t end, void*) noexcept {
  AffineOptions options;
  options.sym = args.sym;
  options.bits = args.max_code == 255 ? 8 : args.max_code == 15 ? 4 : args.max_code == 7 ? 3 : 2;
  for (int64_t row = begin; row < end; ++row) {
    float low = 0, high = 0;
    for (int64_t column = 0; column < args.columns; ++column) {
      const float value = args.w[column * args.w_stride + row];
      if (value < low) low = value;
      if (value > high) high = value;
    }
    AffineGrid best = affine_grid(low, high, options);
    double least = INFINITY;
    for (int i = 0; i < args.candidates && args.candidates > 1; ++i) {
      const float shrink = static_cast<float>(1.0 - i * args.step);
      const AffineGrid grid = affine_grid(low * shrink, high * shrink, options);
      double error = 0;
      for (int64_t column = 0; column < args.columns; ++column) {
        const float value = args.w[column * args.w_stride + row];
        const float difference =
            std::fabs(value - decode_code(nearest_code(value, grid, args.max_code), grid));
        error += double{args.column_weights[column]} * std::pow(double{difference}, double{args.norm});
      }
      if (error < least) least = error, best = grid;
    }
    args.scales[row] = best.scale;
    args.zero_points[row] = static_cast<float>(best.zero_point);
  }
}

}  // namespace lowbit
