// fp8 and log2: every code, and the nearest of any value against a search in double.
#include "base/json.h"
#include "format/codebook.h"
#include "support.h"

#include <bit>
#include <cmath>
#include <gtest/gtest.h>
#include <random>

namespace lowbit {
namespace {

struct Named {
  std::string name;
  Format format;
  Levels levels;
};

std::vector<Named> all_levels() {
  std::vector<Named> all = {{"nf4", Format::kNf4, levels_of(Format::kNf4)},
                            {"fp4", Format::kFp4, levels_of(Format::kFp4)},
                            {"fp8", Format::kFp8, levels_of(Format::kFp8)},
                            {"fp8_e5m2", Format::kFp8E5m2, levels_of(Format::kFp8E5m2)}};
  for (int bits = 3; bits <= 8; ++bits) {
    for (const float base : {2.0f, 1.5f, 1.0905077f, bits < 7 ? 16.0f : 1.01f})
      all.push_back(
          {fmt::format("log2 {} bits base {}", bits, base), Format::kLog2, log_levels({bits, base})});
  }
  return all;
}

// From the definition: sign, exponent, mantissa.
double fp8_value(int code, int mantissa_bits) {
  const int bias = mantissa_bits == 3 ? 7 : 15, exponent = (code & 127) >> mantissa_bits,
            mantissa = code & ((1 << mantissa_bits) - 1);
  const double fraction = mantissa / std::pow(2.0, mantissa_bits);
  const double magnitude =
      exponent == 0 ? std::pow(2.0, 1 - bias) * fraction : std::pow(2.0, exponent - bias) * (1 + fraction);
  return code & 128 ? -magnitude : magnitude;
}

TEST(Fp8, EveryCodeMeansWhatTheDefinitionSays) {
  const Codebook e4m3 = codebook_of(Format::kFp8), e5m2 = codebook_of(Format::kFp8E5m2);
  for (int code = 0; code < 256; ++code) {
    const size_t at = static_cast<size_t>(code);
    if ((code & 127) == 127) {
      EXPECT_TRUE(std::isnan(e4m3[at])) << code;
    } else {
      EXPECT_EQ(double{e4m3[at]}, fp8_value(code, 3)) << code;
    }
    if ((code & 127) == 124) {
      EXPECT_TRUE(std::isinf(e5m2[at]) && std::signbit(e5m2[at]) == (code > 127)) << code;
    } else if ((code & 127) > 124) {
      EXPECT_TRUE(std::isnan(e5m2[at])) << code;
    } else {
      EXPECT_EQ(double{e5m2[at]}, fp8_value(code, 2)) << code;
    }
  }
  EXPECT_EQ(levels_of(Format::kFp8).largest, 448.0f);
  EXPECT_EQ(levels_of(Format::kFp8E5m2).largest, 57344.0f);
  EXPECT_EQ(e4m3[1], std::ldexp(1.0f, -9));
  EXPECT_EQ(e5m2[1], std::ldexp(1.0f, -16));
}

TEST(Fp8, OddCodesAreFoundWhereverTheyStand) {
  for (const Format format : {Format::kFp8, Format::kFp8E5m2}) {
    std::vector<uint8_t> codes(10000);
    for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i % 124 + (i % 2) * 128);
    ASSERT_EQ(first_odd_code(format, codes), codes.size());
    for (const size_t place : {size_t{0}, size_t{4095}, size_t{4096}, codes.size() - 1}) {
      for (int code = 0; code < 256; ++code) {
        std::vector<uint8_t> changed = codes;
        changed[place] = static_cast<uint8_t>(code);
        const bool is_odd = !std::isfinite(codebook_of(format)[static_cast<size_t>(code)]);
        EXPECT_EQ(first_odd_code(format, changed), is_odd ? place : codes.size()) << code;
      }
    }
  }
  const uint8_t all[] = {0x7f, 0xff};
  EXPECT_EQ(first_odd_code(Format::kNf4, all), 2u);
}

TEST(Log2, EveryCodeMeansWhatTheDefinitionSays) {
  for (int bits = 3; bits <= 8; ++bits) {
    for (const double base : {2.0, 1.1892071150027210}) {
      const Tensor codebook = log_codebook({bits, static_cast<float>(base)});
      const int half = 1 << (bits - 1);
      ASSERT_EQ(codebook.element_count(), codebook_entries(bits));
      for (int code = 0; code < codebook.element_count(); ++code) {
        const int magnitude = code % half;
        const double expected = magnitude == 0 || code >= 2 * half
                                    ? 0
                                    : std::pow(double{static_cast<float>(base)}, magnitude - (half - 1));
        EXPECT_NEAR(codebook.data<float>()[code] / (expected == 0 ? 1 : expected),
                    expected == 0 ? 0
                    : code < half ? 1
                                  : -1,
                    6e-8)
            << bits << " " << code;
      }
      EXPECT_EQ(codebook.data<float>()[half - 1], 1.0f);
    }
  }
  EXPECT_EQ(log_codebook({4, 2}).data<float>()[1], 1 / 64.0f);
}

TEST(Log2, RefusesWhatIsNoFormat) {
  auto refusal = [](const LogOptions& options) {
    return testing::error_of(ErrorCode::kInvalidArgument, [&] { log_codebook(options); });
  };
  EXPECT_NE(refusal({2, 2}).find("3 to 8"), std::string::npos);
  EXPECT_NE(refusal({9, 2}).find("3 to 8"), std::string::npos);
  for (const float base : {1.0f, 0.5f, 17.0f, NAN})
    EXPECT_NE(refusal({4, base}).find("log_base"), std::string::npos) << base;
  EXPECT_NE(refusal({8, 2.01f}).find("at most 2:"), std::string::npos);
}

TEST(Levels, ValuesRiseAndCodesAreTheirs) {
  for (const Named& named : all_levels()) {
    const Levels& levels = named.levels;
    SCOPED_TRACE(named.name);
    for (int i = 0; i < levels.count; ++i) {
      EXPECT_EQ(levels.by_code[levels.codes[i]], levels.values[i]);
      if (named.format == Format::kFp4 && i == 7) continue;  // the 0 of small values below 0
      EXPECT_EQ(nearest_code(levels, levels.values[i]), levels.codes[i]);
      if (i + 1 == levels.count) continue;
      EXPECT_LT(levels.values[i], levels.values[i + 1]);
      EXPECT_LE(levels.values[i], levels.limits[i]);
      EXPECT_LT(levels.limits[i], levels.values[i + 1]);
    }
    EXPECT_EQ(levels.by_code[levels.code_of_zero], 0.0f);
    EXPECT_FALSE(std::signbit(levels.by_code[levels.code_of_zero]));
    EXPECT_EQ(nearest_code(levels, NAN), levels.code_of_zero);
    EXPECT_EQ(nearest_code(levels, -0.0f), levels.code_of_zero);
    EXPECT_EQ(levels.by_code[nearest_code(levels, INFINITY)], levels.largest);
    EXPECT_EQ(levels.by_code[nearest_code(levels, -INFINITY)], -levels.largest);
  }
}

// At the limits, at both neighbours of each, and at values between. nf4 and fp4 have limits as bitsandbytes
// rounds and prints them, so these may be a little off.
TEST(Levels, NoOtherValueIsNearer) {
  std::mt19937 random(5);
  for (const Named& named : all_levels()) {
    const Levels& levels = named.levels;
    const double slack = named.format == Format::kNf4 ? 1e-7 : named.format == Format::kFp4 ? 7e-7 : 0;
    std::vector<float> xs;
    for (int i = 0; i + 1 < levels.count; ++i) {
      const float limit = levels.limits[i];
      xs.insert(xs.end(), {limit, std::nextafter(limit, -INFINITY), std::nextafter(limit, INFINITY)});
      for (int k = 0; k < 20; ++k)
        xs.push_back(std::uniform_real_distribution<float>(levels.values[i], levels.values[i + 1])(random));
    }
    for (const float x : xs) {
      double least = INFINITY;
      for (int i = 0; i < levels.count; ++i)
        least = std::min(least, std::abs(double{levels.values[i]} - double{x}));
      const double found = std::abs(double{levels.by_code[nearest_code(levels, x)]} - double{x});
      ASSERT_LE(found, least + slack) << named.name << " at " << x;
    }
  }
}

// Of floats of all exponents, and beside all limits: as many limits lie below as the search says.
TEST(Levels, TheSearchByBucketsCountsTheLimitsBelow) {
  int found_by_buckets = 0;
  for (const Named& named : all_levels()) {
    const Levels& levels = named.levels;
    if (levels.count <= 16) continue;
    found_by_buckets += levels.buckets > 0;
    std::vector<float> xs = {INFINITY, -INFINITY, 0.0f, -0.0f};
    for (uint64_t bits = 0; bits < 0x100000000; bits += 99991) {
      const float x = std::bit_cast<float>(static_cast<uint32_t>(bits));
      if (!std::isnan(x)) xs.push_back(x);
    }
    for (int i = 0; i + 1 < levels.count; ++i) {
      const float limit = levels.limits[i];
      xs.insert(xs.end(), {limit, std::nextafter(limit, -INFINITY), std::nextafter(limit, INFINITY)});
    }
    for (const float x : xs) {
      const auto below = std::lower_bound(levels.limits, levels.limits + levels.count - 1, x) - levels.limits;
      ASSERT_EQ(nearest_code(levels, x), levels.codes[below]) << named.name << " at " << x;
    }
  }
  EXPECT_GT(found_by_buckets, 15);
}

TEST(Levels, TiesGoToTheEvenCodeWithFp8AndToTheSmallerMagnitudeWithLog2) {
  int64_t ties = 0;
  for (const Named& named : all_levels()) {
    if (named.format == Format::kNf4 || named.format == Format::kFp4) continue;
    const Levels& levels = named.levels;
    for (int i = 0; i + 1 < levels.count; ++i) {
      const double middle = (double{levels.values[i]} + double{levels.values[i + 1]}) / 2;
      if (double{static_cast<float>(middle)} != middle) continue;  // no float is as near to both
      const int low = levels.codes[i], high = levels.codes[i + 1],
                found = nearest_code(levels, static_cast<float>(middle));
      const bool goes_low = named.format == Format::kLog2
                                ? std::abs(levels.values[i]) < std::abs(levels.values[i + 1])
                                : low % 2 == 0;
      ASSERT_EQ(found, goes_low ? low : high) << named.name << " at " << middle;
      ++ties;
    }
  }
  EXPECT_GT(ties, 500);
}

TEST(Levels, GroupsHaveTheirLargestMagnitudeAsScale) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  for (const Named& named : all_levels()) {
    SCOPED_TRACE(named.name);
    std::vector<float> values(131);
    for (float& value : values) value = normal(random);
    values[17] = -9;
    std::vector<uint8_t> codes(values.size() * 2);
    const float scale = encode_group(named.levels, values, codes.data(), 2);
    EXPECT_EQ(scale, 9 / named.levels.largest);
    EXPECT_NEAR(decode_code(named.levels.by_code, codes[34], scale), -9, 1e-5);
    for (size_t i = 0; i < values.size(); ++i)
      EXPECT_EQ(codes[2 * i], nearest_code(named.levels, values[i] * (1 / scale))) << i;
    EXPECT_EQ(encode_group(named.levels, std::vector<float>(3, 0.0f), codes.data(), 1), 0.0f);
    EXPECT_EQ(codes[2], named.levels.code_of_zero);
    EXPECT_TRUE(std::isnan(encode_group(named.levels, std::vector<float>{1, NAN}, codes.data(), 1)));
  }
}

