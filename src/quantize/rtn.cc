#include "format/affine.h"
#include "ops/matmul.h"
#include "quantize/methods.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace lowbit {
namespace {

// Adding and subtracting 1.5 * 2^23 rounds a float below 2^22 to the nearest even whole number, in vector
// code too.
float rounded(float value) {
  constexpr float kMagic = 12582912.0f;
  return (value + kMagic) - kMagic;
}

void nearest_codes(const float* w, const float* scales, const float* zero_points, int64_t rows,
                   float max_code, uint8_t* codes) {
  for (int64_t row = 0; row < rows; ++row) {
    const float level = rounded(std::clamp(w[row] / scales[row], -1024.0f, 1024.0f)) + zero_points[row];
    codes[row] = static_cast<uint8_t>(std::clamp(level, 0.0f, max_code));
  }
}

}  // namespace

QuantizedMatrix quantize_rtn(const OpContext& ops, const MatrixProblem& problem) {
  QuantizedMatrix result{allocate_quantized(problem), "rtn", "", 0, 0};
  const int64_t total = result.weight.out_features, width = result.weight.in_features,
                most = slab_rows(width);
  const GridChoice choice{problem.affine, problem.gptq.mse, problem.least_zero_point, false};
  std::vector<int32_t> columns(static_cast<size_t>(width));
  std::iota(columns.begin(), columns.end(), 0);
  for (int64_t first = 0; first < total; first += most) {
    const int64_t rows = std::min(most, total - first);
    Tensor w = Tensor::allocate(DType::kF32, {width, rows}),
           codes = Tensor::allocate(DType::kU8, {width, rows});
    Tensor scales = Tensor::allocate(DType::kF32, {result.weight.groups(), rows});
    Tensor zero_points = Tensor::allocate(DType::kF32, {result.weight.groups(), rows});
    load_columns(ops, problem, first, rows, columns, w.mutable_data<float>());
    for (int64_t group = 0; group < result.weight.groups(); ++group) {
      const int64_t begin = group * result.weight.group_size,
                    end = std::min(width, begin + result.weight.group_size);
      float* scale = scales.mutable_data<float>() + group * rows;
      float* zero_point = zero_points.mutable_data<float>() + group * rows;
      choose_grids(ops, choice, w.data<float>() + begin * rows, end - begin, rows, nullptr, scale,
                   zero_point);
      ops.threads->parallel_for(end - begin, 8, [&](int64_t from, int64_t to, int) {
        for (int64_t column = begin + from; column < begin + to; ++column) {
          nearest_codes(w.data<float>() + column * rows, scale, zero_point, rows,
                        static_cast<float>((1 << problem.affine.bits) - 1),
                        codes.mutable_data<uint8_t>() + column * rows);
        }
      });
    }
    store_slab(ops, {first, rows, codes.data<uint8_t>(), scales.data<float>(), zero_points.data<float>()},
               result.weight);
  }
  return result;
}

double relative_error(const OpContext& ops, const Tensor& weight, const QuantizedTensor& quantized,
                      const Hessian* hessian) {
  const int64_t width = quantized.in_features, total = quantized.out_features;
  const int64_t most = std::clamp<int64_t>((int64_t{4} << 20) / width, 16, 512);
  const bool weighs = hessian && hessian->is_finite();
  const Weight h = weighs ? Weight(hessian->values) : Weight(Tensor());
  double error = 0, size = 0;
  for (int64_t first = 0; first < total; first += most) {
    const int64_t rows = std::min(most, total - first);
    // The rows of W, then those of dW; products with H below them.
    const Scratch scratch = ops.workspace->take(static_cast<size_t>(4 * rows * width) * sizeof(float));
    float* w = scratch.as<float>();
    float* difference = w + rows * width;
    float* product = difference + rows * width;
    ops.threads->parallel_for(rows, 8, [&](int64_t begin, int64_t end, int) {
      float* values = w + begin * width;
      float* decoded = difference + begin * width;
      read_rows(weight, first + begin, end - begin, values);
      decode_rows(quantized, first + begin, end - begin, decoded);
      for (int64_t i = 0; i < (end - begin) * width; ++i) decoded[i] = values[i] - decoded[i];
    });
    if (weighs) matmul(ops, w, 2 * rows, h, nullptr, product, MatmulMode::kPrefill);
    const float* other = weighs ? product : w;
    std::vector<double> sums(static_cast<size_t>(2 * rows));
    ops.threads->parallel_for(2 * rows, 16, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        double sum = 0;
        for (int64_t i = row * width; i < (row + 1) * width; ++i) sum += double{w[i]} * double{other[i]};
        sums[static_cast<size_t>(row)] = sum;
      }
    });
    for (int64_t row = 0; row < rows; ++row) {
      size += sums[static_cast<size_t>(row)];
      error += sums[static_cast<size_t>(rows + row)];
    }
  }
  return size > 0 ? std::sqrt(std::max(0.0, error) / size) : 0;
}

}  // namespace lowbit
