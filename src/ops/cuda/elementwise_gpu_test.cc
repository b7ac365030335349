// Small operators on a GPU beside the reference on the CPU, on the numbers that BF16 leaves of the inputs:
// those that models need which are not as Llama.
#include "ops/cuda/gpu_test_support.h"
#include "ops/elementwise.h"

#include <cmath>
#include <limits>

namespace lowbit {
namespace {

using testing::Numbers;
using GpuElementwise = testing::GpuTest;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int64_t kWidths[] = {1, 31, 48, 100, 768, 4097};

// Each within half a step of BF16 and a share of the largest; NaN where it is expected, and nowhere else.
void expect_near(const std::vector<float>& got, const std::vector<float>& expected, double share,
                 const std::string& what) {
  double scale = 0;
  for (float value : expected)
    if (std::isfinite(value)) scale = std::max(scale, std::abs(double{value}));
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(expected[i]) || std::isinf(expected[i])) {
      ASSERT_TRUE(std::isnan(expected[i]) ? std::isnan(got[i]) : got[i] == expected[i])
          << what << ", element " << i << ": " << got[i] << ", expected " << expected[i];
      continue;
    }
    ASSERT_NEAR(got[i], expected[i], share * scale + std::abs(double{expected[i]}) / 128)
        << what << ", element " << i;
  }
}

TEST_F(GpuElementwise, LayerNormOfFloatsAndOfHalvesInPlace) {
  Numbers numbers(1);
  for (int64_t width : kWidths) {
    for (int64_t rows : {1, 3, 300}) {
      std::vector<float> x = numbers.normals(rows * width, 3);
      for (float& value : x) value += 5;  // far from a mean of zero
      if (rows == 3) x[static_cast<size_t>(2 * width)] = kNan;
      const std::vector<float> weights = numbers.normals(width), biases = numbers.normals(width);
      const Tensor weight = Tensor::borrow(nullptr, weights.data(), DType::kF32, {width}),
                   bias = Tensor::borrow(nullptr, biases.data(), DType::kF32, {width}),
                   weight_there = there(weights), bias_there = there(biases);
      std::vector<float> expected(x.size());
      const std::string what = fmt::format("{} x {}", rows, width);
      layer_norm(cpu_, x.data(), rows, weight, bias, 1e-5f, expected.data());
      Tensor floats_there = there(x), y = room(DType::kBF16, rows * width);
      layer_norm(gpu_, of(floats_there), rows, weight_there, bias_there, 1e-5f, of(y));
      expect_near(back(y), expected, 1e-5, what + ", F32 to BF16");
      layer_norm(gpu_, of(floats_there), rows, weight_there, bias_there, 1e-5f, of(floats_there));
      expect_near(back(floats_there), expected, 1e-5, what + ", F32 in place");
      Tensor in_place = rounded(x);
      layer_norm(cpu_, x.data(), rows, weight, bias, 1e-5f, expected.data());
      layer_norm(gpu_, of(in_place), rows, weight_there, bias_there, 1e-5f, of(in_place));
      expect_near(back(in_place), expected, 1e-5, what + ", BF16 in place");
    }
  }
}

TEST_F(GpuElementwise, EveryActivationGatedAndNotInPlace) {
  Numbers numbers(2);
  for (Activation f :
       {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh, Activation::kRelu, Activation::kTanh}) {
    for (int64_t count : {1, 7, 255, 5000}) {
      std::vector<float> x = numbers.normals(count, 6), up = numbers.normals(count), expected(x.size());
      x[0] = count == 7 ? kNan : count == 255 ? 60.0f : x[0];
      if (count > 1) x[1] = -60;
      const std::string what = fmt::format("function {}, {} elements", static_cast<int>(f), count);
      Tensor x_there = rounded(x), up_there = rounded(up), gated = rounded(x);
      activate(cpu_, f, x.data(), count, expected.data());
      activate(gpu_, f, of(x_there), count, of(x_there));
      expect_near(back(x_there), expected, 1e-6, what);
      activate_gated(cpu_, f, x.data(), up.data(), count, expected.data());
      activate_gated(gpu_, f, of(gated), of(up_there), count, of(gated));
      expect_near(back(gated), expected, 1e-6, what + ", gated");
    }
  }
}

