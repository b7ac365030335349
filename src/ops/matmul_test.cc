#include "ops/matmul.h"

#include "format/bits.h"
#include "format/codebook.h"
#include "format/int8.h"
#include "ops/cpu/prepare_kernels.h"
#include "ops/elementwise.h"
#include "ops/kernel_table.h"
#include "ops/matmul_prepare.h"
#include "ops/ops_test_support.h"
#include "support.h"
#include "tensor/half.h"

#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <limits>
#include <optional>
#include <random>

namespace lowbit {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(),
                kInfinity = std::numeric_limits<float>::infinity();

// What a test multiplies by.
struct Case {
  DType dtype = DType::kBF16;  // of a dense weight
  int bits = 0;                // > 0: affine
  bool sym = true;
  int64_t group_size = 128;
  int64_t in = 96, out = 33;
  bool is_reordered = false;
  Format format = Format::kAffine;
  std::optional<float> threshold = {};  // int8: inputs are rounded too, but for outliers
  std::optional<InputGrid> grid = {};   // the same on a grid
  bool is_wide = false;                 // log2: values go below a 256th of the largest

  bool rounds_inputs() const { return threshold || grid; }
  std::string_view kind() const {
    if (bits == 0) return "matmul_dense";
    if (has_codebook(format)) return "matmul_codebook";
    return rounds_inputs() ? "matmul_int8" : "matmul_affine";
  }
  std::string text() const {
    if (format == Format::kInt8) {
      return fmt::format("int8 [{}, {}], inputs {}", out, in,
                         threshold ? fmt::format("int8 below {}", *threshold)
                         : grid    ? fmt::format("int8, {} * (code - {})", grid->scale, grid->zero_point)
                                   : "float");
    }
    if (format != Format::kAffine) {
      return fmt::format("{} {} bits group {} [{}, {}]{}", format_name(format), bits, group_size, out, in,
                         is_wide ? " wide" : "");
    }
    return bits ? fmt::format("affine {} bits sym={} group {} [{}, {}]{}", bits, sym, group_size, out, in,
                              is_reordered ? " reordered" : "")
                : fmt::format("{} [{}, {}]", dtype_name(dtype), out, in);
  }
};

// The same elements aligned to no more than an element, as tensors of a mapped file are (io copies others).
Tensor misaligned(const Tensor& tensor) {
  auto memory = std::make_shared<std::vector<char>>(tensor.byte_count() + 4 + 64);
  char* data = memory->data();
  data += (68 - reinterpret_cast<uintptr_t>(data) % 64) % 64;
  std::memcpy(data, tensor.bytes(), tensor.byte_count());
  return Tensor::borrow(memory, data, tensor.dtype(), tensor.shape());
}

Tensor random_dense(DType dtype, Shape shape, std::mt19937& random, float scale) {
  std::normal_distribution<float> normal(0, scale);
  Tensor tensor = Tensor::allocate(DType::kF32, shape);
  for (int64_t i = 0; i < tensor.element_count(); ++i) tensor.mutable_data<float>()[i] = normal(random);
  return converted(tensor, dtype);
}

Weight random_weight(const Case& c, std::mt19937& random) {
  if (c.bits == 0) return misaligned(random_dense(c.dtype, {c.out, c.in}, random, 0.05f));
  QuantizedTensor weight;
  weight.format = c.format;
  weight.bits = c.bits;
  weight.group_size = c.group_size > 0 ? c.group_size : c.in;
  weight.out_features = c.out;
  weight.in_features = c.in;
  if (c.format == Format::kLog2)
    weight.codebook =
        log_codebook({c.bits, std::exp2((c.is_wide ? 16.0f : 8.0f) / static_cast<float>(1 << (c.bits - 1)))});
  Tensor codes = Tensor::zeros(DType::kI32, {packed_words(c.in, c.bits), c.out});
  std::vector<uint8_t> row(static_cast<size_t>(c.in));
  for (int64_t n = 0; n < c.out; ++n) {
    for (uint8_t& code : row) {
      code = static_cast<uint8_t>(random() & ((1u << c.bits) - 1u));
      if (has_codebook(c.format) && !std::isfinite(codebook_of(weight)[code])) code = 0;
    }
    pack_bits(row.data(), 1, c.in, c.bits, reinterpret_cast<uint32_t*>(codes.mutable_data<int32_t>()) + n,
              c.out);
  }
  weight.codes = misaligned(codes);
  weight.scales = misaligned(random_dense(scale_dtype(c.format), {weight.groups(), c.out}, random, 0.02f));
  if (c.threshold) {
    weight.activations = ActivationFormat::kInt8Dynamic;
    weight.outlier_threshold = *c.threshold;
  }
  if (c.grid) set_static_inputs(weight, *c.grid);
  if (!c.sym) {
    Tensor zeros = Tensor::zeros(DType::kU8, {weight.groups(), c.out});
    for (int64_t i = 0; i < zeros.element_count(); ++i) {
      zeros.mutable_data<uint8_t>()[i] = static_cast<uint8_t>(random() & ((1u << c.bits) - 1u));
    }
    weight.zero_points = zeros;
  }
  if (c.is_reordered) {
    Tensor order = Tensor::allocate(DType::kI32, {c.in});
    int32_t* columns = order.mutable_data<int32_t>();
    for (int64_t i = 0; i < c.in; ++i) columns[i] = static_cast<int32_t>(i);
    std::shuffle(columns, columns + c.in, random);
    weight.column_order = misaligned(order);
  }
  return weight;
}

std::vector<float> random_rows(int64_t rows, int64_t in, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(rows * in));
  for (float& value : x) value = normal(random);
  return x;
}

