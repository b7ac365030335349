#include "ops/elementwise.h"

#include "format/bits.h"
#include "ops/ops_test_support.h"
#include "ops/softmax.h"
#include "support.h"
#include "tensor/half.h"

namespace lowbit {
namespace {

using testing::Bench;
using testing::Numbers;

Tensor tensor_of(const std::vector<float>& values, Shape shape) {
  Tensor tensor = Tensor::allocate(DType::kF32, std::move(shape));
  std::copy(values.begin(), values.end(), tensor.mutable_data<float>());
  return tensor;
}

TEST(RmsNorm, EveryKernelMatchesDouble) {
  for (const std::string& kernel : testing::available(elementwise_kernels(), "rms_norm")) {
    for (int64_t width : {1, 7, 8, 33, 576, 1000}) {
      Numbers numbers(static_cast<uint32_t>(width));
      const int64_t rows = 5;
      std::vector<float> x = numbers.normals(rows * width);
      std::fill(x.begin(), x.begin() + width, 0.0f);
      const Tensor weight = tensor_of(numbers.normals(width), {width});
      std::vector<double> expected(x.size());
      for (int64_t row = 0; row < rows; ++row) {
        double squares = 0;
        for (int64_t i = 0; i < width; ++i)
          squares += std::pow(double{x[static_cast<size_t>(row * width + i)]}, 2);
        for (int64_t i = 0; i < width; ++i) {
          expected[static_cast<size_t>(row * width + i)] =
              double{x[static_cast<size_t>(row * width + i)]} /
              std::sqrt(squares / static_cast<double>(width) + 1e-5) * double{float_at(weight, i)};
        }
      }
      Bench bench(kernel, 2);
      rms_norm(bench.context(), x.data(), rows, weight, 1e-5f, x.data());
      EXPECT_LT(testing::relative_error(x, expected), 1e-6) << kernel << " " << width;
    }
  }
}

TEST(Rope, EveryKernelRotatesPairsAndLeavesTheRestAlone) {
  for (const std::string& kernel : testing::available(elementwise_kernels(), "rope")) {
    for (const auto& [head_dim, half] :
         std::vector<std::pair<int64_t, int64_t>>{{8, 4}, {64, 32}, {20, 6}, {128, 64}, {6, 3}}) {
      Numbers numbers(3);
      const int64_t tokens = 4, heads = 3, length = 50;
      RopeTable table{Tensor::allocate(DType::kF32, {length, half}),
                      Tensor::allocate(DType::kF32, {length, half})};
      for (int64_t i = 0; i < length * half; ++i) {
        const double angle = static_cast<double>(i / half) *
                             std::pow(1e4, -static_cast<double>(i % half) / static_cast<double>(half));
        table.cosines.mutable_data<float>()[i] = static_cast<float>(std::cos(angle));
        table.sines.mutable_data<float>()[i] = static_cast<float>(std::sin(angle));
      }
      const std::vector<int32_t> positions{49, 0, 7, 7};
      std::vector<float> x = numbers.normals(tokens * heads * head_dim);
      std::vector<double> expected(x.begin(), x.end());
      for (int64_t row = 0; row < tokens * heads; ++row) {
        for (int64_t i = 0; i < half; ++i) {
          double& a = expected[static_cast<size_t>(row * head_dim + i)];
          double& b = expected[static_cast<size_t>(row * head_dim + half + i)];
          const int64_t at = positions[static_cast<size_t>(row / heads)] * half + i;
          const double c = double{float_at(table.cosines, at)}, s = double{float_at(table.sines, at)},
                       first = a;
          a = first * c - b * s;
          b = b * c + first * s;
        }
      }
      Bench bench(kernel);
      rope(bench.context(), x.data(), tokens, heads, head_dim, positions.data(), table);
      EXPECT_LT(testing::relative_error(x, expected), 1e-6) << kernel << " " << head_dim;
      const int32_t outside = 50;
      testing::error_of(ErrorCode::kInvalidArgument, [&, head_dim = head_dim] {
        rope(bench.context(), x.data(), 1, heads, head_dim, &outside, table);
      });
    }
  }
}

TEST(Swiglu, EveryKernelMatchesDouble) {
  for (const std::string& kernel : testing::available(elementwise_kernels(), "activate")) {
    for (int64_t count : {1, 7, 8, 16, 31, 40000}) {
      Numbers numbers(3);
      std::vector<float> gate = numbers.normals(count + 1, 20), up = numbers.normals(count + 1),
                         out(gate.size());
      gate[1] = 1000, up[1] = 1;
      if (count > 5) gate[2] = -1000, gate[3] = 0, gate[4] = NAN, gate[5] = INFINITY;
      Bench bench(kernel, 2);
      swiglu(bench.context(), gate.data() + 1, up.data() + 1, count, out.data() + 1);
      for (int64_t i = 1; i <= count; ++i) {
        const size_t at = static_cast<size_t>(i);
        const double x = double{gate[at]}, expected = x / (1 + std::exp(-x)) * double{up[at]};
        if (std::isnan(x)) {
          EXPECT_TRUE(std::isnan(out[at]));
        } else if (std::isinf(x)) {
          EXPECT_TRUE(std::isinf(out[at])) << kernel;
        } else {
          // Below -87 the result may lose bits as a subnormal number, or be zero.
          ASSERT_NEAR(out[at], expected, std::fabs(expected) * 1e-6 + 1e-35) << kernel << " " << x;
        }
      }
    }
  }
}

// For gate << 0, silu(gate) = gate / (1 + e^-gate) has the relative error of the exponential.
TEST(Swiglu, TheExponentialIsAccurateAndNotSuspiciouslySo) {
  for (const std::string& kernel : testing::available(elementwise_kernels(), "activate")) {
    const int64_t count = 200000;
    std::vector<float> gate, up(count, 1.0f), out(count);
    for (int64_t i = 0; i < count; ++i)
      gate.push_back(-20 - 60 * static_cast<float>(i) / static_cast<float>(count));
    Bench bench(kernel);
    swiglu(bench.context(), gate.data(), up.data(), count, out.data());
    double worst = 0;
    for (int64_t i = 0; i < count; ++i) {
      const double x = double{gate[static_cast<size_t>(i)]}, expected = x / (1 + std::exp(-x));
      worst = std::max(worst, std::fabs(double{out[static_cast<size_t>(i)]} / expected - 1));
    }
    EXPECT_LT(worst, 5e-7) << kernel;
    EXPECT_GT(worst, 1e-8) << kernel;
  }
}

double activated(Activation f, double x) {
  switch (f) {
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kGelu:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Activation::kGeluTanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kTanh:
      return std::tanh(x);
  }
  return NAN;
}

TEST(Activate, EveryKernelAndFunctionMatchesDouble) {
  for (const std::string& kernel : testing::available(elementwise_kernels(), "activate")) {
    for (Activation f : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh, Activation::kRelu,
                         Activation::kTanh}) {
      for (int64_t count : {1, 7, 8, 16, 31, 40000}) {
        Numbers numbers(static_cast<uint32_t>(count));
        const std::vector<float> x = numbers.normals(count, 3), up = numbers.normals(count);
        std::vector<float> plain(x.size()), gated(x.size());
        Bench bench(kernel, 2);
        activate(bench.context(), f, x.data(), count, plain.data());
        activate_gated(bench.context(), f, x.data(), up.data(), count, gated.data());
        for (size_t i = 0; i < x.size(); ++i) {
          const double expected = activated(f, double{x[i]}),
                       bound = 3e-7 * std::max(1.0, std::fabs(double{x[i]}));
          ASSERT_NEAR(plain[i], expected, bound) << kernel << " " << static_cast<int>(f) << " of " << x[i];
          ASSERT_NEAR(gated[i], expected * double{up[i]}, bound * std::max(1.0, std::fabs(double{up[i]})))
              << kernel << " " << static_cast<int>(f) << " of " << x[i];
        }
      }
      std::vector<float> special{INFINITY, 1e30f, NAN, 0, -1e30f};
      Bench bench(kernel);
      activate(bench.context(), f, special.data(), 5, special.data());
      const bool is_tanh = f == Activation::kTanh;
      EXPECT_EQ(special[0], is_tanh ? 1 : INFINITY) << kernel;
      EXPECT_EQ(special[1], is_tanh ? 1 : 1e30f) << kernel;
      EXPECT_TRUE(std::isnan(special[2])) << kernel;
      EXPECT_EQ(special[3], 0) << kernel;
      EXPECT_EQ(special[4], is_tanh ? -1 : 0) << kernel;
    }
  }
}

TEST(LayerNorm, EveryKernelMatchesDouble) {
  for (const std::string& kernel : testing::available(elementwise_kernels(), "layer_norm")) {
    for (int64_t width : {1, 7, 8, 33, 576, 1000}) {
      Numbers numbers(static_cast<uint32_t>(width));
      const int64_t rows = 5;
      std::vector<float> x = numbers.normals(rows * width);
      std::fill(x.begin(), x.begin() + width, 3.0f);  // no variance
      for (int64_t i = width; i < 2 * width; ++i) x[static_cast<size_t>(i)] += 1000;
      const Tensor weight = tensor_of(numbers.normals(width), {width});
      const Tensor bias = tensor_of(numbers.normals(width), {width});
      std::vector<double> expected(x.size());
      for (int64_t row = 0; row < rows; ++row) {
        const float* from = x.data() + row * width;
        double mean = 0, variance = 0;
        for (int64_t i = 0; i < width; ++i) mean += double{from[i]} / static_cast<double>(width);
        for (int64_t i = 0; i < width; ++i)
          variance += std::pow(double{from[i]} - mean, 2) / static_cast<double>(width);
        for (int64_t i = 0; i < width; ++i) {
          expected[static_cast<size_t>(row * width + i)] =
              (double{from[i]} - mean) / std::sqrt(variance + 1e-5) * double{float_at(weight, i)} +
              double{float_at(bias, i)};
        }
      }
      Bench bench(kernel, 2);
      layer_norm(bench.context(), x.data(), rows, weight, bias, 1e-5f, x.data());
      // The mean is rounded to a float before it is subtracted.
      EXPECT_LT(testing::relative_error(x, expected), 5e-5) << kernel << " " << width;
    }
  }
  Bench bench;
  std::vector<float> x(4);
  testing::error_of(ErrorCode::kInvalidArgument, [&] {
    layer_norm(bench.context(), x.data(), 1, Tensor::zeros(DType::kF32, {4}), Tensor::zeros(DType::kF32, {3}),
               0, x.data());
  });
}

TEST(SplitColumns, TakesBlocksAndHeadsApart) {
  Bench bench("", 2);
  const int64_t tokens = 3;
  for (int64_t repeats : {1, 4}) {
    const int64_t widths[] = {6, 2, 3};
    std::vector<float> x(static_cast<size_t>(tokens * repeats * 11));
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
    std::vector<std::vector<float>> out;
    std::vector<ColumnPart> parts;
    for (int64_t width : widths) out.emplace_back(static_cast<size_t>(tokens * repeats * width));
    for (size_t part = 0; part < 3; ++part) parts.push_back({widths[part], out[part].data()});
    split_columns(bench.context(), x.data(), tokens, repeats, parts);
    int64_t before = 0;
    for (size_t part = 0; part < 3; before += widths[part++]) {
      for (int64_t i = 0; i < tokens * repeats * widths[part]; ++i) {
        EXPECT_EQ(out[part][static_cast<size_t>(i)],
                  static_cast<float>(i / widths[part] * 11 + before + i % widths[part]));
      }
    }
  }
}

TEST(Positions, RowsOfTheTableAreAdded) {
  Bench bench("", 2);
  Numbers numbers(5);
  const Tensor dense = tensor_of(numbers.normals(7 * 5), {7, 5});
  const std::vector<int32_t> positions{4, 0, 4};
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const Tensor table = converted(dense, dtype);
    std::vector<float> hidden(15, 1.0f);
    add_positions(bench.context(), table, 2, positions.data(), 3, hidden.data());
    for (int64_t i = 0; i < 15; ++i) {
      const int64_t row = positions[static_cast<size_t>(i / 5)] + 2;
      EXPECT_EQ(hidden[static_cast<size_t>(i)], 1.0f + float_at(table, row * 5 + i % 5));
    }
  }
  const int32_t beyond = 5;
  std::vector<float> hidden(5);
  EXPECT_NE(testing::error_of(ErrorCode::kInvalidArgument,
                              [&] { add_positions(bench.context(), dense, 2, &beyond, 1, hidden.data()); })
                .find("position 5"),
            std::string::npos);
}

