// The scalar truth: each weight is decoded to a float, each sum runs in double.
#include "format/bits.h"
#include "ops/cpu/matmul_kernels.h"
#include "tensor/half.h"

#include <cstring>

namespace lowbit {
namespace {

template <class T>
T load(const void* base, int64_t index) {  // any alignment
  T value;
  std::memcpy(&value, static_cast<const char*>(base) + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

// The codes of row n, one column after the other.
struct CodeStream {
  const MatmulArgs& args;
  int64_t n, word = 0;
  uint64_t buffer = 0;
  int available = 0;

  CodeStream(const MatmulArgs& from, int64_t row) : args(from), n(row) {}
  int next() {
    if (available < args.bits) {
      buffer |= uint64_t{load<uint32_t>(args.codes, word++ * args.out + n)} << available;
      available += 32;
    }
    const int code = static_cast<int>(buffer & ((1u << args.bits) - 1u));
    buffer >>= args.bits;
    available -= args.bits;
    return code;
  }
};

void decode_affine_row(const MatmulArgs& args, int64_t n, float* row) {
  CodeStream codes(args, n);
  int64_t group = -1;
  float scale = 0;
  int zero_point = 1 << (args.bits - 1);
  for (int64_t column = 0; column < args.in; ++column) {
    if (column / args.group_size != group) {
      group = column / args.group_size;
      const int64_t at = group * args.out + n;
      scale =
          args.has_wide_scales ? load<float>(args.scales, at) : f16_to_float(load<uint16_t>(args.scales, at));
      if (args.zero_points) zero_point = load<uint8_t>(args.zero_points, at);
    }
    row[column] = scale * static_cast<float>(codes.next() - zero_point);
  }
}

void decode_codebook_row(const MatmulArgs& args, int64_t n, float* row) {
  CodeStream codes(args, n);
  for (int64_t column = 0; column < args.in; ++column)
    row[column] =
        args.codebook[codes.next()] * load<float>(args.scales, column / args.group_size * args.out + n);
}

void decode_row(const MatmulArgs& args, int64_t n, float* row) {
  switch (args.kind) {
    case WeightKind::kInt8:  // matmul_int8_ref
      return;
    case WeightKind::kAffine:
      return decode_affine_row(args, n, row);
    case WeightKind::kCodebook:
      return decode_codebook_row(args, n, row);
    case WeightKind::kF32:
      std::memcpy(row, static_cast<const char*>(args.weight) + n * args.in * 4,
                  static_cast<size_t>(args.in) * 4);
      return;
    case WeightKind::kF16:
      for (int64_t i = 0; i < args.in; ++i)
        row[i] = f16_to_float(load<uint16_t>(args.weight, n * args.in + i));
      return;
    case WeightKind::kBF16:
      for (int64_t i = 0; i < args.in; ++i)
        row[i] = bf16_to_float(load<uint16_t>(args.weight, n * args.in + i));
      return;
  }
}

}  // namespace

void matmul_ref(const MatmulArgs& args, int64_t begin, int64_t end, void* scratch) noexcept {
  float* weights = static_cast<float*>(scratch);
  for (int64_t n = begin; n < end; ++n) {
    decode_row(args, n, weights);
    for (int64_t row = 0; row < args.rows; ++row) {
      const float* x = args.x + row * args.x_stride;
      double sums[4] = {};
      int64_t i = 0;
      for (; i + 4 <= args.in; i += 4) {
        for (int j = 0; j < 4; ++j) sums[j] += double{x[i + j]} * double{weights[i + j]};
      }
      for (; i < args.in; ++i) sums[0] += double{x[i]} * double{weights[i]};
      double sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      if (args.bias) sum += double{args.bias[n]};
      args.y[row * args.out + n] = static_cast<float>(sum);
    }
  }
}

}  // namespace lowbit