// What the product makes of its inputs before it multiplies.
void round_inputs(const Weight& weight, std::vector<float>& x) {
  const auto* quantized = std::get_if<QuantizedTensor>(&weight);
  if (!quantized || quantized->activations == ActivationFormat::kNone) return;
  if (const InputGrid& grid = quantized->input_grid; grid.scale > 0) {
    for (float& value : x) value = decode_input(encode_input(value, grid), grid);
    return;
  }
  const float limit = quantized->outlier_threshold > 0 ? quantized->outlier_threshold : kInfinity;
  const auto in = static_cast<size_t>(quantized->in_features);
  for (size_t row = 0; row < x.size(); row += in) {
    float largest = 0;
    for (size_t i = 0; i < in; ++i) {
      if (const float size = std::abs(x[row + i]); size < limit) largest = std::max(largest, size);
    }
    const float factor = largest < kLeastMagnitude ? 0 : int8_factor(largest);
    for (size_t i = 0; i < in; ++i) {
      float& value = x[row + i];
      if (std::abs(value) < limit) value = std::nearbyint(value * factor) * int8_scale(largest);
    }
  }
}

// The product in double, and the sum of magnitudes that errors are measured against.
struct Exact {
  std::vector<double> y, magnitude;
};
Exact exact_product(std::vector<float> x, int64_t rows, const Weight& weight, const Tensor* bias) {
  round_inputs(weight, x);
  const Tensor dense = std::holds_alternative<QuantizedTensor>(weight)
                           ? dequantized(std::get<QuantizedTensor>(weight))
                           : std::get<Tensor>(weight);
  const int64_t out = dense.size(0), in = dense.size(1);
  std::vector<float> w(static_cast<size_t>(out * in));
  for (size_t i = 0; i < w.size(); ++i) {
    if (dense.dtype() == DType::kF32) {
      std::memcpy(&w[i], static_cast<const char*>(dense.bytes()) + 4 * i, 4);
    } else {
      uint16_t half;
      std::memcpy(&half, static_cast<const char*>(dense.bytes()) + 2 * i, 2);
      w[i] = dense.dtype() == DType::kBF16 ? bf16_to_float(half) : f16_to_float(half);
    }
  }
  Exact exact;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t n = 0; n < out; ++n) {
      double sum = bias ? float_at(*bias, n) : 0.0, magnitude = std::abs(sum) + 1e-30;
      for (int64_t k = 0; k < in; ++k) {
        const double product =
            double{x[static_cast<size_t>(r * in + k)]} * double{w[static_cast<size_t>(n * in + k)]};
        sum += product;
        magnitude += std::abs(product);
      }
      exact.y.push_back(sum);
      exact.magnitude.push_back(magnitude);
    }
  }
  return exact;
}

class Matmul : public ::testing::Test {
 protected:
  // Forces `kernel` on `op`; empty: the op's own choice.
  std::vector<float> product(const std::vector<float>& x, int64_t rows, const Weight& weight,
                             const Tensor* bias, MatmulMode mode, const std::string& op = "",
                             const std::string& kernel = "", int thread_count = 2) {
    KernelChoice choice;
    if (!kernel.empty()) choice.by_op.emplace_back(op, kernel);
    const ThreadPool& threads = thread_count == 1 ? one_ : thread_count == 2 ? two_ : three_;
    const OpContext context{&threads, &workspace_, &choice};
    std::vector<float> y(static_cast<size_t>(rows * out_features(weight)), -77.0f);
    matmul(context, x.data(), rows, weight, bias, y.data(), mode);
    return y;
  }

  ThreadPool one_{1}, two_{2}, three_{3};
  Workspace workspace_;
};

MatmulMode mode_of(const std::string& op) {
  return op.ends_with("decode") ? MatmulMode::kDecode : MatmulMode::kPrefill;
}
bool is_for(const KernelListing& kernel, const Case& c) { return kernel.op.starts_with(c.kind()); }