TEST(Embedding, TakesRowsOfDenseAndQuantizedTables) {
  Numbers numbers(3);
  Bench bench("", 2);
  const int64_t vocab = 11, width = 40;
  const std::vector<int32_t> ids{10, 0, 3, 3};
  const Tensor dense = tensor_of(numbers.normals(vocab * width), {vocab, width});
  std::vector<float> out(ids.size() * width);
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const Tensor table = converted(dense, dtype);
    embedding(bench.context(), table, ids, out.data());
    for (size_t i = 0; i < out.size(); ++i)
      ASSERT_EQ(out[i], float_at(table, ids[i / width] * width + static_cast<int64_t>(i % width)));
  }
  for (int bits : {2, 3, 4, 8}) {
    QuantizedTensor table;
    table.bits = bits, table.group_size = 16, table.out_features = vocab, table.in_features = width;
    table.codes = Tensor::allocate(DType::kU32, {packed_words(width, bits), vocab});
    for (int64_t i = 0; i < table.codes.element_count(); ++i) {
      table.codes.mutable_data<uint32_t>()[i] = static_cast<uint32_t>(numbers.between(0, 0xffffffff));
    }
    table.scales = converted(tensor_of(numbers.normals(3 * vocab), {3, vocab}), DType::kF16);
    table.zero_points = Tensor::allocate(DType::kU8, {3, vocab});
    for (int64_t i = 0; i < 3 * vocab; ++i)
      table.zero_points.mutable_data<uint8_t>()[i] = static_cast<uint8_t>(numbers.between(0, 3));
    if (bits == 4) {
      table.column_order = Tensor::allocate(DType::kI32, {width});
      for (int32_t i = 0; i < width; ++i) table.column_order.mutable_data<int32_t>()[i] = (i * 7) % 40;
    }
    const Tensor expected = dequantized(table);
    embedding(bench.context(), table, ids, out.data());
    for (size_t i = 0; i < out.size(); ++i) {
      ASSERT_EQ(out[i], float_at(expected, ids[i / width] * width + static_cast<int64_t>(i % width))) << bits;
    }
  }
  const std::vector<int32_t> outside{11};
  EXPECT_NE(testing::error_of(ErrorCode::kInvalidArgument,
                              [&] { embedding(bench.context(), dense, outside, out.data()); })
                .find("11"),
            std::string::npos);
  const QuantizedTensor rows{.format = Format::kInt8, .bits = 8, .out_features = vocab, .in_features = width};
  EXPECT_NE(testing::error_of(ErrorCode::kUnsupported,
                              [&] { embedding(bench.context(), Weight(rows), ids, out.data()); })
                .find("int8"),
            std::string::npos);
}

