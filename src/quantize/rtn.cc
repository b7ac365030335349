#include "format/affine.h"
#include "format/codebook.h"
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

void nearest_codes(const Levels& levels, const float* w, const float* scales, int64_t rows, uint8_t* codes) {
  for (int64_t row = 0; row < rows; ++row)
    codes[row] =
        static_cast<uint8_t>(nearest_code(levels, w[row] * (1 / std::max(scales[row], kLeastScale))));
}

}  // namespace

QuantizedMatrix quantize_rtn(const OpContext& ops, const MatrixProblem& problem) {
  QuantizedMatrix result{allocate_quantized(problem), "rtn", "", 0, 0};
  const int64_t width = result.weight.in_features;
  const GridChoice choice{problem.affine, problem.gptq.mse, problem.least_zero_point, false,
                          problem.levels()};
  const float max_code = static_cast<float>((1 << problem.affine.bits) - 1);
  std::vector<int32_t> columns(static_cast<size_t>(width));
  std::iota(columns.begin(), columns.end(), 0);
  for_each_slab(
      ops, result.weight.out_features,
      [&](const OpContext& one_thread, int64_t, int64_t first, int64_t rows) {
        Tensor w = Tensor::allocate(DType::kF32, {width, rows}),
               codes = Tensor::allocate(DType::kU8, {width, rows});
        Tensor scales = Tensor::allocate(DType::kF32, {result.weight.groups(), rows});
        Tensor zero_points = Tensor::allocate(DType::kF32, {result.weight.groups(), rows});
        load_weights(one_thread, problem, first, rows, columns.data(), width, w.mutable_data<float>());
        for (int64_t group = 0; group < result.weight.groups(); ++group) {
          const int64_t begin = group * result.weight.group_size,
                        end = std::min(width, begin + result.weight.group_size);
          float* scale = scales.mutable_data<float>() + group * rows;
          float* zero_point = zero_points.mutable_data<float>() + group * rows;
          choose_grids(one_thread, choice, w.data<float>() + begin * rows, end - begin, rows, nullptr, scale,
                       zero_point);
          for (int64_t column = begin; column < end; ++column) {
            const float* values = w.data<float>() + column * rows;
            uint8_t* to = codes.mutable_data<uint8_t>() + column * rows;
            if (problem.codebook) {
              nearest_codes(*problem.levels(), values, scale, rows, to);
            } else {
              nearest_codes(values, scale, zero_point, rows, max_code, to);
            }
          }
        }
        store_slab(
            one_thread,
            {first, rows, codes.data<uint8_t>(), nullptr, scales.data<float>(), zero_points.data<float>()},
            result.weight);
      });
  return result;
}

double relative_error(const OpContext& ops, const Tensor& weight, const QuantizedTensor& quantized,
                      const Hessian* hessian) {
  const int64_t width = quantized.in_features;
  const bool weighs = hessian && hessian->is_finite();
  const Weight h = weighs ? Weight(hessian->values) : Weight(Tensor());
  struct Squares {
    double error = 0, size = 0;
  };
  std::vector<Squares> slabs(static_cast<size_t>(slab_count(quantized.out_features)));
  for_each_slab(ops, quantized.out_features,
                [&](const OpContext& one_thread, int64_t slab, int64_t first, int64_t rows) {
                  // The rows of W, then those of dW; products with H below them.
                  const int64_t count = rows * width;
                  const Scratch scratch = ops.workspace->take(static_cast<size_t>(4 * count) * sizeof(float));
                  float* w = scratch.as<float>();
                  float* difference = w + count;
                  float* product = difference + count;
                  read_rows(weight, first, rows, w);
                  decode_rows(quantized, first, rows, difference);
                  for (int64_t i = 0; i < count; ++i) difference[i] = w[i] - difference[i];
                  if (weighs) matmul(one_thread, w, 2 * rows, h, nullptr, product, MatmulMode::kPrefill);
                  const float* other = weighs ? product : w;
                  auto dot = [&](int64_t begin) {
                    double sum = 0;
                    for (int64_t i = begin; i < begin + count; ++i) sum += double{w[i]} * double{other[i]};
                    return sum;
                  };
                  slabs[static_cast<size_t>(slab)] = {dot(count), dot(0)};
                });
  double error = 0, size = 0;
  for (const Squares& squares : slabs) error += squares.error, size += squares.size;
  return size > 0 ? std::sqrt(std::max(0.0, error) / size) : 0;
}

}  // namespace lowbit
