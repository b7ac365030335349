#include "quantize/matrix.h"

#include "base/fail.h"
#include "format/affine.h"
#include "format/bits.h"
#include "tensor/half.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

namespace lowbit {
namespace {

constexpr int64_t kRowTile = 16;

}  // namespace

void for_each_slab(const OpContext& ops, int64_t rows,
                   const std::function<void(const OpContext& one_thread, int64_t slab, int64_t first_row,
                                            int64_t rows)>& body) {
  const ThreadPool one_thread(1);
  const OpContext inner{&one_thread, ops.workspace, ops.kernels};
  ops.threads->parallel_for(slab_count(rows), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t slab = begin; slab < end; ++slab) {
      const int64_t first = slab * kSlabRows;
      body(inner, slab, first, std::min(kSlabRows, rows - first));
    }
  });
}

void read_rows(const Tensor& weight, int64_t first_row, int64_t rows, float* values) {
  const int64_t width = weight.size(1), count = rows * width, first = first_row * width;
  switch (weight.dtype()) {
    case DType::kF32:
      std::memcpy(values, weight.data<float>() + first, static_cast<size_t>(count) * sizeof(float));
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < count; ++i) values[i] = bf16_to_float(weight.data<uint16_t>()[first + i]);
      return;
    case DType::kF16:
      for (int64_t i = 0; i < count; ++i) values[i] = f16_to_float(weight.data<uint16_t>()[first + i]);
      return;
    case DType::kF64:
      for (int64_t i = 0; i < count; ++i) values[i] = static_cast<float>(weight.data<double>()[first + i]);
      return;
    default:
      fail(ErrorCode::kInternal, "a weight of type {} cannot be quantized", dtype_name(weight.dtype()));
  }
}

void load_columns(const OpContext& ops, const MatrixProblem& problem, int64_t first_row, int64_t rows,
                  std::span<const int32_t> columns, float* w) {
  const int64_t width = static_cast<int64_t>(columns.size());
  std::atomic<bool> finite = true;
  ops.threads->parallel_for(rows, kRowTile, [&](int64_t begin, int64_t end, int) {
    std::vector<float> tile(static_cast<size_t>((end - begin) * width));
    read_rows(problem.weight, first_row + begin, end - begin, tile.data());
    for (float value : tile) {
      if (!std::isfinite(value)) finite = false;
    }
    for (int64_t step = 0; step < width; ++step) {
      const float* source = tile.data() + columns[static_cast<size_t>(step)];
      for (int64_t row = begin; row < end; ++row) w[step * rows + row] = source[(row - begin) * width];
    }
  });
  if (!finite) {
    fail(ErrorCode::kCorruptFile, "{}.weight holds values that are not finite: the source model is damaged",
         problem.module);
  }
}

QuantizedTensor allocate_quantized(const MatrixProblem& problem) {
  QuantizedTensor out;
  out.bits = problem.affine.bits;
  out.out_features = problem.weight.size(0);
  out.in_features = problem.weight.size(1);
  out.group_size = effective_group_size(out.in_features, problem.affine.group_size);
  out.codes = Tensor::allocate(DType::kI32, {packed_words(out.in_features, out.bits), out.out_features});
  out.scales = Tensor::allocate(DType::kF16, {out.groups(), out.out_features});
  if (!problem.affine.sym) out.zero_points = Tensor::allocate(DType::kU8, {out.groups(), out.out_features});
  return out;
}

void store_slab(const OpContext& ops, const CodeSlab& slab, QuantizedTensor& out) {
  uint32_t* words = out.codes.mutable_data<uint32_t>();
  uint16_t* scales = out.scales.mutable_data<uint16_t>();
  uint8_t* zeros = out.zero_points.empty() ? nullptr : out.zero_points.mutable_data<uint8_t>();
  ops.threads->parallel_for(slab.rows, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      pack_bits(slab.codes + row, slab.rows, out.in_features, out.bits, words + slab.first_row + row,
                out.out_features);
    }
    for (int64_t group = 0; group < out.groups(); ++group) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t place = group * out.out_features + slab.first_row + row;
        scales[place] = float_to_f16(slab.scales[group * slab.rows + row]);
        if (zeros) zeros[place] = static_cast<uint8_t>(slab.zero_points[group * slab.rows + row]);
      }
    }
  });
}

void decode_rows(const QuantizedTensor& weight, int64_t first_row, int64_t rows, float* values) {
  const int64_t width = weight.in_features, stride = weight.out_features;
  const uint8_t* zeros = weight.zero_points.empty() ? nullptr : weight.zero_points.data<uint8_t>();
  const int32_t* order = weight.column_order.empty() ? nullptr : weight.column_order.data<int32_t>();
  std::vector<uint8_t> codes(static_cast<size_t>(width));
  for (int64_t row = first_row; row < first_row + rows; ++row) {
    unpack_bits(weight.codes.data<uint32_t>() + row, stride, width, weight.bits, codes.data(), 1);
    float* out = values + (row - first_row) * width;
    for (int64_t position = 0; position < width; ++position) {
      const int64_t place = position / weight.group_size * stride + row;
      const int zero_point = zeros ? zeros[place] : 1 << (weight.bits - 1);
      out[order ? order[position] : position] =
          f16_to_float(weight.scales.data<uint16_t>()[place]) *
          static_cast<float>(codes[static_cast<size_t>(position)] - zero_point);
    }
  }
}

}  // namespace lowbit
