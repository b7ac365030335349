#include "quantize/methods.h"

#include "format/affine.h"
#include "format/bits.h"
#include "format/codebook.h"
#include "quantize/test_problem.h"
#include "support.h"

#include <gtest/gtest.h>
#include <limits>
#include <numeric>

namespace lowbit {
namespace {

using namespace lowbit::testing;

MatrixProblem problem_of(const Tensor& weight, int bits, int group_size, bool sym = true) {
  MatrixProblem problem;
  problem.module = "layer.module";
  problem.weight = weight;
  problem.affine = {bits, group_size, sym};
  return problem;
}

struct Orders {
  const char* name;
  bool desc_act, static_groups, act_group_aware, updated_groups;
};
constexpr Orders kOrders[] = {
    {"plain", false, false, false, true},      {"plain lazy", false, false, false, false},
    {"group aware", false, false, true, true}, {"group aware static", false, true, true, true},
    {"act order", true, false, false, true},   {"act order static", true, true, false, true},
    {"static", false, true, false, true},      {"group aware lazy", false, false, true, false}};

void set(MatrixProblem& problem, const Orders& orders) {
  problem.gptq.desc_act = orders.desc_act;
  problem.gptq.static_groups = orders.static_groups;
  problem.gptq.act_group_aware = orders.act_group_aware;
  problem.gptq.updated_groups = orders.updated_groups;
}

TEST(Gptq, IsNeverWorseThanRoundingForTheOutputs) {
  Machine machine;
  const OpContext ops = machine.ops();
  for (const auto& [bits, group_size] : {std::pair{2, 16}, {3, 32}, {4, 32}, {4, -1}, {8, 32}, {4, 48}}) {
    double sum_gptq = 0, sum_rtn = 0;
    for (uint64_t seed = 1; seed <= 4; ++seed) {
      const Tensor weight = random_tensor({24, 160}, seed * 100);
      const Hessian hessian = hessian_of(ops, correlated_inputs(300, 160, seed));
      const MatrixProblem problem = problem_of(weight, bits, group_size);
      FactorCache factors(ops, hessian);
      const double gptq = output_error(weight, quantize_gptq(ops, problem, factors).weight, hessian);
      const double rtn = output_error(weight, quantize_rtn(ops, problem).weight, hessian);
      sum_gptq += gptq;
      sum_rtn += rtn;
      EXPECT_LT(gptq, rtn) << bits << " bits, group " << group_size << ", seed " << seed;
    }
    EXPECT_LT(sum_gptq, 0.7 * sum_rtn) << bits << " bits, group " << group_size;
  }
}

TEST(Gptq, ErrorFallsWithBits) {
  Machine machine;
  const OpContext ops = machine.ops();
  const Tensor weight = random_tensor({24, 128}, 5);
  const Hessian hessian = hessian_of(ops, correlated_inputs(400, 128, 5));
  for (const Orders& orders : kOrders) {
    double before = std::numeric_limits<double>::infinity();
    for (int bits : {2, 3, 4, 8}) {
      MatrixProblem problem = problem_of(weight, bits, 32);
      set(problem, orders);
      FactorCache factors(ops, hessian);
      const double error = output_error(weight, quantize_gptq(ops, problem, factors).weight, hessian);
      EXPECT_LT(error, 0.6 * before) << orders.name << " " << bits;
      before = error;
    }
  }
}

// The sum of the loop's squared errors is tr(dW (H + damping) dW^T) of the weights that are stored: so the
// codes, grids and places in the file are those that the loop chose. This is the layout test of every order.
TEST(Gptq, StoredWeightsHaveTheLossThatTheLoopSummedUp) {
  Machine machine;
  const OpContext ops = machine.ops();
  const Tensor weight = random_tensor({40, 200}, 9);
  const Hessian hessian = hessian_of(ops, correlated_inputs(500, 200, 9));
  for (const Orders& orders : kOrders) {
    for (const auto& [bits, group_size, sym] : {std::tuple{4, 64, true},
                                                {3, 32, true},
                                                {2, 16, false},
                                                {8, -1, true},
                                                {4, 130, false},
                                                {4, 7, true}}) {
      MatrixProblem problem = problem_of(weight, bits, group_size, sym);
      set(problem, orders);
      problem.gptq.refine_sweeps = 0;  // the loss is that of the loop's codes
      FactorCache factors(ops, hessian);
      const QuantizedMatrix result = quantize_gptq(ops, problem, factors);
      ASSERT_EQ(result.method, "gptq");
      Hessian damped{Tensor::allocate(DType::kF32, {200, 200}), {}, hessian.tokens};
      std::memcpy(damped.values.mutable_bytes(), hessian.values.bytes(), hessian.values.byte_count());
      double mean = 0;
      for (float value : hessian.diagonal) mean += value / 200;
      for (int64_t i = 0; i < 200; ++i)
        damped.values.mutable_data<float>()[i * 201] += static_cast<float>(result.damp_percent * mean);
      const double expected = output_error(weight, result.weight, damped);
      EXPECT_NEAR(result.loss / expected, 1, 2e-3)
          << orders.name << " " << bits << " bits, group " << group_size;
      EXPECT_EQ(!result.weight.column_order.empty(),
                orders.desc_act && !orders.static_groups && group_size != -1)
          << orders.name;
    }
  }
}

std::vector<QuantizeOptions> codebook_options() {
  std::vector<QuantizeOptions> all;
  for (const auto& [format, bits, base] : {std::tuple{"nf4", 4, 2.0f},
                                           {"fp4", 4, 2.0f},
                                           {"fp8", 8, 2.0f},
                                           {"fp8_e5m2", 8, 2.0f},
                                           {"log2", 3, 2.0f},
                                           {"log2", 4, 2.0f},
                                           {"log2", 5, 1.4f},
                                           {"log2", 8, 1.09f}}) {
    QuantizeOptions options;
    options.format = format;
    options.affine.bits = bits;
    options.log_base = base;
    all.push_back(options);
  }
  return all;
}

// The laws of the affine grid hold for any format: the loss of the loop is that of what is stored, and
// outputs lose less than by rounding.
TEST(Gptq, WorksOverEveryCodebook) {
  Machine machine;
  const OpContext ops = machine.ops();
  for (const QuantizeOptions& options : codebook_options()) {
    const std::optional<CodebookChoice> codebook = codebook_choice(options);
    double sum_gptq = 0, sum_rtn = 0;
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      const Tensor weight = random_tensor({24, 160}, seed * 100);
      const Hessian hessian = hessian_of(ops, correlated_inputs(300, 160, seed));
      for (const int group_size : {32, 64, -1}) {
        SCOPED_TRACE(fmt::format("{} {} bits group {}", options.format, codebook->bits, group_size));
        MatrixProblem problem = problem_of(weight, codebook->bits, group_size);
        problem.codebook = &*codebook;
        FactorCache factors(ops, hessian);
        const QuantizedMatrix result = quantize_gptq(ops, problem, factors);
        EXPECT_EQ(result.method, "gptq");
        EXPECT_EQ(result.weight.format, codebook->format);
        EXPECT_TRUE(result.weight.zero_points.empty());
        EXPECT_EQ(result.weight.scales.dtype(), DType::kF32);
        const double gptq = output_error(weight, result.weight, hessian);
        EXPECT_NEAR(*result.relative_error / relative_error(ops, weight, result.weight, &hessian), 1, 1e-3);
        const double rtn = output_error(weight, quantize_rtn(ops, problem).weight, hessian);
        EXPECT_LT(gptq, rtn);
        sum_gptq += gptq, sum_rtn += rtn;
      }
    }
    EXPECT_LT(sum_gptq, 0.75 * sum_rtn) << options.format << " " << codebook->bits;
  }
}

TEST(Gptq, StoredCodesOfACodebookHaveTheLossThatTheLoopSummedUp) {
  Machine machine;
  const OpContext ops = machine.ops();
  const Tensor weight = random_tensor({40, 200}, 9);
  const Hessian hessian = hessian_of(ops, correlated_inputs(500, 200, 9));
  for (const Orders& orders : kOrders) {
    for (const QuantizeOptions& options : codebook_options()) {
      const std::optional<CodebookChoice> codebook = codebook_choice(options);
      MatrixProblem problem = problem_of(weight, codebook->bits, 64);
      problem.codebook = &*codebook;
      set(problem, orders);
      problem.gptq.refine_sweeps = 0;
      FactorCache factors(ops, hessian);
      const QuantizedMatrix result = quantize_gptq(ops, problem, factors);
      Hessian damped{Tensor::allocate(DType::kF32, {200, 200}), {}, hessian.tokens};
      std::memcpy(damped.values.mutable_bytes(), hessian.values.bytes(), hessian.values.byte_count());
      double mean = 0;
      for (float value : hessian.diagonal) mean += value / 200;
      for (int64_t i = 0; i < 200; ++i)
        damped.values.mutable_data<float>()[i * 201] += static_cast<float>(result.damp_percent * mean);
      EXPECT_NEAR(result.loss / output_error(weight, result.weight, damped), 1, 2e-3)
          << orders.name << " " << options.format << " " << codebook->bits;
    }
  }
}

TEST(Rtn, WithoutClipSearchACodebooksScalesAreItsLargestMagnitudes) {
  Machine machine;
  const Tensor weight = random_tensor({30, 100}, 2);
  for (const QuantizeOptions& options : codebook_options()) {
    const std::optional<CodebookChoice> codebook = codebook_choice(options);
    MatrixProblem problem = problem_of(weight, codebook->bits, 40);
    problem.codebook = &*codebook;
    problem.gptq.mse = 0;
    const QuantizedTensor rounded = quantize_rtn(machine.ops(), problem).weight;
    const Tensor decoded = dequantized(rounded);
    for (int64_t row = 0; row < 30; ++row) {
      for (int64_t first = 0; first < 100; first += 40) {
        const std::span<const float> values(weight.data<float>() + row * 100 + first,
                                            static_cast<size_t>(std::min<int64_t>(40, 100 - first)));
        std::vector<uint8_t> codes(values.size());
        const float scale = encode_group(codebook->levels, values, codes.data(), 1);
        EXPECT_EQ(rounded.scales.data<float>()[first / 40 * 30 + row], scale);
        for (size_t i = 0; i < values.size(); ++i) {
          EXPECT_EQ(decoded.data<float>()[row * 100 + first + static_cast<int64_t>(i)],
                    decode_code(codebook->levels.by_code, codes[i], scale));
        }
      }
    }
  }
}

TEST(Gptq, GroupAwareOrderPaysOnAverage) {
  Machine machine;
  const OpContext ops = machine.ops();
  double plain = 0, aware = 0;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    const Tensor weight = random_tensor({32, 160}, seed * 31);
    const Hessian hessian = hessian_of(ops, correlated_inputs(400, 160, seed * 7));
    for (const Orders* orders : {&kOrders[0], &kOrders[2]}) {
      MatrixProblem problem = problem_of(weight, 3, 32);
      set(problem, *orders);
      FactorCache factors(ops, hessian);
      (orders == kOrders ? plain : aware) +=
          output_error(weight, quantize_gptq(ops, problem, factors).weight, hessian);
    }
  }
  EXPECT_LT(aware, 0.9 * plain);
}