// Relative to the sum of magnitudes. `least`: a kernel that claims to round must show it over a whole family
// of cases.
struct Bounds {
  double most, least;
};
Bounds bounds_of(const std::string& op, const std::string& kernel) {
  if (op.starts_with("matmul_int8")) return {1e-6, 1e-10};  // against x as it was rounded
  if (kernel == "ref") return {1e-7, 1e-9};
  if (kernel == "amx") return {8e-3, 1e-4};
  if (op == "matmul_affine_decode") return {1.5e-4, 1e-6};  // x in steps of its block's largest / 32639
  // Besides, values in steps of the largest / 4095, those of log2 rounded twice.
  if (kernel.ends_with("int16")) return {1.5e-3, 1e-5};
  return {2e-6, 1e-8};
}

// Kernels but ref want whole words of codes in a group, and AMX only rounds what is BF16 already.
bool should_fit(const Case& c, const std::string& kernel) {
  if (kernel == "ref") return true;
  if (c.format == Format::kInt8) return true;
  if (c.bits == 0) return kernel != "amx" || c.dtype == DType::kBF16;
  if (kernel == "amx" && has_codebook(c.format) && c.bits != 4) return false;
  if (kernel.ends_with("int16") && (c.is_wide || c.bits == 3 || (c.bits == 8 && c.format != Format::kLog2)))
    return false;
  const int64_t unit = 32 % c.bits == 0 ? 32 / c.bits : 32;
  return c.group_size <= 0 || c.group_size >= c.in || c.group_size % unit == 0;
}

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (int64_t in : {8, 32, 96, 576, 1003}) {
    for (int64_t out : {1, 7, 16, 33, 100}) {
      for (DType dtype : {DType::kBF16, DType::kF16, DType::kF32})
        cases.push_back({dtype, 0, true, 0, in, out});
      for (int bits : {2, 3, 4, 8}) {
        for (bool sym : {true, false}) {
          for (int64_t group_size : {32, 64, 128, -1})
            cases.push_back({DType::kF32, bits, sym, group_size, in, out});
        }
      }
      for (const Format format : {Format::kNf4, Format::kFp4}) {
        for (int64_t group_size : {8, 12, 32, 64, 4096})
          cases.push_back({DType::kF32, 4, true, group_size, in, out, false, format});
      }
      // Without outliers, with few, and with more than a kernel takes at a time.
      for (const std::optional<float> threshold : {std::optional<float>(), {0.0f}, {2.5f}, {0.5f}})
        cases.push_back({DType::kF32, 8, true, -1, in, out, false, Format::kInt8, threshold});
      // Clipped on both sides, on one, and hardly.
      for (const InputGrid grid : {InputGrid{0.01f, 0}, {0.02f, 127}, {0.02f, -128}, {0.03f, -5}})
        cases.push_back({DType::kF32, 8, true, -1, in, out, false, Format::kInt8, {}, grid});
    }
  }
  // More word rows than a panel of many rows of x holds.
  cases.push_back({DType::kF32, 8, true, -1, 2500, 70, false, Format::kInt8, 3.0f});
  cases.push_back({DType::kF32, 8, true, -1, 2500, 70, false, Format::kInt8, {}, InputGrid{0.02f, 9}});
  for (int bits : {2, 3, 4, 8}) {
    for (int64_t group_size : {1, 5, 40, 200, 288}) {
      cases.push_back({DType::kF32, bits, false, group_size, 1003, 70, true});
    }
  }
  for (int64_t in : {8, 96, 576, 1003}) {
    for (int64_t out : {1, 7, 33, 100}) {
      for (const Format format : {Format::kFp8, Format::kFp8E5m2}) {
        for (int64_t group_size : {4, 6, 64, -1})
          cases.push_back({DType::kF32, 8, true, group_size, in, out, false, format});
      }
      for (int bits = 3; bits <= 8; ++bits) {
        for (int64_t group_size : {24, 64, 160, -1}) {
          cases.push_back({DType::kF32, bits, true, group_size, in, out, false, Format::kLog2});
          cases.push_back(cases.back());
          cases.back().is_wide = true;
        }
      }
    }
  }
  return cases;
}

