#include "quantize/smooth.h"

#include "quantize/source_model.h"
#include "quantize/test_problem.h"
#include "runtime/forward.h"
#include "support.h"

#include <gtest/gtest.h>

namespace lowbit {
namespace {

using namespace lowbit::testing;
namespace fs = std::filesystem;

TEST(Smooth, AlphaIsANumberOrAuto) {
  EXPECT_EQ(parse_smooth_alpha("0.75").value, 0.75f);
  EXPECT_EQ(parse_smooth_alpha("auto").value, std::nullopt);
  for (const char* bad : {"", "yes", "1.5", "-0.1", "nan", "0.5x"}) {
    EXPECT_NE(error_of(ErrorCode::kInvalidArgument, [&] { parse_smooth_alpha(bad); }).find("smooth_alpha"),
              std::string::npos);
  }
}

TEST(Smooth, FactorsAreThoseOfThePaper) {
  const std::vector<float> inputs = {16, 1, 0, 4}, weights = {1, 0.25f, 2, 0};
  const std::vector<float> half = smooth_factors(inputs, weights, 0.5f);
  EXPECT_FLOAT_EQ(half[0], 4);  // sqrt(16 / 1)
  EXPECT_FLOAT_EQ(half[1], 2);  // sqrt(1 / 0.25)
  EXPECT_EQ(half[2], 1);
  EXPECT_EQ(half[3], 1);
  EXPECT_FLOAT_EQ(smooth_factors(inputs, weights, 1)[0], 16);
  EXPECT_FLOAT_EQ(smooth_factors(inputs, weights, 0)[1], 4);
}

TEST(Smooth, SizesOfColumnsAreThoseOfAllMatricesForAnyNumberOfThreads) {
  const Tensor a = random_tensor({130, 37}, 1), b = converted(random_tensor({9, 37}, 2), DType::kBF16);
  const Tensor both[] = {a, b};
  std::vector<float> expected(37);
  for (const Tensor& tensor : both) {
    for (int64_t i = 0; i < tensor.element_count(); ++i) {
      float& size = expected[static_cast<size_t>(i % 37)];
      size = std::max(size, std::abs(float_at(tensor, i)));
    }
  }
  for (int threads : {1, 3}) {
    Machine machine(threads);
    EXPECT_EQ(column_sizes(machine.ops(), both), expected);
  }
}

// Norm and factors, as a file of some type has them, multiply to the norm that was.
TEST(Smooth, AFoldedNormTimesItsFactorsIsTheNormBefore) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const float offset : {0.0f, 1.0f}) {
      Tensor weight = converted(random_tensor({64}, 3), DType::kF32);
      weight.mutable_data<float>()[5] = 0;
      Norm norm{weight, random_tensor({64}, 4), 1e-5f, "n", offset};
      const Norm before = norm;
      std::vector<float> factors(64);
      for (size_t j = 0; j < 64; ++j) factors[j] = 0.1f + 0.37f * static_cast<float>(j);
      const std::vector<NamedTensor> tensors = fold_into(norm, dtype, factors);
      ASSERT_EQ(tensors.size(), 2u);
      EXPECT_EQ(tensors[0].name, "n.weight");
      EXPECT_EQ(tensors[1].name, "n.bias");
      EXPECT_EQ(tensors[0].tensor.dtype(), dtype);
      for (int64_t j = 0; j < 64; ++j) {
        EXPECT_EQ(norm.weight.data<float>()[j], float_at(tensors[0].tensor, j) + offset);
        const float exact = before.weight.data<float>()[j];
        // What is left as it is would, in a file, have been of its type before.
        const double rounding = factors[static_cast<size_t>(j)] == 1 ? 0.005 * (std::abs(exact) + offset) : 0;
        EXPECT_NEAR(norm.weight.data<float>()[j] * factors[static_cast<size_t>(j)], exact,
                    2e-7 * std::abs(exact) + rounding);
        EXPECT_NEAR(float_at(tensors[1].tensor, j) * factors[static_cast<size_t>(j)],
                    before.bias.data<float>()[j], 0.006 * std::abs(before.bias.data<float>()[j]));
      }
    }
  }
}