void expect_same_for_any_threads(const CodebookChoice* codebook) {
  const Tensor weight = random_tensor({70, 192}, 3);
  const Tensor x = correlated_inputs(2500, 192, 3);
  QuantizedTensor first;
  for (int threads : {1, 2, 3}) {
    Machine machine(threads);
    machine.kernels.all.clear();
    const OpContext ops = machine.ops();
    const Hessian hessian = hessian_of(ops, x);
    FactorCache factors(ops, hessian);
    MatrixProblem problem = problem_of(weight, 4, 32);
    problem.codebook = codebook;
    const QuantizedTensor codes = quantize_gptq(ops, problem, factors).weight;
    if (threads == 1) {
      first = codes;
    } else {
      EXPECT_TRUE(same_weight(first, codes)) << threads;
    }
  }
}

TEST(Gptq, CodesDoNotDependOnThreads) {
  expect_same_for_any_threads(nullptr);
  for (const QuantizeOptions& options : codebook_options()) {
    const std::optional<CodebookChoice> codebook = codebook_choice(options);
    expect_same_for_any_threads(&*codebook);
  }
}

TEST(Hessian, DoesNotDependOnHowTokensArrive) {
  Machine machine;
  const OpContext ops = machine.ops();
  const Tensor x = correlated_inputs(5000, 24, 11);
  const Hessian whole = hessian_of(ops, x);
  for (int64_t piece : {int64_t{1}, int64_t{77}, int64_t{2048}, int64_t{3000}}) {
    HessianAccumulator accumulator(ops, 24);
    for (int64_t row = 0; row < 5000; row += piece) {
      accumulator.add(x.data<float>() + row * 24, std::min(piece, 5000 - row));
    }
    const Hessian pieces = accumulator.finish();
    EXPECT_EQ(pieces.tokens, 5000);
    EXPECT_TRUE(same_bytes(whole.values, pieces.values)) << piece;
  }
}