double log_sum_exp_of(const float* x, int64_t count) {
  double most = -INFINITY, sum = 0;
  for (int64_t i = 0; i < count; ++i) most = std::max(most, double{x[i]});
  for (int64_t i = 0; i < count; ++i) sum += std::exp(double{x[i]} - most);
  return most + std::log(sum);
}

TEST(Softmax, LogSumExpMatchesDouble) {
  for (const std::string& kernel : testing::available(softmax_kernels(), "log_sum_exp")) {
    Bench bench(kernel, 2);
    for (int64_t vocab : {1, 5, 16, 1000, 4096, 49152, 50001}) {
      Numbers numbers(static_cast<uint32_t>(vocab));
      std::vector<float> x = numbers.normals(3 * vocab, 5);
      for (int64_t i = 0; i < vocab; ++i)
        x[static_cast<size_t>(vocab + i)] += static_cast<float>(i) * 0.01f;  // rising
      if (vocab > 4) x[2] = -INFINITY;
      std::vector<double> out(3);
      log_sum_exp(bench.context(), x.data(), 3, vocab, out.data());
      for (int64_t row = 0; row < 3; ++row) {
        EXPECT_NEAR(out[static_cast<size_t>(row)], log_sum_exp_of(x.data() + row * vocab, vocab), 1e-6)
            << kernel << " " << vocab;
      }
    }
    std::vector<float> special(40, -INFINITY);
    std::vector<double> out(1);
    log_sum_exp(bench.context(), special.data(), 1, 40, out.data());
    EXPECT_EQ(out[0], -INFINITY) << kernel;
    special[30] = INFINITY;
    log_sum_exp(bench.context(), special.data(), 1, 40, out.data());
    EXPECT_EQ(out[0], INFINITY) << kernel;
    special[3] = NAN;
    log_sum_exp(bench.context(), special.data(), 1, 40, out.data());
    EXPECT_TRUE(std::isnan(out[0])) << kernel;
  }
}