TEST_F(Matmul, EveryKernelAgreesWithTheExactProduct) {
  const std::vector<KernelListing> kernels = matmul_kernels();
  std::vector<double> worst(kernels.size());
  int index = 0;
  for (const Case& c : all_cases()) {
    std::mt19937 random(static_cast<unsigned>(index));
    constexpr int64_t kRows[] = {1, 2, 3, 5, 17, 70};
    const int64_t rows = kRows[index % 6];
    const Weight weight = random_weight(c, random);
    const std::vector<float> x = random_rows(rows, c.in, random);
    const Tensor bias = random_dense(DType::kF32, {c.out}, random, 0.1f);
    const Tensor* wanted_bias = index % 4 == 0 ? nullptr : &bias;
    ++index;
    const Exact exact = exact_product(x, rows, weight, wanted_bias);
    for (size_t k = 0; k < kernels.size(); ++k) {
      const KernelListing& kernel = kernels[k];
      if (!kernel.available || !is_for(kernel, c)) continue;
      SCOPED_TRACE(kernel.op + " " + kernel.kernel + ", " + c.text() + ", rows " + std::to_string(rows));
      if (!should_fit(c, kernel.kernel)) {
        testing::error_of(ErrorCode::kInvalidArgument, [&] {
          product(x, rows, weight, wanted_bias, mode_of(kernel.op), kernel.op, kernel.kernel);
        });
        continue;
      }
      const std::vector<float> y =
          product(x, rows, weight, wanted_bias, mode_of(kernel.op), kernel.op, kernel.kernel);
      double error = 0;
      for (size_t i = 0; i < y.size(); ++i) {
        ASSERT_TRUE(std::isfinite(y[i])) << i;
        error = std::max(error, std::abs(y[i] - exact.y[i]) / exact.magnitude[i]);
      }
      ASSERT_LE(error, bounds_of(kernel.op, kernel.kernel).most);
      worst[k] = std::max(worst[k], error);
    }
  }
  for (size_t k = 0; k < kernels.size(); ++k) {
    if (!kernels[k].available) continue;
    EXPECT_GE(worst[k], bounds_of(kernels[k].op, kernels[k].kernel).least)
        << kernels[k].op << " " << kernels[k].kernel;
  }
}

// Sums of codes are exact, and what follows has one order: so all kernels agree, in both modes.
TEST_F(Matmul, Int8KernelsHaveTheBitsOfTheReference) {
  int compared = 0;
  for (const Case& c : all_cases()) {
    if (!c.rounds_inputs()) continue;
    std::mt19937 random(static_cast<unsigned>(c.in * c.out));
    const Weight weight = random_weight(c, random);
    const Tensor bias = random_dense(DType::kF32, {c.out}, random, 0.1f);
    for (int64_t rows : {1, 4, 16, 18, 37}) {
      const std::vector<float> x = random_rows(rows, c.in, random);
      const auto expected = product(x, rows, weight, &bias, MatmulMode::kDecode, "matmul_int8_decode", "ref");
      for (const KernelListing& kernel : matmul_kernels()) {
        if (!kernel.available || !is_for(kernel, c)) continue;
        SCOPED_TRACE(kernel.op + " " + kernel.kernel + ", " + c.text() + ", rows " + std::to_string(rows));
        ASSERT_EQ(product(x, rows, weight, &bias, mode_of(kernel.op), kernel.op, kernel.kernel), expected);
        ++compared;
      }
    }
  }
  EXPECT_GT(compared, 175 * 5 * 2);
}

// Cases that meet every loop of every kernel, for the laws below.
const Case kSomeCases[] = {
    {DType::kBF16, 0, true, 0, 200, 203},
    {DType::kF16, 0, true, 0, 200, 203},
    {DType::kF32, 0, true, 0, 200, 203},
    {DType::kF32, 4, false, 64, 608, 203},
    {DType::kF32, 4, true, -1, 600, 203},
    {DType::kF32, 8, false, 128, 600, 203},
    {DType::kF32, 2, false, 32, 600, 203, true},
    {DType::kF32, 3, false, 96, 600, 203},
    {DType::kF32, 4, true, 32, 160, 2500},
    {DType::kF32, 4, true, 64, 608, 203, false, Format::kNf4},
    {DType::kF32, 4, true, 40, 600, 203, false, Format::kFp4},
    {DType::kF32, 8, true, -1, 600, 203, false, Format::kInt8},
    {DType::kF32, 8, true, -1, 600, 203, false, Format::kInt8, 0.0f},
    {DType::kF32, 8, true, -1, 603, 203, false, Format::kInt8, 2.0f},
    {DType::kF32, 8, true, -1, 600, 203, false, Format::kInt8, {}, InputGrid{0.03f, 0}},
    {DType::kF32, 8, true, -1, 603, 203, false, Format::kInt8, {}, InputGrid{0.03f, -7}},
    {DType::kF32, 8, true, 64, 608, 203, false, Format::kFp8},
    {DType::kF32, 8, true, -1, 600, 203, false, Format::kFp8E5m2},
    {DType::kF32, 5, true, 32, 600, 203, false, Format::kLog2},
    {DType::kF32, 6, true, 96, 600, 203, false, Format::kLog2},
    {DType::kF32, 6, true, 96, 600, 203, false, Format::kLog2, {}, {}, true},
    {DType::kF32, 7, true, 64, 600, 203, false, Format::kLog2, {}, {}, true},
    {DType::kF32, 8, true, 128, 600, 203, false, Format::kLog2},
};

