// The scalar truth of int8 weights times int8 inputs: an exact sum of codes, then floats in the order that
// ops/cpu/matmul_kernels.h states. It is the reference's bits that every other kernel has.
#include "ops/cpu/matmul_kernels.h"

#include <cmath>
#include <cstring>

namespace lowbit {
namespace {

template <class T>
T load(const void* base, int64_t index) {  // any alignment
  T value;
  std::memcpy(&value, static_cast<const char*>(base) + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

int code_at(const MatmulArgs& args, int64_t n, int64_t column) {
  const uint32_t word = load<uint32_t>(args.codes, column / 4 * args.out + n);
  return static_cast<int>(word >> 8 * (column % 4) & 255) - 128;
}

}  // namespace

void matmul_int8_ref(const MatmulArgs& args, int64_t begin, int64_t end, void*) noexcept {
  for (int64_t row = 0; row < args.rows; ++row) {
    const float* x = args.x + row * args.in;
    const int8_t* x_codes = args.x_bytes + row * args.x_stride;
    const uint64_t* outliers = args.x_outliers + row * ((args.in + 63) / 64);
    for (int64_t n = begin; n < end; ++n) {
      int32_t sum = args.input_offsets ? -args.input_offsets[n] : 0;
      for (int64_t column = 0; column < args.in; ++column) sum += code_at(args, n, column) * x_codes[column];
      float y = static_cast<float>(sum) * args.x_scales[row];
      for (int64_t column = 0; column < args.in; ++column) {
        if (outliers[column / 64] >> column % 64 & 1)
          y = std::fma(x[column], static_cast<float>(code_at(args, n, column)), y);
      }
      args.y[row * args.out + n] = std::fma(y, load<float>(args.scales, n), args.bias ? args.bias[n] : 0.0f);
    }
  }
}

}  // namespace lowbit
