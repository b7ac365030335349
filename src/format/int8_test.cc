#include "format/int8.h"

#include "support.h"

#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <random>

namespace lowbit {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(Int8, EveryCodeIsTheNearestOfItsOwnValue) {
  for (const float largest : {1.0f, 0.03f, 6e-8f, 65504.0f}) {
    for (int code = -127; code <= 127; ++code) {
      const float value = int8_scale(largest) * static_cast<float>(code);
      int8_t found = 0;
      encode_int8(std::span(&value, 1), int8_factor(largest), &found);
      EXPECT_EQ(found, code) << largest;
    }
  }
}

TEST(Int8, NoOtherCodeIsNearer) {
  double worst = 0;
  for (int i = -65504; i <= 65504; ++i) {
    const float value = static_cast<float>(i) / 65504;
    int8_t code = 0;
    encode_int8(std::span(&value, 1), int8_factor(1), &code);
    worst = std::max(worst, std::abs(value * 127.0 - code));
  }
  EXPECT_LE(worst, 0.5 + 1e-5);
  EXPECT_GE(worst, 0.499);
}

TEST(Int8, TiesGoToTheEvenCode) {
  for (int twice = -253; twice <= 253; twice += 2) {
    const float value = static_cast<float>(twice) / 2;
    int8_t code = 0;
    encode_int8(std::span(&value, 1), 1, &code);
    EXPECT_EQ(code % 2, 0) << value;
    EXPECT_EQ(std::abs(value - code), 0.5f) << value;
  }
  const float beyond[] = {127.4f, 1e6f, -1e6f};
  int8_t codes[3];
  encode_int8(beyond, 1, codes);
  EXPECT_EQ(codes[0], 127);
  EXPECT_EQ(codes[1], 127);
  EXPECT_EQ(codes[2], -127);
}

TEST(Int8, ARowOfZerosHasScaleAndCodesOfZero) {
  const float zeros[5] = {};
  int8_t codes[5] = {1, 1, 1, 1, 1};
  EXPECT_EQ(largest_magnitude(zeros), 0);
  encode_int8(zeros, int8_factor(0), codes);
  for (const int8_t code : codes) EXPECT_EQ(code, 0);
  for (const float bad : {kInfinity, -kInfinity, std::nanf("")}) {
    const float values[] = {1, bad, 2};
    EXPECT_TRUE(std::isnan(largest_magnitude(values)));
  }
}

TEST(Int8, RowsOfAFileAreWhatTheLayerDecodes) {
  std::mt19937 random(1);
  for (const int64_t in : {1, 2, 3, 4, 7, 64, 129, 300}) {
    for (const int64_t out : {1, 15, 16, 33, 64, 130}) {
      std::vector<int8_t> codes(static_cast<size_t>(in * out));
      for (int8_t& code : codes) code = static_cast<int8_t>(random());
      codes[0] = -128;
      std::vector<float> scales(static_cast<size_t>(out));
      for (float& scale : scales) scale = static_cast<float>(random() % 1000) / 777;
      const QuantizedTensor weight = from_int8_rows(codes.data(), scales, in);
      EXPECT_EQ(weight.format, Format::kInt8);
      EXPECT_EQ(weight.activations, ActivationFormat::kNone);
      const Tensor dense = dequantized(weight);
      for (int64_t i = 0; i < in * out; ++i) {
        ASSERT_EQ(dense.data<float>()[i],
                  scales[static_cast<size_t>(i / in)] * static_cast<float>(codes[static_cast<size_t>(i)]))
            << i;
      }
    }
  }
}

TEST(Int8, AGridCoversItsRangeAndZero) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal(1, 4);
  for (int i = 0; i < 500; ++i) {
    float low = normal(random), high = normal(random);
    if (low > high) std::swap(low, high);
    for (const bool is_symmetric : {true, false}) {
      const InputGrid grid = input_grid(low, high, is_symmetric);
      EXPECT_EQ(decode_input(encode_input(0, grid), grid), 0);
      float worst = 0;
      for (int step = 0; step <= 1000; ++step) {
        const float value = low + (high - low) * static_cast<float>(step) / 1000;
        worst = std::max(worst, std::abs(decode_input(encode_input(value, grid), grid) - value));
      }
      EXPECT_LE(worst, grid.scale * 0.5001f) << low << " " << high;
      EXPECT_GE(worst, grid.scale * 0.3f);
      EXPECT_TRUE(!is_symmetric || grid.zero_point == 0);
    }
  }
  EXPECT_EQ(input_grid(0, 0, true), (InputGrid{std::numeric_limits<float>::epsilon(), 0}));
  EXPECT_EQ(input_grid(0, 0, false).zero_point, -128);
}

TEST(Int8, TiesOfInputsGoToEvenAndOthersAreClamped) {
  const InputGrid grid{0.5f, 3};
  const std::pair<float, int> cases[] = {{0.25f, 3},  {0.75f, 5},    {-0.25f, 3},   {-0.75f, 1},
                                         {1e9f, 127}, {-1e9f, -128}, {62.25f, 127}, {-65.5f, -128}};
  for (const auto& [value, code] : cases) EXPECT_EQ(encode_input(value, grid), code) << value;
}

TEST(Int8, OffsetsAreTheZeroPointTimesTheSumOfCodes) {
  std::mt19937 random(3);
  for (const int64_t in : {1, 5, 64, 130}) {
    std::vector<int8_t> codes(static_cast<size_t>(3 * in));
    for (int8_t& code : codes) code = static_cast<int8_t>(random());
    QuantizedTensor weight = from_int8_rows(codes.data(), std::vector<float>{1, 2, 3}, in);
    set_static_inputs(weight, {0.5f, -17});
    EXPECT_EQ(weight.activations, ActivationFormat::kInt8Static);
    for (int64_t row = 0; row < 3; ++row) {
      int sum = 0;
      for (int64_t column = 0; column < in; ++column) sum += codes[static_cast<size_t>(row * in + column)];
      EXPECT_EQ(weight.input_offsets.data<int32_t>()[row], -17 * sum);
    }
    set_static_inputs(weight, {0.5f, 0});
    EXPECT_TRUE(weight.input_offsets.empty());
    for (const InputGrid bad : {InputGrid{0, 0}, {-1, 0}, {kInfinity, 0}, {std::nanf(""), 0}, {1, 128}})
      testing::error_of(ErrorCode::kInvalidArgument, [&] { set_static_inputs(weight, bad); });
  }
}

}  // namespace
}  // namespace lowbit