TEST(Hessian, FactorInvertsTheDampedMatrix) {
  Machine machine;
  const OpContext ops = machine.ops();
  const int64_t width = 48;
  const Hessian hessian = hessian_of(ops, correlated_inputs(200, width, 2));
  std::vector<int32_t> order(static_cast<size_t>(width));
  std::iota(order.rbegin(), order.rend(), 0);
  const std::optional<InverseFactor> factor = invert(ops, hessian, order, {.damp_percent = 0.05});
  ASSERT_TRUE(factor);
  EXPECT_EQ(factor->note, "");
  double mean = 0;
  for (float value : hessian.diagonal) mean += value / static_cast<double>(width);
  const float* u = factor->values.data<float>();
  // (U^T U) (H + damping) = 1, rows and columns in the order given.
  for (int64_t i = 0; i < width; i += 5) {
    std::vector<double> row(static_cast<size_t>(width), 0);
    for (int64_t j = 0; j < width; ++j) {
      for (int64_t k = 0; k <= std::min(i, j); ++k)
        row[static_cast<size_t>(j)] += double{u[k * width + i]} * u[k * width + j];
    }
    for (int64_t j = 0; j < width; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < width; ++k) {
        const double h =
            hessian.values
                .data<float>()[order[static_cast<size_t>(k)] * width + order[static_cast<size_t>(j)]];
        sum += row[static_cast<size_t>(k)] * (h + (k == j ? 0.05 * mean : 0));
      }
      EXPECT_NEAR(sum, i == j ? 1 : 0, 2e-3);
    }
  }
}