template <class Body>
void for_every_kernel(const Body& body) {
  for (const Case& c : kSomeCases) {
    std::mt19937 random(7);
    const Weight weight = random_weight(c, random);
    for (const KernelListing& kernel : matmul_kernels()) {
      if (!kernel.available || !is_for(kernel, c) || !should_fit(c, kernel.kernel)) continue;
      SCOPED_TRACE(kernel.op + " " + kernel.kernel + ", " + c.text());
      body(c, weight, kernel);
    }
  }
}

TEST_F(Matmul, RowsGiveTheSameBitsAloneAndInABatch) {
  for_every_kernel([&](const Case& c, const Weight& weight, const KernelListing& kernel) {
    std::mt19937 random(8);
    for (int64_t rows : {2, 3, 7, 37}) {
      const std::vector<float> x = random_rows(rows, c.in, random);
      const auto batch = product(x, rows, weight, nullptr, mode_of(kernel.op), kernel.op, kernel.kernel);
      for (int64_t r = 0; r < rows; ++r) {
        const std::vector<float> row(x.begin() + r * c.in, x.begin() + (r + 1) * c.in);
        const auto alone = product(row, 1, weight, nullptr, mode_of(kernel.op), kernel.op, kernel.kernel);
        ASSERT_EQ(std::memcmp(alone.data(), batch.data() + r * c.out, static_cast<size_t>(c.out) * 4), 0)
            << r;
      }
    }
  });
}

TEST_F(Matmul, ThreadsDoNotChangeABit) {
  for_every_kernel([&](const Case& c, const Weight& weight, const KernelListing& kernel) {
    std::mt19937 random(9);
    for (int64_t rows : {1, 19}) {
      const std::vector<float> x = random_rows(rows, c.in, random);
      const auto one = product(x, rows, weight, nullptr, mode_of(kernel.op), kernel.op, kernel.kernel, 1);
      for (int threads : {2, 3}) {
        EXPECT_EQ(product(x, rows, weight, nullptr, mode_of(kernel.op), kernel.op, kernel.kernel, threads),
                  one);
      }
    }
  });
}

TEST_F(Matmul, ARowThatIsNotFiniteStaysAlone) {
  for_every_kernel([&](const Case& c, const Weight& weight, const KernelListing& kernel) {
    std::mt19937 random(10);
    const std::vector<float> clean = random_rows(6, c.in, random);
    const auto expected = product(clean, 6, weight, nullptr, mode_of(kernel.op), kernel.op, kernel.kernel);
    for (float poison : {kNaN, kInfinity, -kInfinity}) {
      std::vector<float> x = clean;
      x[static_cast<size_t>(3 * c.in + c.in / 2)] = poison;
      const auto y = product(x, 6, weight, nullptr, mode_of(kernel.op), kernel.op, kernel.kernel);
      for (int64_t i = 0; i < 6 * c.out; ++i) {
        const size_t at = static_cast<size_t>(i);
        if (i / c.out != 3) {
          ASSERT_EQ(y[at], expected[at]);
        } else if (std::isnan(poison) || kernel.op == "matmul_affine_decode" || c.rounds_inputs()) {
          // Integers know no infinity: such a row becomes NaN there (ref keeps infinities where it has
          // floats).
          ASSERT_TRUE(std::isnan(y[at]) ||
                      (kernel.kernel == "ref" && !c.rounds_inputs() && !std::isfinite(y[at])));
        } else {
          ASSERT_FALSE(std::isfinite(y[at]));
        }
      }
    }
  });
}

TEST_F(Matmul, ZeroConstantTinyAndHugeRows) {
  for_every_kernel([&](const Case& c, const Weight& weight, const KernelListing& kernel) {
    std::vector<float> x(static_cast<size_t>(5 * c.in), 0.0f);
    for (int64_t k = 0; k < c.in; ++k) {
      x[static_cast<size_t>(c.in + k)] = 3.0f;
      x[static_cast<size_t>(2 * c.in + k)] = 1e-20f;
      x[static_cast<size_t>(3 * c.in + k)] = 1e-36f;
      x[static_cast<size_t>(4 * c.in + k)] = 1e30f;
    }
    const auto y = product(x, 5, weight, nullptr, mode_of(kernel.op), kernel.op, kernel.kernel);
    const Exact exact = exact_product(x, 5, weight, nullptr);
    for (size_t i = 0; i < y.size(); ++i) {
      // Below 1e-30 a block of x counts as zeros.
      const double slack = bounds_of(kernel.op, kernel.kernel).most * exact.magnitude[i] + 1e-32;
      ASSERT_NEAR(y[i], exact.y[i], slack) << i;
      if (i < static_cast<size_t>(c.out)) {
        ASSERT_EQ(y[i], 0.0f);
      }
    }
  });
}