TEST_F(GpuElementwise, SplitColumnsTakesBlocksAndHeadsApart) {
  Numbers numbers(3);
  for (int64_t tokens : {1, 5, 130}) {
    for (int64_t repeats : {1, 3}) {
      for (const std::vector<int64_t>& widths : {std::vector<int64_t>{64, 16, 16}, {33, 7, 1}, {160, 160}}) {
        int64_t stride = 0;
        for (int64_t width : widths) stride += width;
        std::vector<float> x = numbers.normals(tokens * repeats * stride);
        const Tensor x_there = rounded(x);
        std::vector<std::vector<float>> expected;
        std::vector<Tensor> got;
        for (int64_t width : widths) {
          expected.emplace_back(static_cast<size_t>(tokens * repeats * width));
          got.push_back(room(DType::kBF16, tokens * repeats * width));
        }
        std::vector<ColumnPart> here, moved;
        for (size_t i = 0; i < widths.size(); ++i) {
          here.push_back({widths[i], expected[i].data()});
          moved.push_back({widths[i], of(got[i])});
        }
        split_columns(cpu_, x.data(), tokens, repeats, here);
        split_columns(gpu_, ConstActivations(x_there.bytes(), DType::kBF16), tokens, repeats, moved);
        for (size_t i = 0; i < widths.size(); ++i)
          EXPECT_EQ(back(got[i]), expected[i]) << stride << ", " << i;
      }
    }
  }
}

TEST_F(GpuElementwise, WhatIsAddedToHiddenAndScalesIt) {
  Numbers numbers(4);
  for (int64_t width : kWidths) {
    const int64_t tokens = 9, rows = 20, offset = 2, count = tokens * width;
    std::vector<float> hidden = numbers.normals(count), x = numbers.normals(count);
    const Tensor floats_there = there(x), x_there = rounded(x);
    Tensor hidden_there = there(hidden), other_there = there(hidden);
    std::vector<float> other = hidden;
    add(cpu_, x.data(), count, hidden.data());
    add(gpu_, ConstActivations(x_there.bytes(), DType::kBF16), count, hidden_there.mutable_data<float>());
    EXPECT_EQ(back(hidden_there), hidden) << "BF16";
    const std::vector<float> exact = back(floats_there);
    add(cpu_, exact.data(), count, other.data());
    add(gpu_, floats_there.data<float>(), count, other_there.mutable_data<float>());
    EXPECT_EQ(back(other_there), other) << "F32";

    scale(cpu_, 11.3125f, count, hidden.data());
    scale(gpu_, 11.3125f, count, hidden_there.mutable_data<float>());
    EXPECT_EQ(back(hidden_there), hidden) << "scale";

    std::vector<float> values = numbers.normals(rows * width);
    const Tensor values_there = rounded(values);
    const Tensor table = Tensor::borrow(nullptr, values.data(), DType::kF32, {rows, width}),
                 table_there = Tensor::borrow(nullptr, values_there.bytes(), DType::kBF16, {rows, width});
    std::vector<int32_t> positions;
    for (int64_t i = 0; i < tokens; ++i)
      positions.push_back(static_cast<int32_t>(numbers.between(0, rows - offset - 1)));
    const Tensor positions_there = there(positions);
    add_positions(cpu_, table, offset, positions.data(), tokens, hidden.data());
    add_positions(gpu_, table_there, offset, positions_there.data<int32_t>(), tokens,
                  hidden_there.mutable_data<float>());
    EXPECT_EQ(back(hidden_there), hidden) << "positions";
    add_positions(cpu_, table, 0, nullptr, tokens, hidden.data());
    add_positions(gpu_, table_there, 0, nullptr, tokens, hidden_there.mutable_data<float>());
    EXPECT_EQ(back(hidden_there), hidden) << "row 0 for all";

    Tensor converted_there = room(DType::kBF16, count);
    convert(gpu_, ConstActivations(hidden_there.data<float>()), count, of(converted_there));
    for (float& value : hidden) value = bf16_to_float(float_to_bf16(value));
    EXPECT_EQ(back(converted_there), hidden) << "converted";
    Tensor copied = room(DType::kBF16, count);
    convert(gpu_, ConstActivations(of(converted_there)), count, of(copied));
    EXPECT_EQ(back(copied), hidden) << "copied";
  }
}

}  // namespace
}  // namespace lowbit