TEST(Softmax, ArgmaxTakesTheFirstOfEqualsAndNeverNan) {
  for (const std::string& kernel : testing::available(softmax_kernels(), "argmax")) {
    Bench bench(kernel);
    Numbers numbers(1);
    for (int64_t vocab : {1, 2, 7, 8, 9, 31, 33, 64, 1000}) {
      for (int trial = 0; trial < 50; ++trial) {
        std::vector<float> x;
        for (int64_t i = 0; i < vocab; ++i) x.push_back(static_cast<float>(numbers.between(-3, 3)));
        if (trial % 3 == 1) x[static_cast<size_t>(numbers.between(0, vocab - 1))] = NAN;
        if (trial % 3 == 2) std::fill(x.begin(), x.end(), trial % 2 ? NAN : -INFINITY);
        int32_t expected = -1, got;
        for (int64_t i = 0; i < vocab; ++i) {
          const float value = x[static_cast<size_t>(i)];
          if (!std::isnan(value) && (expected < 0 || value > x[static_cast<size_t>(expected)]))
            expected = static_cast<int32_t>(i);
        }
        argmax(bench.context(), x.data(), 1, vocab, &got);
        ASSERT_EQ(got, expected) << kernel << " " << vocab << " trial " << trial;
      }
    }
  }
}