TEST(Smooth, WhatTheTypeOfTheNormCannotHoldStaysAsItIs) {
  for (const auto& [before, factor, offset] :
       {std::tuple{1e-5f, 1e4f, 0.0f}, {0.0f, 3.0f, 0.0f}, {0.004f, 6.0f, 1.0f}}) {
    Tensor weight = Tensor::zeros(DType::kF32, {1});
    weight.mutable_data<float>()[0] = before;
    Norm norm{weight, {}, 1e-5f, "n", offset};
    std::vector<float> factors = {factor};
    fold_into(norm, DType::kF16, factors);
    EXPECT_EQ(factors[0], 1);
    EXPECT_NEAR(norm.weight.data<float>()[0], before, 0.002f * (offset + before));
  }
}

// Smooths all that can be smoothed of a model; how many groups of linears that was.
int smooth_all(const OpContext& ops, Model& model, DType dtype) {
  int folded = 0;
  for (int64_t layer = 0; layer < model.layer_count(); ++layer) {
    Block& block = model.block(layer);
    for (size_t stage = 0; stage < block.stages().size(); ++stage) {
      Norm* const norm = block.input_norm(static_cast<int>(stage));
      if (!norm) continue;
      std::vector<float> factors(static_cast<size_t>(block.stages()[stage].input_width));
      for (size_t j = 0; j < factors.size(); ++j)
        factors[j] = std::exp(2 * std::sin(static_cast<float>(7 * j + stage)));
      fold_into(*norm, dtype, factors);
      for (const int index : block.stages()[stage].linears) {
        Linear& linear = block.linears()[static_cast<size_t>(index)];
        linear.weight = rescaled(ops, std::get<Tensor>(linear.weight), factors);
      }
      ++folded;
    }
  }
  return folded;
}

std::vector<float> hidden_states(const OpContext& ops, const Model& model) {
  const std::vector<std::vector<int32_t>> ids = {{5, 17, 3, 44, 29, 8, 70, 12}};
  const auto count = static_cast<int64_t>(ids[0].size()) * model.config().hidden_size;
  std::vector<float> rows;
  forward_windows(model, ops, ids, 1, DType::kF32,
                  [&](size_t, const float* hidden) { rows.assign(hidden, hidden + count); });
  return rows;
}

void expect_equivalent(const fs::path& folder, DType dtype, int groups) {
  SCOPED_TRACE(folder.string());
  Machine machine;
  SourceModel source = load_source(folder);
  const std::vector<float> before = hidden_states(machine.ops(), source.model);
  EXPECT_EQ(smooth_all(machine.ops(), source.model, dtype), groups);
  const std::vector<float> after = hidden_states(machine.ops(), source.model);
  float difference = 0, most = 0;
  for (size_t i = 0; i < before.size(); ++i) {
    difference = std::max(difference, std::abs(after[i] - before[i]));
    most = std::max(most, std::abs(before[i]));
  }
  if (groups > 0) {
    EXPECT_GT(difference, 0);
  }
  EXPECT_LT(difference, 1e-5f * most);
}

TEST(Smooth, ASmoothedModelComputesWhatItDid) {
  TemporaryFolder folder;
  write_tiny_model(folder.path() / "model", {});
  for (const DType dtype : {DType::kF32, DType::kBF16}) expect_equivalent(folder.path() / "model", dtype, 6);
}

// Norms that multiply with 1 + weight, layer norms with biases, fused matrices, and models that have no norm
// in front of their linears, or two parts that may share one.
TEST(Smooth, ModelsOfOtherArchitecturesComputeWhatTheyDid) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const fs::path models = material / "peers" / "models";
  for (const char* name : {"qwen2", "gemma3_text", "phi3", "bloom", "gpt2", "opt", "gpt_neox-sequential"}) {
    const auto layers = static_cast<int>(load_source(models / name).model.layer_count());
    expect_equivalent(models / name, DType::kF32, 2 * layers);
  }
  for (const char* name : {"gpt_neox", "opt-postnorm-proj", "bert"})
    expect_equivalent(models / name, DType::kF32, 0);
}

}  // namespace
}  // namespace lowbit