TEST_F(Matmul, AScaleOfZeroGivesZero) {
  for (const KernelListing& kernel : matmul_kernels()) {
    if (!kernel.available || !kernel.op.starts_with("matmul_affine")) continue;
    std::mt19937 random(11);
    const Case c{DType::kF32, 4, false, 32, 64, 40};
    Weight weight = random_weight(c, random);
    std::get<QuantizedTensor>(weight).scales = Tensor::zeros(DType::kF16, {2, 40});
    const auto y =
        product(random_rows(3, 64, random), 3, weight, nullptr, mode_of(kernel.op), kernel.op, kernel.kernel);
    for (float value : y) EXPECT_EQ(value, 0.0f);
  }
}

TEST_F(Matmul, OutputsThatShareXEqualSeparateCalls) {
  std::mt19937 random(12);
  const int64_t in = 256;
  std::vector<Weight> weights;
  std::vector<Tensor> biases;
  for (const Case& c : {Case{DType::kF32, 4, true, 128, in, 96}, Case{DType::kF32, 4, false, 128, in, 33},
                        Case{DType::kF32, 4, true, 64, in, 7}, Case{DType::kF32, 8, true, 64, in, 40, true},
                        Case{DType::kF32, 8, true, 64, in, 41, true}, Case{DType::kBF16, 0, true, 0, in, 50},
                        Case{DType::kBF16, 0, true, 0, in, 64}, Case{DType::kF16, 0, true, 0, in, 64},
                        Case{DType::kF32, 0, true, 0, in, 1}, Case{DType::kF32, 3, true, 32, in, 12}}) {
    weights.push_back(random_weight(c, random));
    biases.push_back(random_dense(DType::kF32, {c.out}, random, 1.0f));
  }
  const OpContext contexts[] = {{}, {&three_, &workspace_}};  // the first brings its own thread and workspace
  for (const OpContext& context : contexts) {
    for (MatmulMode mode : {MatmulMode::kDecode, MatmulMode::kPrefill}) {
      for (int64_t rows : {1, 5}) {
        const std::vector<float> x = random_rows(rows, in, random);
        std::vector<std::vector<float>> y(weights.size()), sums(weights.size());
        std::vector<MatmulOutput> outputs;
        for (size_t i = 0; i < weights.size(); ++i) {
          y[i].resize(static_cast<size_t>(rows * out_features(weights[i])));
          sums[i].assign(y[i].size(), 2.5f);
          const Tensor* bias = i % 2 ? &biases[i] : nullptr;
          outputs.push_back({&weights[i], bias, y[i].data(), i % 3 ? sums[i].data() : nullptr});
        }
        matmul(context, x.data(), rows, outputs, mode);
        for (size_t i = 0; i < weights.size(); ++i) {
          EXPECT_EQ(y[i], product(x, rows, weights[i], i % 2 ? &biases[i] : nullptr, mode)) << i;
          for (size_t at = 0; at < sums[i].size(); ++at)
            ASSERT_EQ(sums[i][at], i % 3 ? 2.5f + y[i][at] : 2.5f) << i << " " << at;
        }
      }
    }
  }
}

// silu(gate) * up by a kernel that has both at once.
TEST_F(Matmul, GatedTogetherHasTheBitsOfTheProductsApart) {
  const Case cases[] = {
      {.dtype = DType::kBF16, .in = 896, .out = 1100},
      {.dtype = DType::kBF16, .in = 1536, .out = 80},
      {.dtype = DType::kBF16, .in = 40, .out = 7},
      {.bits = 4, .sym = false, .in = 1024, .out = 600},
      {.bits = 8, .in = 640, .out = 33, .is_reordered = true},
      {.bits = 4, .group_size = 64, .in = 896, .out = 528, .format = Format::kNf4},
      {.bits = 8, .group_size = 0, .in = 896, .out = 1100, .format = Format::kInt8, .threshold = 0.0f},
      {.bits = 8, .group_size = 0, .in = 1500, .out = 345, .format = Format::kInt8, .threshold = 2.5f},
      {.bits = 8,
       .group_size = 0,
       .in = 100,
       .out = 16,
       .format = Format::kInt8,
       .grid = InputGrid{.scale = 0.03f, .zero_point = -5}}};
  std::mt19937 random(12);
  bool is_any = false;
  for (const Case& c : cases) {
    const Weight gate = random_weight(c, random);
    Weight up = random_weight(c, random);
    if (c.is_reordered)
      std::get<QuantizedTensor>(up).column_order = std::get<QuantizedTensor>(gate).column_order;
    const Tensor bias = random_dense(DType::kF32, {c.out}, random, 0.1f);
    for (int64_t rows : {1, 16, 31, 70, 130}) {
      const std::vector<float> x = random_rows(rows, c.in, random);
      for (int threads : {1, 3}) {
        testing::Bench bench("", threads);
        const OpContext context = bench.context();
        std::vector<float> together(static_cast<size_t>(rows * c.out), -1), apart(together), other(together);
        if (!matmul_gated_together(context, x.data(), rows, {.weight = &gate, .bias = &bias}, {.weight = &up},
                                   together.data(), MatmulMode::kPrefill))
          continue;
        is_any = true;
        const MatmulOutput outputs[] = {{.weight = &gate, .bias = &bias, .y = apart.data()},
                                        {.weight = &up, .y = other.data()}};
        matmul(context, x.data(), rows, outputs, MatmulMode::kPrefill);
        swiglu(context, apart.data(), other.data(), rows * c.out, apart.data());
        EXPECT_TRUE(testing::same_bits(together, apart)) << c.text() << ", " << rows << " rows, " << threads;
      }
    }
  }
  if (!is_any) GTEST_SKIP() << "this processor has no kernel for it: AMX";
}