TEST(Softmax, DivergenceMatchesDouble) {
  for (const std::string& kernel : testing::available(softmax_kernels(), "divergence")) {
    Bench bench(kernel, 2);
    for (int64_t vocab : {1, 5, 16, 1000, 49153}) {
      for (float noise : {0.0f, 1e-4f, 0.3f, 5.0f}) {
        Numbers numbers(static_cast<uint32_t>(vocab));
        std::vector<float> reference = numbers.normals(2 * vocab, 4), x = reference;
        for (float& value : x) value += numbers.normal(noise) + 3;
        if (vocab > 4) reference[1] = -INFINITY;
        std::vector<double> out(2);
        divergence(bench.context(), reference.data(), x.data(), 2, vocab, out.data());
        for (int64_t row = 0; row < 2; ++row) {
          const float* r = reference.data() + row * vocab;
          const float* s = x.data() + row * vocab;
          const double a = log_sum_exp_of(r, vocab), b = log_sum_exp_of(s, vocab);
          double expected = 0;
          for (int64_t i = 0; i < vocab; ++i) {
            const double p = std::exp(double{r[i]} - a);
            if (p > 0) expected += p * (double{r[i]} - a - (double{s[i]} - b));
          }
          EXPECT_NEAR(out[static_cast<size_t>(row)], expected, 1e-12 + 5e-6 * expected)
              << kernel << " " << vocab << " " << noise;
        }
      }
    }
    std::vector<float> reference(20, 0.0f), x(20, 0.0f);
    std::vector<double> out(1);
    x[3] = -INFINITY;
    divergence(bench.context(), reference.data(), x.data(), 1, 20, out.data());
    EXPECT_EQ(out[0], INFINITY) << kernel;
    reference[4] = NAN;
    divergence(bench.context(), reference.data(), x.data(), 1, 20, out.data());
    EXPECT_TRUE(std::isnan(out[0])) << kernel;
  }
}

}  // namespace
}  // namespace lowbit
