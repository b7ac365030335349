#include "format/affine.h"
#include "format/codebook.h"
#include "ops/clip_search_args.h"

#include <algorithm>
#include <cmath>

namespace lowbit {

namespace {

// What a row's grid is, shrunk so, and the value that it makes of another.
struct AffineRow {
  const ClipSearchArgs& args;
  AffineOptions options;
  AffineGrid grid;

  explicit AffineRow(const ClipSearchArgs& from) : args(from) {
    options.sym = args.sym;
    options.bits = args.max_code == 255 ? 8 : args.max_code == 15 ? 4 : args.max_code == 7 ? 3 : 2;
  }
  void set(float low, float high, float shrink) { grid = affine_grid(low * shrink, high * shrink, options); }
  float decoded(float value) const { return decode_code(nearest_code(value, grid, args.max_code), grid); }
  void store(int64_t row) const {
    args.scales[row] = grid.scale;
    args.zero_points[row] = static_cast<float>(grid.zero_point);
  }
};

struct LevelsRow {
  const ClipSearchArgs& args;
  float scale = 0;

  void set(float low, float high, float shrink) {
    scale = std::max(-low, high) / args.levels->largest * shrink;
  }
  float decoded(float value) const {
    const int code = nearest_code(*args.levels, value * (1 / std::max(scale, kLeastScale)));
    return decode_code(args.levels->by_code, code, scale);
  }
  void store(int64_t row) const { args.scales[row] = scale; }
};

template <class Row>
void search(const ClipSearchArgs& args, int64_t begin, int64_t end, Row grid) {
  for (int64_t row = begin; row < end; ++row) {
    float low = 0, high = 0;
    for (int64_t column = 0; column < args.columns; ++column) {
      const float value = args.w[column * args.w_stride + row];
      if (value < low) low = value;
      if (value > high) high = value;
    }
    float best = 1;
    double least = INFINITY;
    for (int i = 0; i < args.candidates && args.candidates > 1; ++i) {
      const float shrink = static_cast<float>(1.0 - i * args.step);
      grid.set(low, high, shrink);
      double error = 0;
      for (int64_t column = 0; column < args.columns; ++column) {
        const float value = args.w[column * args.w_stride + row];
        const float difference = std::fabs(value - grid.decoded(value));
        error += double{args.column_weights[column]} * std::pow(double{difference}, double{args.norm});
      }
      if (error < least) least = error, best = shrink;
    }
    grid.set(low, high, best);
    grid.store(row);
  }
}

}  // namespace

void clip_search_ref(const ClipSearchArgs& args, int64_t begin, int64_t end, void*) noexcept {
  if (args.levels) return search(args, begin, end, LevelsRow{args});
  search(args, begin, end, AffineRow(args));
}

}  // namespace lowbit
