#include "format/affine.h"
#include "format/codebook.h"
#include "ops/gptq_block_args.h"

#include <algorithm>
#include <cmath>

namespace lowbit {
namespace {

struct Nearest {
  int code;
  float decoded;
};
Nearest nearest(const GptqBlockArgs& args, float value, int64_t at) {
  const float scale = args.scales[at];
  if (args.levels) {
    const int code = nearest_code(*args.levels, value * (1 / std::max(scale, kLeastScale)));
    return {code, decode_code(args.levels->by_code, code, scale)};
  }
  const AffineGrid grid{scale, static_cast<int>(args.zero_points[at])};
  const int code = nearest_code(value, grid, args.max_code);
  return {code, decode_code(code, grid)};
}

}  // namespace

void gptq_block_ref(const GptqBlockArgs& args, int64_t begin, int64_t end, void*) noexcept {
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t i = args.begin; i < args.end; ++i) {
      const float pivot = args.u[i * args.u_stride + i];
      const float previous = args.previous ? args.previous[i * args.previous_stride + row] : 0;
      const float value = args.previous ? previous + args.w[i * args.w_stride + row] / pivot
                                        : args.w[i * args.w_stride + row];
      const int64_t at = args.groups[i] * args.grids_stride + row;
      const auto [code, decoded] = nearest(args, value, at);
      const float error = args.previous ? decoded - previous : (value - decoded) / pivot;
      args.codes[i * args.codes_stride + row] = static_cast<uint8_t>(code);
      args.errors[i * args.errors_stride + row] = error;
      for (int64_t j = i + 1; j < args.columns; ++j) {
        float& w = args.w[j * args.w_stride + row];
        w = std::fma(-error, args.u[i * args.u_stride + j], w);
      }
    }
  }
}

}  // namespace lowbit