TEST(Gptq, SingularHessianIsRescuedByMoreDamping) {
  Machine machine;
  const OpContext ops = machine.ops();
  const int64_t width = 96;
  Hessian hessian = hessian_of(ops, correlated_inputs(2, width, 4));  // rank 2
  double mean = 0;
  for (float value : hessian.diagonal) mean += value / static_cast<double>(width);
  // Slightly indefinite, as rounding can leave it.
  for (int64_t i = 0; i < width; ++i)
    hessian.values.mutable_data<float>()[i * width + i] -= static_cast<float>(1e-3 * mean);
  hessian = make_hessian(ops, hessian.values, hessian.tokens);
  MatrixProblem problem = problem_of(random_tensor({16, width}, 4), 4, 32);
  problem.gptq.damp_percent = 1e-7f;
  FactorCache factors(ops, hessian);
  const QuantizedMatrix result = quantize_gptq(ops, problem, factors);
  EXPECT_EQ(result.method, "gptq");
  EXPECT_GT(result.damp_percent, 0.009);
  EXPECT_NE(result.note.find("singular"), std::string::npos) << result.note;
}

TEST(Gptq, ZeroAndNonFiniteHessiansFallBackToRounding) {
  Machine machine;
  const OpContext ops = machine.ops();
  const Tensor weight = random_tensor({16, 64}, 6);
  const MatrixProblem problem = problem_of(weight, 4, 32);
  const QuantizedTensor rounded = quantize_rtn(ops, problem).weight;
  const Hessian zero = make_hessian(ops, Tensor::zeros(DType::kF32, {64, 64}), 10);
  Tensor x = correlated_inputs(100, 64, 6);
  x.mutable_data<float>()[64 * 7 + 3] = std::numeric_limits<float>::quiet_NaN();
  const Hessian broken = hessian_of(ops, x);
  for (const auto& [hessian, text] :
       {std::pair<const Hessian*, const char*>{&zero, "zero"}, {&broken, "non-finite"}}) {
    FactorCache factors(ops, *hessian);
    const QuantizedMatrix result = quantize_gptq(ops, problem, factors);
    EXPECT_EQ(result.method, "rtn");
    EXPECT_NE(result.note.find(text), std::string::npos) << result.note;
    EXPECT_TRUE(same_weight(result.weight, rounded));
  }
  EXPECT_GT(relative_error(ops, weight, rounded, &broken), 0.01);
}

TEST(Gptq, ColumnsWithoutInputAreRoundedAndDisturbNothing) {
  Machine machine;
  const OpContext ops = machine.ops();
  const Tensor weight = random_tensor({16, 64}, 8, 0.5f);
  Tensor x = correlated_inputs(200, 64, 8);
  for (int64_t token = 0; token < 200; ++token) x.mutable_data<float>()[token * 64 + 10] = 0;
  const Hessian hessian = hessian_of(ops, x);
  FactorCache factors(ops, hessian);
  MatrixProblem problem = problem_of(weight, 8, 64);
  problem.gptq.mse = 0;
  const QuantizedMatrix result = quantize_gptq(ops, problem, factors);
  EXPECT_EQ(result.method, "gptq");
  const Tensor decoded = dequantized(result.weight);
  for (int64_t row = 0; row < 16; ++row) {
    const float scale = f16_to_float(result.weight.scales.data<uint16_t>()[row]);
    EXPECT_NEAR(decoded.data<float>()[row * 64 + 10], weight.data<float>()[row * 64 + 10], 0.51f * scale);
  }
}

