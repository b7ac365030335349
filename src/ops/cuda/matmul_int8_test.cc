#include "ops/cuda/matmul_int8.h"

#include "format/int8.h"
#include "ops/cuda/gpu_test_support.h"
#include "ops/cuda/weights_gpu.h"
#include "ops/matmul.h"

#include <cmath>
#include <limits>

namespace lowbit {
namespace {

using testing::Numbers;

struct Case {
  int64_t rows, in;
  std::vector<int64_t> outs;
  float threshold = 0;  // of dynamic inputs
  int outliers = 0;     // columns that have some
  InputGrid grid = {};  // of static ones
};

class GpuInt8Matmul : public testing::GpuTest {
 protected:
  // Scales that F16 holds, as they are kept there.
  static QuantizedTensor make_weight(int64_t out, const Case& c, Numbers& numbers) {
    std::vector<int8_t> codes;
    std::vector<float> scales;
    for (int64_t i = 0; i < out * c.in; ++i) codes.push_back(static_cast<int8_t>(numbers.between(-127, 127)));
    for (int64_t i = 0; i < out; ++i)
      scales.push_back(0x1p-12f * static_cast<float>(numbers.between(33, 64)));
    QuantizedTensor weight = from_int8_rows(codes.data(), scales, c.in);
    if (c.grid.scale > 0) {
      set_static_inputs(weight, c.grid);
    } else {
      weight.activations = ActivationFormat::kInt8Dynamic;
      weight.outlier_threshold = c.threshold;
    }
    return weight;
  }

  std::vector<float> make_x(const Case& c, Numbers& numbers) {
    std::vector<float> x;
    for (int64_t i = 0; i < c.rows * c.in; ++i) x.push_back(numbers.normal());
    for (int j = 0; j < c.outliers; ++j) {
      const int64_t column = (j * 37 + 5) % c.in;
      for (int64_t row = j % 3; row < c.rows; row += 3) x[row * c.in + column] *= 40;
    }
    std::fill_n(x.begin(), c.in, 0.0f);  // a row of zeros
    if (c.rows > 40) x[40 * c.in + 3] = std::numeric_limits<float>::quiet_NaN();
    return x;
  }

  // What the reference makes of the same x.
  std::vector<float> expected(const std::vector<float>& x, int64_t rows, const Weight& weight,
                              const Tensor& bias) {
    std::vector<float> y(static_cast<size_t>(rows * out_features(weight)));
    matmul(cpu_, x.data(), rows, weight, &bias, y.data(), MatmulMode::kPrefill);
    return y;
  }

