#include "format/affine.h"
#include "format/bits.h"
#include "format/weight.h"
#include "support.h"
#include "tensor/half.h"

#include <gtest/gtest.h>
#include <random>

namespace lowbit {
namespace {

TEST(Bits, WordsMatchTheTestVectorsOfTheFileFormat) {
  auto packed = [](std::vector<uint8_t> codes, int bits) {
    std::vector<uint32_t> words(static_cast<size_t>(packed_words(static_cast<int64_t>(codes.size()), bits)));
    pack_bits(codes.data(), 1, static_cast<int64_t>(codes.size()), bits, words.data(), 1);
    return words;
  };
  EXPECT_EQ(packed({0, 1, 2, 3, 4, 5, 6, 7}, 4), (std::vector<uint32_t>{0x76543210}));
  EXPECT_EQ(packed({0x10, 0x20, 0x30, 0x40}, 8), (std::vector<uint32_t>{0x40302010}));
  EXPECT_EQ(packed({0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3}, 2), (std::vector<uint32_t>{0xE4E4E4E4}));
  std::vector<uint8_t> three;
  for (int i = 0; i < 32; ++i) three.push_back(static_cast<uint8_t>(i % 8));
  EXPECT_EQ(packed(three, 3), (std::vector<uint32_t>{0x88FAC688, 0xC688FAC6, 0xFAC688FA}));
}

TEST(Bits, UnpackUndoesPackForEveryWidthLengthAndStride) {
  std::mt19937 random(1);
  for (int bits : {2, 3, 4, 8}) {
    for (int64_t count = 1; count < 100; ++count) {
      for (int64_t stride : {1, 3}) {
        std::vector<uint8_t> codes(static_cast<size_t>(count * stride)), back(codes.size());
        for (auto& code : codes) code = static_cast<uint8_t>(random() & ((1u << bits) - 1));
        std::vector<uint32_t> words(static_cast<size_t>(packed_words(count, bits) * stride), 0xdeadbeef);
        pack_bits(codes.data(), stride, count, bits, words.data(), stride);
        unpack_bits(words.data(), stride, count, bits, back.data(), stride);
        for (int64_t i = 0; i < count; ++i) {
          ASSERT_EQ(back[static_cast<size_t>(i * stride)], codes[static_cast<size_t>(i * stride)])
              << bits << " " << count;
        }
      }
    }
  }
}

TEST(Affine, DecodeOfEncodeIsWithinHalfStepInsideTheRange) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (int bits : {2, 3, 4, 8}) {
    for (bool sym : {true, false}) {
      const AffineOptions options{bits, 32, sym};
      const int max_code = (1 << bits) - 1;
      double worst = 0;
      for (int repeat = 0; repeat < 200; ++repeat) {
        float low = 0, high = 0;
        std::vector<float> values(32);
        for (float& value : values) {
          value = normal(random) * 0.02f;
          low = std::min(low, value);
          high = std::max(high, value);
        }
        const AffineGrid grid = affine_grid(low, high, options);
        EXPECT_EQ(grid.scale, f16_to_float(float_to_f16(grid.scale)));
        for (float value : values) {
          const double steps =
              std::abs(decode_code(nearest_code(value, grid, max_code), grid) - value) / grid.scale;
          worst = std::max(worst, steps);
        }
      }
      // The largest values of a symmetric group lie half a step outside of the top code and are cut to it;
      // the asymmetric zero_point is rounded, which moves the ends by up to half a step. Too good would be a
      // fault too.
      EXPECT_GT(worst, 0.49) << bits << sym;
      EXPECT_LT(worst, 1.01) << bits << sym;
    }
  }
}

TEST(Affine, AllPositiveSymmetricGroupsKeepTheirRange) {
  const AffineOptions options{4, 16, true};
  const AffineGrid grid = affine_grid(0.5f, 1.0f, options);
  EXPECT_EQ(grid.zero_point, 8);
  EXPECT_NEAR(decode_code(nearest_code(1.0f, grid, 15), grid), 1.0f, grid.scale);
}

TEST(Affine, OddValuesHaveDefinedCodes) {
  for (bool sym : {true, false}) {
    const AffineOptions options{4, 16, sym};
    EXPECT_EQ(affine_grid(0, 0, options).scale, 1.0f);
    const AffineGrid tiny = affine_grid(-1e-30f, 1e-30f, options);
    EXPECT_EQ(tiny.scale, 0x1p-24f);
    const AffineGrid huge = affine_grid(-3e38f, 3e38f, options);
    EXPECT_EQ(huge.scale, 65504.0f);
    EXPECT_EQ(huge.zero_point, sym ? 8 : 15);
    EXPECT_EQ(nearest_code(NAN, tiny, 15), tiny.zero_point);
    EXPECT_EQ(nearest_code(INFINITY, tiny, 15), 15);
    EXPECT_EQ(nearest_code(-INFINITY, tiny, 15), 0);
  }
}

TEST(Affine, OptionsAreValidated) {
  testing::error_of(ErrorCode::kInvalidArgument, [] { validate(AffineOptions{5, 128, true}); });
  testing::error_of(ErrorCode::kInvalidArgument, [] { validate(AffineOptions{4, 0, true}); });
  testing::error_of(ErrorCode::kInvalidArgument, [] { validate(AffineOptions{4, -2, true}); });
}

TEST(Weight, DequantizedFollowsGroupsZeroPointsAndColumnOrder) {
  QuantizedTensor weight;
  weight.bits = 4;
  weight.group_size = 8;
  weight.out_features = 2;
  weight.in_features = 12;  // a short last group, and a last word that is half full
  weight.codes = Tensor::zeros(DType::kI32, {2, 2});
  weight.scales = Tensor::zeros(DType::kF16, {2, 2});
  weight.zero_points = Tensor::zeros(DType::kU8, {2, 2});
  weight.column_order = Tensor::zeros(DType::kI32, {12});
  for (int row = 0; row < 2; ++row) {
    std::vector<uint8_t> codes;
    for (int position = 0; position < 12; ++position)
      codes.push_back(static_cast<uint8_t>((position + row) % 16));
    pack_bits(codes.data(), 1, 12, 4, weight.codes.mutable_data<uint32_t>() + row, 2);
  }
  for (int i = 0; i < 4; ++i) {
    weight.scales.mutable_data<uint16_t>()[i] = float_to_f16(0.5f * static_cast<float>(i + 1));
    weight.zero_points.mutable_data<uint8_t>()[i] = static_cast<uint8_t>(i);
  }
  for (int position = 0; position < 12; ++position)
    weight.column_order.mutable_data<int32_t>()[position] = 11 - position;
  const Tensor dense = dequantized(weight);
  EXPECT_EQ(dense.data<float>()[11], 0.5f * 0);             // row 0, position 0
  EXPECT_EQ(dense.data<float>()[12 + 11], 1.0f * (1 - 1));  // row 1, position 0: scale [0][1], zero 1
  EXPECT_EQ(dense.data<float>()[1], 1.5f * (10 - 2));       // row 0, position 10: group 1
  EXPECT_EQ(dense.data<float>()[12 + 0], 2.0f * (12 - 3));  // row 1, position 11
}

}  // namespace
}  // namespace lowbit