TEST(Gptq, WeightsThatAreNotFiniteAreRefusedByName) {
  Machine machine;
  Tensor weight = random_tensor({8, 32}, 1);
  weight.mutable_data<float>()[40] = std::numeric_limits<float>::infinity();
  const std::string message =
      error_of(ErrorCode::kCorruptFile, [&] { quantize_rtn(machine.ops(), problem_of(weight, 4, 32)); });
  EXPECT_NE(message.find("layer.module.weight"), std::string::npos);
}

TEST(Rtn, CodesAreTheNearestOnTheGrid) {
  Machine machine;
  const OpContext ops = machine.ops();
  const Tensor weight = random_tensor({10, 70}, 12);
  for (int bits : {2, 3, 4, 8}) {
    for (bool sym : {true, false}) {
      const QuantizedTensor result = quantize_rtn(ops, problem_of(weight, bits, 32, sym)).weight;
      std::vector<uint8_t> codes(70);
      for (int64_t row = 0; row < 10; ++row) {
        unpack_bits(result.codes.data<uint32_t>() + row, 10, 70, bits, codes.data(), 1);
        for (int64_t column = 0; column < 70; ++column) {
          const int64_t place = column / 32 * 10 + row;
          const AffineGrid grid{f16_to_float(result.scales.data<uint16_t>()[place]),
                                sym ? 1 << (bits - 1) : result.zero_points.data<uint8_t>()[place]};
          ASSERT_EQ(codes[static_cast<size_t>(column)],
                    nearest_code(weight.data<float>()[row * 70 + column], grid, (1 << bits) - 1));
        }
      }
    }
  }
}

TEST(Methods, VersionOneZeroPointsAreNeverZero) {
  Machine machine;
  const OpContext ops = machine.ops();
  Tensor weight = random_tensor({16, 64}, 13);
  for (int64_t i = 0; i < weight.element_count(); ++i) {
    float& value = weight.mutable_data<float>()[i];
    value = std::abs(value);  // a range that begins at zero asks for zero point 0
  }
  const Hessian hessian = hessian_of(ops, correlated_inputs(200, 64, 13));
  for (int bits : {2, 3, 4, 8}) {
    MatrixProblem problem = problem_of(weight, bits, 16, false);
    problem.gptq.mse = 0;
    FactorCache factors(ops, hessian);
    const QuantizedTensor free_choice = quantize_gptq(ops, problem, factors).weight;
    EXPECT_EQ(free_choice.zero_points.data<uint8_t>()[0], 0);
    problem.least_zero_point = 1;
    for (const QuantizedTensor& result :
         {quantize_gptq(ops, problem, factors).weight, quantize_rtn(ops, problem).weight}) {
      for (int64_t i = 0; i < result.zero_points.element_count(); ++i)
        ASSERT_GE(result.zero_points.data<uint8_t>()[i], 1);
    }
    if (bits == 8) {
      const QuantizedTensor rounded = quantize_rtn(ops, problem).weight;
      EXPECT_LT(relative_error(ops, weight, rounded, nullptr), 0.01);
    }
  }
}

TEST(Methods, SlabsOfRowsDoNotChangeTheCodes) {
  Machine machine;
  const OpContext ops = machine.ops();
  // Two matrices that are the halves of a third: rows do not depend on each other.
  const Tensor weight = random_tensor({128, 96}, 14);
  const Hessian hessian = hessian_of(ops, correlated_inputs(300, 96, 14));
  FactorCache factors(ops, hessian);
  const Tensor whole = dequantized(quantize_gptq(ops, problem_of(weight, 4, 32), factors).weight);
  for (int64_t first : {0, 64}) {
    const Tensor half =
        dequantized(quantize_gptq(ops, problem_of(weight.rows(first, 64), 4, 32), factors).weight);
    EXPECT_TRUE(same_bytes(half, whole.rows(first, 64)));
  }
}

}  // namespace
}  // namespace lowbit
