#include "format/codebook.h"

#include "format/nested_scales.h"
#include "support.h"

#include <cmath>
#include <gtest/gtest.h>
#include <random>

namespace lowbit {
namespace {

constexpr Format kFormats[] = {Format::kNf4, Format::kFp4};

std::string hex_of(Format format, const std::vector<float>& values) {
  std::vector<uint8_t> codes(values.size());
  encode_group(levels_of(format), values, codes.data(), 1);
  std::string text;
  for (const uint8_t code : codes) text += "0123456789abcdef"[code];
  return text;
}

// Vectors computed from the definitions of the origin (research, golden vectors for unit tests).
TEST(Codebook, KnownValuesHaveKnownCodes) {
  std::vector<float> values;
  for (int i = 0; i < 64; ++i) values.push_back(static_cast<float>(i - 32) / 32);
  EXPECT_EQ(hex_of(Format::kNf4, values), "000001111111122222333344455566677788999aaabbbccccddddeeeeeeeffff");
  EXPECT_EQ(hex_of(Format::kFp4, values), "bbbbbbaaaaaaaadddddccccfffeeee9901166667774444555552222222233333");
}

TEST(Codebook, EveryCodeIsTheNearestOfItsOwnValue) {
  for (const Format format : kFormats) {
    const Codebook codebook = codebook_of(format);
    for (int code = 0; code < 16; ++code) {
      const bool is_negative_zero = format == Format::kFp4 && code == 8;
      EXPECT_EQ(nearest_code(levels_of(format), codebook[static_cast<size_t>(code)]),
                is_negative_zero ? 0 : code);
    }
  }
}

// Against a search over all values; near the middle of two, where the printed constants of fp4 are short of
// it and ties have a rule of their own, either.
TEST(Codebook, NoOtherValueIsNearer) {
  for (const Format format : kFormats) {
    const Codebook codebook = codebook_of(format);
    for (int i = -40000; i <= 40000; ++i) {
      const float x = static_cast<float>(i) / 40000;
      double least = 9;
      for (const float value : codebook) least = std::min(least, std::abs(double{value} - double{x}));
      const float found = codebook[static_cast<size_t>(nearest_code(levels_of(format), x))];
      EXPECT_LE(std::abs(double{found} - double{x}), least + 3e-7) << x;
    }
  }
}

TEST(Codebook, TiesGoToTheLowerValueOrTheSmallerMagnitude) {
  const Codebook nf4 = codebook_of(Format::kNf4);
  for (int code = 0; code < 15; ++code) {
    const float middle = (nf4[static_cast<size_t>(code)] + nf4[static_cast<size_t>(code) + 1]) / 2;
    EXPECT_EQ(nearest_code(levels_of(Format::kNf4), middle), code);
    EXPECT_EQ(nearest_code(levels_of(Format::kNf4), std::nextafter(middle, 2.0f)), code + 1);
  }
  EXPECT_EQ(nearest_code(levels_of(Format::kFp4), 0.0859375f), 1);
  EXPECT_EQ(nearest_code(levels_of(Format::kFp4), -0.0859375f), 9);
  EXPECT_EQ(nearest_code(levels_of(Format::kFp4), std::nextafter(0.0859375f, 1.0f)), 6);
  EXPECT_EQ(nearest_code(levels_of(Format::kFp4), -0.002f), 8);
  EXPECT_EQ(nearest_code(levels_of(Format::kFp4), -0.0f), 0);
}

TEST(Codebook, GroupsHaveTheCodesOfTheirValuesForEveryLengthAndStride) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (const Format format : kFormats) {
    for (const size_t count : {size_t{1}, size_t{3}, size_t{63}, size_t{64}, size_t{65}, size_t{200}}) {
      for (const int64_t stride : {1, 3}) {
        std::vector<float> values(count);
        for (float& value : values) value = normal(random);
        std::vector<uint8_t> codes(count * static_cast<size_t>(stride));
        const float scale = encode_group(levels_of(format), values, codes.data(), stride);
        for (size_t i = 0; i < count; ++i) {
          EXPECT_EQ(codes[i * static_cast<size_t>(stride)],
                    nearest_code(levels_of(format), values[i] * (1 / scale)))
              << i;
        }
      }
    }
  }
}

TEST(Codebook, OddGroupsHaveDefinedCodes) {
  for (const Format format : kFormats) {
    const int zero = format == Format::kNf4 ? 7 : 0;
    std::vector<uint8_t> codes(4, 99);
    EXPECT_EQ(encode_group(levels_of(format), std::vector<float>(4, 0.0f), codes.data(), 1), 0.0f);
    EXPECT_EQ(codes, std::vector<uint8_t>(4, static_cast<uint8_t>(zero)));
    EXPECT_EQ(encode_group(levels_of(format), std::vector<float>{1e-42f, -1e-42f, 0, 0}, codes.data(), 1),
              1e-42f);
    EXPECT_EQ(codes[2], zero);
    EXPECT_EQ(encode_group(levels_of(format), std::vector<float>{-3e38f, 3e38f, 0, 0}, codes.data(), 1),
              3e38f);
    EXPECT_EQ(codebook_of(format)[codes[0]], -1.0f);
    EXPECT_EQ(codebook_of(format)[codes[1]], 1.0f);
    EXPECT_EQ(nearest_code(levels_of(format), NAN), zero);
  }
}

// Means over a normal 1024 x 1024 matrix as the origin's own tests have them; too good would be a fault too.
TEST(Codebook, MeanErrorsAreThoseOfTheOrigin) {
  struct Anchor {
    int group_size;
    double nf4_absolute, nf4_relative, fp4_absolute, fp4_relative;
  };
  constexpr Anchor kAnchors[] = {
      {32, 0.067746, 0.189726, 0.088925, 0.242443},   {64, 0.072798, 0.203339, 0.096543, 0.260125},
      {128, 0.076831, 0.215237, 0.102969, 0.275817},  {256, 0.080337, 0.226105, 0.108684, 0.289831},
      {512, 0.083547, 0.236079, 0.114115, 0.302881},  {1024, 0.086610, 0.245370, 0.119333, 0.315000},
      {2048, 0.089592, 0.254163, 0.124556, 0.326607}, {4096, 0.092547, 0.262473, 0.129536, 0.337169}};
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> values(1 << 20);
  for (float& value : values) value = normal(random);
  std::vector<uint8_t> codes(4096);
  for (const Anchor& anchor : kAnchors) {
    for (const Format format : kFormats) {
      const Codebook codebook = codebook_of(format);
      const size_t size = static_cast<size_t>(anchor.group_size);
      double absolute = 0, relative = 0;
      for (size_t first = 0; first < values.size(); first += size) {
        const float scale =
            encode_group(levels_of(format), std::span(values).subspan(first, size), codes.data(), 1);
        for (size_t i = 0; i < size; ++i) {
          const double value = values[first + i],
                       error = std::abs(decode_code(codebook, codes[i], scale) - value);
          absolute += error;
          relative += error / (std::abs(value) + 1e-8);
        }
      }
      const double count = static_cast<double>(values.size());
      const bool is_nf4 = format == Format::kNf4;
      EXPECT_NEAR(absolute / count, is_nf4 ? anchor.nf4_absolute : anchor.fp4_absolute, 0.0006) << size;
      EXPECT_NEAR(relative / count, is_nf4 ? anchor.nf4_relative : anchor.fp4_relative, 0.0015) << size;
    }
  }
}

void expect_entries(const DynamicMap& map, std::initializer_list<std::pair<int, float>> entries) {
  for (const auto& [index, value] : entries)
    EXPECT_NEAR(map[static_cast<size_t>(index)], value, std::abs(value) * 2e-7) << index;
}

TEST(NestedScales, MapsHaveTheirPublishedEntries) {
  expect_entries(dynamic_map_signed(), {{0, -0.992968738f},
                                        {1, -0.978906274f},
                                        {62, -0.12109375f},
                                        {64, -0.0985937491f},
                                        {111, -0.00128124992f},
                                        {119, -0.000156250011f},
                                        {126, -5.50000038e-07f},
                                        {127, 0.0f},
                                        {128, 5.50000038e-07f},
                                        {129, 3.25000019e-06f},
                                        {135, 0.000156250011f},
                                        {150, 0.00521875033f},
                                        {190, 0.0985937491f},
                                        {220, 0.514843762f},
                                        {254, 0.992968738f},
                                        {255, 1.0f}});
  expect_entries(dynamic_map_unsigned(), {{0, 0.0f},
                                          {1, 3.25e-07f},
                                          {2, 7.75e-07f},
                                          {62, 0.00985937472f},
                                          {64, 0.0121093756f},
                                          {127, 0.103515625f},
                                          {190, 0.546484351f},
                                          {254, 0.996484399f},
                                          {255, 1.0f}});
  double total = 0;
  for (const float value : dynamic_map_unsigned()) total += double{value};
  EXPECT_NEAR(total, 75.10526, 1e-5);
}

TEST(NestedScales, EveryEntryIsItsOwnNearestAndTiesGoDown) {
  for (const DynamicMap* map : {&dynamic_map_signed(), &dynamic_map_unsigned()}) {
    for (int i = 0; i < 256; ++i) {
      EXPECT_EQ(nearest_entry(*map, (*map)[static_cast<size_t>(i)]), i);
      if (i == 255) continue;
      const float middle = ((*map)[static_cast<size_t>(i)] + (*map)[static_cast<size_t>(i) + 1]) / 2;
      EXPECT_EQ(nearest_entry(*map, middle), i);
      EXPECT_EQ(nearest_entry(*map, std::nextafter(middle, 2.0f)), i + 1);
    }
    EXPECT_EQ(nearest_entry(*map, -2.0f), 0);
    EXPECT_EQ(nearest_entry(*map, 2.0f), 255);
  }
}

TEST(NestedScales, KnownScalesHaveKnownCodes) {
  std::vector<float> scales;
  for (int i = 0; i < 300; ++i) scales.push_back(static_cast<float>(1 + i % 7) / 64);
  const NestedScales found = nested(scales, mean_of(scales));
  EXPECT_FLOAT_EQ(found.offset, 0.0623437501f);
  ASSERT_EQ(found.outer_scales.size(), 2u);
  for (const float outer : found.outer_scales) EXPECT_FLOAT_EQ(outer, 0.0470312499f);
  const std::vector<uint8_t> first(found.codes.begin(), found.codes.begin() + 8),
      second(found.codes.begin() + 256, found.codes.begin() + 264);
  EXPECT_EQ(first, (std::vector<uint8_t>{0, 24, 47, 147, 207, 231, 255, 0}));
  EXPECT_EQ(second, (std::vector<uint8_t>{207, 231, 255, 0, 24, 47, 147, 207}));
  const std::vector<float> back = unnested(found);
  const float expected[] = {0.0156431906f, 0.0315162353f, 0.0467279032f, 0.0625098273f,
                            0.0779595971f, 0.0938326418f, 0.109375f};
  for (size_t i = 0; i < 7; ++i) EXPECT_FLOAT_EQ(back[i], expected[i]);
}

}  // namespace
}  // namespace lowbit