TEST_F(Matmul, WrongArgumentsAreNamed) {
  std::mt19937 random(13);
  const std::vector<float> x(64);
  const Weight good = random_weight({DType::kF32, 4, false, 32, 64, 8}, random);
  auto message_of = [&](const Weight& weight, const Tensor* bias = nullptr) {
    return testing::error_of(ErrorCode::kInvalidArgument,
                             [&] { product(x, 1, weight, bias, MatmulMode::kDecode); });
  };
  Weight bad = good;
  std::get<QuantizedTensor>(bad).codes = Tensor::zeros(DType::kI32, {7, 8});
  EXPECT_NE(message_of(bad).find("codes is I32 [7, 8], expected I32 [8, 8]"), std::string::npos);
  bad = good;
  std::get<QuantizedTensor>(bad).scales = Tensor::zeros(DType::kF16, {3, 8});
  EXPECT_NE(message_of(bad).find("scales"), std::string::npos);
  bad = good;
  std::get<QuantizedTensor>(bad).column_order = Tensor::zeros(DType::kI32, {64});
  std::get<QuantizedTensor>(bad).column_order.mutable_data<int32_t>()[5] = 64;
  EXPECT_NE(message_of(bad).find("column_order[5] is 64"), std::string::npos);
  const Tensor bias = Tensor::zeros(DType::kF32, {9});
  EXPECT_NE(message_of(good, &bias).find("bias is F32 [9], expected F32 [8]"), std::string::npos);
  Weight rounding = random_weight({DType::kF32, 8, true, -1, 64, 8, false, Format::kInt8, 6.0f}, random);
  std::get<QuantizedTensor>(rounding).outlier_threshold = kNaN;
  EXPECT_NE(message_of(rounding).find("threshold"), std::string::npos);
  bad = good;
  std::get<QuantizedTensor>(bad).activations = ActivationFormat::kInt8Dynamic;
  EXPECT_NE(message_of(bad).find("int8 weights"), std::string::npos);
  const Weight on_grid =
      random_weight({DType::kF32, 8, true, -1, 64, 8, false, Format::kInt8, {}, InputGrid{0.1f, 3}}, random);
  const auto with_grid = [&](const InputGrid& grid) {
    Weight changed = on_grid;
    std::get<QuantizedTensor>(changed).input_grid = grid;
    return message_of(changed);
  };
  EXPECT_NE(with_grid({kNaN, 0}).find("scale nan"), std::string::npos);
  EXPECT_NE(with_grid({0, 0}).find("scale 0"), std::string::npos);
  EXPECT_NE(with_grid({0.1f, 128}).find("zero_point 128"), std::string::npos);
  bad = on_grid;
  std::get<QuantizedTensor>(bad).input_offsets = Tensor();
  EXPECT_NE(message_of(bad).find("input_offsets"), std::string::npos);
  const Weight doubles = Tensor::zeros(DType::kF64, {8, 64});
  testing::error_of(ErrorCode::kUnsupported, [&] { product(x, 1, doubles, nullptr, MatmulMode::kDecode); });
}

TEST(MatmulPrepare, VersionsOfTheEncodingAgreeToTheBit) {
  if (!isa_available(Isa::kAvx2)) GTEST_SKIP() << "this processor lacks AVX2";
  std::mt19937 random(15);
  for (int bits : {2, 3, 4, 8}) {
    for (int64_t count = 1; count <= kXBlock; ++count) {
      std::vector<float> x = random_rows(1, count, random);
      if (count % 9 == 0) x[static_cast<size_t>(count / 2)] = count % 2 ? kNaN : kInfinity;
      if (count % 7 == 0) x.assign(x.size(), 0.0f);
      const int64_t unit = unit_columns(bits), padded = (count + unit - 1) / unit * unit;
      std::vector<int16_t> codes[2];
      float scales[2];
      int32_t sums[2];
      for (int version = 0; version < 2; ++version) {
        codes[version].assign(static_cast<size_t>(padded), -1);
        const Int16Block block = {
            x.data(),         count,         padded, unit, position_order(bits), codes[version].data(),
            &scales[version], &sums[version]};
        (version ? encode_int16_avx2 : encode_int16_ref)(block);
      }
      ASSERT_EQ(codes[0], codes[1]) << bits << " " << count;
      ASSERT_EQ(std::memcmp(&scales[0], &scales[1], 4), 0);
      ASSERT_EQ(sums[0], sums[1]);
    }
  }
}

