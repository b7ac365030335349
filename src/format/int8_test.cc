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
  for (const int64_t in : {1, 2, 3, 4, 7, 64, 129}) {
    for (const int64_t out : {1, 15, 16, 33}) {
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

}  // namespace
}  // namespace lowbit