// E|x - q(x)| of x normal, q the nearest of `levels` times a scale, by the trapezoid rule in double.
double expected_error(const Levels& levels, double scale) {
  double sum = 0;
  constexpr int kSteps = 40000;
  for (int i = -kSteps; i <= kSteps; ++i) {
    const double x = 8.0 * i / kSteps;
    double least = INFINITY;
    for (int k = 0; k < levels.count; ++k)
      least = std::min(least, std::abs(x - double{levels.values[k]} * scale));
    sum += least * std::exp(-x * x / 2) * 8.0 / kSteps;
  }
  return sum / std::sqrt(2 * M_PI);
}

// Mean error of a normal matrix whose rows share a scale: what the integral over the normal density gives for
// that scale, and no less.
TEST(Levels, MeanErrorsAreThoseOfTheNormalDensity) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> values(1 << 18);
  for (float& value : values) value = std::clamp(normal(random), -4.5f, 4.5f);
  values[0] = 4.5f;
  std::vector<uint8_t> codes(values.size());
  const std::vector<Named> some = {{"fp8", Format::kFp8, levels_of(Format::kFp8)},
                                   {"fp8_e5m2", Format::kFp8E5m2, levels_of(Format::kFp8E5m2)},
                                   {"log2 3", Format::kLog2, log_levels({3, 2})},
                                   {"log2 4", Format::kLog2, log_levels({4, 2})},
                                   {"log2 5", Format::kLog2, log_levels({5, 1.41421356f})},
                                   {"log2 8", Format::kLog2, log_levels({8, 1.0905077f})}};
  for (const Named& named : some) {
    const float scale = encode_group(named.levels, values, codes.data(), 1);
    ASSERT_EQ(scale, 4.5f / named.levels.largest);
    double error = 0;
    for (size_t i = 0; i < values.size(); ++i)
      error += std::abs(double{decode_code(named.levels.by_code, codes[i], scale)} - double{values[i]});
    const double expected = expected_error(named.levels, double{scale});
    EXPECT_NEAR(error / static_cast<double>(values.size()) / expected, 1, 0.01) << named.name;
  }
}

TEST(FlatCodes, GoThereAndBack) {
  std::mt19937 random(3);
  for (const auto& [out, in] : {std::pair<int64_t, int64_t>{5, 128}, {64, 512}, {131, 576}}) {
    std::vector<uint8_t> bytes(static_cast<size_t>(out * in / 2));
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    std::vector<float> scales(bytes.size() / 32);
    for (size_t i = 0; i < scales.size(); ++i) scales[i] = static_cast<float>(i + 1);
    const FlatCodes codes = {Format::kNf4, 64, out, in, bytes.data()};
    const auto weight = from_flat_codes(codes, scales);
    ASSERT_TRUE(weight);
    const Tensor back = flat_bytes(*weight);
    ASSERT_EQ(back.byte_count(), bytes.size());
    EXPECT_EQ(std::memcmp(back.bytes(), bytes.data(), bytes.size()), 0);
    EXPECT_EQ(flat_scales(*weight), scales);
    // And what a layer decodes is what the bytes say.
    const Tensor dense = dequantized(*weight), plain = dense_of(codes, scales);
    EXPECT_EQ(std::memcmp(dense.bytes(), plain.bytes(), plain.byte_count()), 0);
  }
}

}  // namespace
}  // namespace lowbit