void expect_int8_encoding_of_reference(void (*encode)(const Int8Row&) noexcept) {
  std::mt19937 random(16);
  for (const float limit : {kInfinity, 1.5f, 1e-3f}) {
    for (int64_t count = 1; count <= 200; ++count) {
      std::vector<float> x = random_rows(1, count, random);
      if (count % 9 == 0) x[static_cast<size_t>(count / 2)] = count % 2 ? kNaN : -kInfinity;
      if (count % 7 == 0) x.assign(x.size(), 0.0f);
      if (count % 11 == 0) x[0] = limit;  // an outlier itself
      const int64_t padded = (count + 63) / 64 * 64;
      std::vector<int8_t> codes[2];
      std::vector<uint64_t> outliers[2];
      float scales[2];
      int32_t sums[2];
      for (int version = 0; version < 2; ++version) {
        codes[version].assign(static_cast<size_t>(padded), -1);
        outliers[version].assign(static_cast<size_t>(padded / 64), ~uint64_t{0});
        const Int8Row row = {
            x.data(),         count,         padded, limit, codes[version].data(), outliers[version].data(),
            &scales[version], &sums[version]};
        (version ? encode : encode_int8_ref)(row);
      }
      ASSERT_EQ(codes[0], codes[1]) << limit << " " << count;
      ASSERT_EQ(outliers[0], outliers[1]) << limit << " " << count;
      ASSERT_EQ(std::memcmp(&scales[0], &scales[1], 4), 0);
      ASSERT_EQ(sums[0], sums[1]);
      const bool is_finite = count % 9 != 0 || count % 7 == 0;
      ASSERT_EQ(std::isnan(scales[0]), !is_finite || std::isinf(x[0])) << count;
    }
  }
}

TEST(MatmulPrepare, Avx2EncodesInt8AsTheReferenceToTheBit) {
  if (!isa_available(Isa::kAvx2)) GTEST_SKIP() << "this processor lacks AVX2";
  expect_int8_encoding_of_reference(encode_int8_avx2);
}
TEST(MatmulPrepare, Avx512EncodesInt8AsTheReferenceToTheBit) {
  if (!isa_available(Isa::kAvx512)) GTEST_SKIP() << "this processor lacks AVX-512";
  expect_int8_encoding_of_reference(encode_int8_avx512);
}

TEST(MatmulPrepare, VersionsOfTheEncodingOnAGridAgreeToTheBit) {
  if (!isa_available(Isa::kAvx2)) GTEST_SKIP() << "this processor lacks AVX2";
  std::mt19937 random(17);
  for (const InputGrid grid : {InputGrid{0.02f, 0}, {0.5f, 127}, {1e-7f, -128}}) {
    for (int64_t count = 1; count <= 200; ++count) {
      std::vector<float> x = random_rows(1, count, random);
      if (count % 9 == 0) x[static_cast<size_t>(count / 2)] = count % 2 ? kNaN : -kInfinity;
      if (count % 7 == 0) x.assign(x.size(), grid.scale * 1.5f);  // a tie
      const int64_t padded = (count + 63) / 64 * 64;
      std::vector<int8_t> codes[2];
      float scales[2];
      int32_t sums[2];
      for (int version = 0; version < 2; ++version) {
        codes[version].assign(static_cast<size_t>(padded), -1);
        const Int8GridRow row = {x.data(),         count,           padded,
                                 grid.scale,       grid.zero_point, codes[version].data(),
                                 &scales[version], &sums[version]};
        (version ? encode_int8_grid_avx2 : encode_int8_grid_ref)(row);
      }
      ASSERT_EQ(codes[0], codes[1]) << grid.scale << " " << count;
      ASSERT_EQ(std::memcmp(&scales[0], &scales[1], 4), 0);
      ASSERT_EQ(sums[0], sums[1]);
      ASSERT_EQ(std::isnan(scales[0]), count % 9 == 0 && count % 7 != 0) << count;
    }
  }
}

TEST_F(Matmul, NoRowsAndNoColumnsAreFine) {
  std::mt19937 random(14);
  const Weight weight = random_weight({DType::kBF16, 0, true, 0, 16, 4}, random);
  EXPECT_TRUE(product({}, 0, weight, nullptr, MatmulMode::kDecode).empty());
  const Weight empty = Tensor::zeros(DType::kF32, {4, 0});
  for (MatmulMode mode : {MatmulMode::kDecode, MatmulMode::kPrefill}) {
    EXPECT_EQ(product({}, 2, empty, nullptr, mode), std::vector<float>(8, 0.0f));
  }
}

}  // namespace
}  // namespace lowbit