  // The largest |a - b| in parts of the largest |b|; rows that are not finite have to be so in both.
  static double difference(const std::vector<float>& a, const std::vector<float>& b) {
    double most = 0, size = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_EQ(std::isnan(a[i]), std::isnan(b[i])) << i;
      if (std::isnan(a[i]) || std::isnan(b[i])) continue;
      most = std::max(most, std::abs(static_cast<double>(a[i]) - b[i]));
      size = std::max(size, std::abs(static_cast<double>(b[i])));
    }
    return most / size;
  }
};

// Sums of codes are whole numbers and the floats after them in the reference's order, so the bits are the
// same: in F32 added to zeros, and rounded to BF16. With outliers the order is another.
TEST_F(GpuInt8Matmul, PromptsAreTheReference) {
  if (!has_int8_product()) GTEST_SKIP() << "compute capability 9.0 alone has these kernels";
  Numbers numbers(3);
  const Case cases[] = {
      {513, 64, {16}},
      {640, 576, {576, 192, 192}},
      {600, 1536, {1536, 256, 256}},
      {700, 200, {8, 200}},
      {552, 8960, {200}},
      {520, 18000, {64}},
      {2100, 256, {4000, 392}},
      {556, 600, {72}, 0, 0, {.scale = 0.03f}},
      {662, 128, {64, 128, 200}, 0, 0, {.scale = 0.02f, .zero_point = -17}},
      {640, 576, {576, 192, 192}, 6, 0},
      {600, 1536, {1536, 256, 256}, 6, 6},
      {845, 1000, {336}, 6, 150},
      {612, 1536, {128, 64}, 0.5f, 0},  // nearly all columns: more than there is room for
  };
  for (const Case& c : cases) {
    const std::string what =
        fmt::format("{} x {}, threshold {}, {} outliers", c.rows, c.in, c.threshold, c.outliers);
    std::vector<float> x = make_x(c, numbers);
    Tensor x_there = rounded(x);
    std::vector<Weight> weights, weights_there;
    std::vector<Tensor> biases, biases_there, y;
    for (int64_t out : c.outs) {
      weights.emplace_back(make_weight(out, c, numbers));
      weights_there.push_back(to_gpu(gpu_, weights.back()));
      std::vector<float> bias;
      for (int64_t i = 0; i < out; ++i) bias.push_back(numbers.normal());
      biases_there.push_back(there(bias));
      biases.push_back(Tensor::allocate(DType::kF32, {out}));
      std::copy(bias.begin(), bias.end(), biases.back().mutable_data<float>());
    }
    std::vector<std::vector<float>> exact;
    for (size_t i = 0; i < weights.size(); ++i) exact.push_back(expected(x, c.rows, weights[i], biases[i]));
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      y.clear();
      std::vector<MatmulOutput> outputs;
      for (size_t i = 0; i < weights.size(); ++i) {
        const int64_t count = c.rows * c.outs[i];
        y.push_back(dtype == DType::kBF16 ? room(dtype, count)
                                          : there(std::vector<float>(static_cast<size_t>(count))));
      }
      for (size_t i = 0; i < weights.size(); ++i) {
        outputs.push_back({.weight = &weights_there[i], .bias = &biases_there[i]});
        if (dtype == DType::kBF16)
          outputs[i].y = of(y[i]);
        else
          outputs[i].add_to = y[i].mutable_data<float>();
      }
      matmul(gpu_, of(x_there), c.rows, outputs, MatmulMode::kPrefill);
      for (size_t i = 0; i < weights.size(); ++i) {
        std::vector<float> right = exact[i];
        if (dtype == DType::kBF16)
          for (float& value : right) value = bf16_to_float(float_to_bf16(value));
        const double most = difference(back(y[i]), right);
        const bool is_exact = c.threshold == 0 || (c.threshold == 6 && c.outliers == 0);
        if (is_exact)
          EXPECT_EQ(most, 0) << what << ", output " << i << " " << dtype_name(dtype);
        else
          EXPECT_LT(most, dtype == DType::kBF16 ? 0x1p-7 : 1e-5) << what << ", output " << i;
      }
    }
  }
}

// Few rows, and other shapes: the rounded values in BF16, which the other kernels multiply.
TEST_F(GpuInt8Matmul, FewRowsAreNearTheReference) {
  Numbers numbers(4);
  const Case cases[] = {{5, 200, {40}},
                        {31, 1536, {256}, 6, 6},
                        {9, 99, {7}, 6, 3},
                        {60, 576, {100}, 6, 6},
                        {20, 128, {64}, 0, 0, {.scale = 0.02f, .zero_point = 9}},
                        {33, 8960, {200}},
                        {200, 1536, {264}, 6, 6},
                        {256, 600, {72}, 0, 0, {.scale = 0.03f}},
                        {300, 128, {128}, 0, 0, {.scale = 0.02f, .zero_point = -17}},
                        {512, 18000, {64}},
                        {100, 1536, {128}, 0.5f, 0}};
  for (const Case& c : cases) {
    std::vector<float> x = make_x(c, numbers);
    Tensor x_there = rounded(x);
    const Weight weight = make_weight(c.outs[0], c, numbers), weight_there = to_gpu(gpu_, weight);
    Tensor y = room(DType::kF32, c.rows * c.outs[0]);
    matmul(gpu_, of(x_there), c.rows, weight_there, nullptr, of(y), MatmulMode::kPrefill);
    EXPECT_LT(difference(back(y), expected(x, c.rows, weight, Tensor())), 0.01) << c.rows << " x " << c.in;
  }
}

}  // namespace
}  // namespace lowbit
