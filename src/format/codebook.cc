#include "format/codebook.h"

#include "base/fail.h"
#include "format/place_words.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

namespace lowbit {
namespace {

constexpr std::array<float, 16> kNf4 = {-1.0f,
                                        -0.6961928009986877f,
                                        -0.5250730514526367f,
                                        -0.39491748809814453f,
                                        -0.28444138169288635f,
                                        -0.18477343022823334f,
                                        -0.09105003625154495f,
                                        0.0f,
                                        0.07958029955625534f,
                                        0.16093020141124725f,
                                        0.24611230194568634f,
                                        0.33791524171829224f,
                                        0.44070982933044434f,
                                        0.5626170039176941f,
                                        0.7229568362236023f,
                                        1.0f};

// Bit 3 is the sign; the magnitudes over 12. Code 8, -0 by its bits, is stored as 0.
constexpr std::array<float, 16> kFp4 = {
    0.0f, 0.0625f / 12,  8.0f / 12,  1.0f,  4.0f / 12,  0.5f,  2.0f / 12,  0.25f,
    0.0f, -0.0625f / 12, -8.0f / 12, -1.0f, -4.0f / 12, -0.5f, -2.0f / 12, -0.25f};

// Between fp4's magnitudes, as bitsandbytes prints them, some digits short of the middle.
constexpr float kFp4Middles[] = {0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f,
                                 0.4166667f,  0.583333f,  0.8333333f};

// Bits of the exponent and of the mantissa, as IEEE 754 has them: exponent 0 is subnormal. With E4M3 only the
// last code of a sign is no number, with E5M2 all of the last exponent.
std::array<float, 256> fp8_codebook(int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1, last = (1 << exponent_bits) - 1;
  std::array<float, 256> values{};
  for (int code = 0; code < 256; ++code) {
    const int exponent = (code & 127) >> mantissa_bits, mantissa = code & ((1 << mantissa_bits) - 1);
    float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), 1 - bias - mantissa_bits)
                                    : std::ldexp(static_cast<float>(mantissa + (1 << mantissa_bits)),
                                                 exponent - bias - mantissa_bits);
    if (exponent_bits == 4 && (code & 127) == 127) magnitude = std::numeric_limits<float>::quiet_NaN();
    if (exponent_bits == 5 && exponent == last) {
      magnitude =
          mantissa == 0 ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
    }
    values[static_cast<size_t>(code)] = code < 128 ? magnitude : -magnitude;
  }
  return values;
}
const std::array<float, 256>& fp8_codebook(Format format) {
  static const std::array<float, 256> e4m3 = fp8_codebook(4, 3), e5m2 = fp8_codebook(5, 2);
  return format == Format::kFp8 ? e4m3 : e5m2;
}

// The greatest float that is nearer to `low` than to `high`, or as near where ties go there: `high` is the
// nearest of what is greater.
float limit_between(float low, float high, bool tie_goes_low) {
  const double middle = (double{low} + double{high}) / 2;
  float limit = static_cast<float>(middle);
  if (limit > middle || (limit == middle && !tie_goes_low))
    limit = std::nextafter(limit, -std::numeric_limits<float>::infinity());
  return limit;
}

float limit_of(Format format, const Levels& levels, int below) {
  const float low = levels.values[below], high = levels.values[below + 1];
  switch (format) {
    case Format::kNf4:
      return (low + high) / 2;  // in float, as bitsandbytes: ties by its own numbers
    case Format::kFp4:          // level 7 is the 0 of what is below it, level 8 that of the others
      if (below >= 8) return kFp4Middles[below - 8];
      if (below == 7) return std::nextafter(0.0f, -1.0f);
      return std::nextafter(-kFp4Middles[6 - below], -1.0f);  // so that a tie goes up, to 0
    case Format::kFp8:
    case Format::kFp8E5m2:
      return limit_between(low, high, levels.codes[below] % 2 == 0);
    case Format::kLog2:
      return limit_between(low, high, std::abs(low) < std::abs(high));
    case Format::kAffine:
    case Format::kInt8:
      break;
  }
  fail(ErrorCode::kInternal, "format {} has no codebook", format_name(format));
}

// The level of x: how many limits it lies above.
int level_of(const Levels& levels, float x) {
  int level = 0;
  for (int step = 128; step > 0; step /= 2) level += x > levels.limits[level + step - 1] ? step : 0;
  return level;
}

int32_t magnitude_bits(float x) { return std::bit_cast<int32_t>(x) & 0x7fffffff; }

// The widest buckets of which none has two limits.
void set_buckets(Levels& levels) {
  constexpr int kMantissa = 23, kInfinity = 0x7f800000;
  int32_t least = kInfinity, most = 0;
  for (int i = 0; i + 1 < levels.count; ++i) {
    const int32_t bits = magnitude_bits(levels.limits[i]);
    if (bits > 0) least = std::min(least, bits);
    most = std::max(most, bits);
  }
  for (int shift = kMantissa; shift > 0; --shift) {
    const int first = least >> shift, buckets = (most >> shift) - first + 1;
    if (buckets > kMostBuckets) return;
    bool are_fine = true;
    for (int i = 0; i < 2 * buckets && are_fine; ++i) {
      const bool is_negative = i >= buckets;
      const int bucket = i % buckets, key = first + bucket;
      const int32_t begin = bucket == 0 ? 0 : key << shift,
                    end = bucket == buckets - 1 ? kInfinity : ((key + 1) << shift) - 1;
      const float a = std::bit_cast<float>(begin), b = std::bit_cast<float>(end);
      levels.starts[i] = level_of(levels, is_negative ? -b : a);
      are_fine = level_of(levels, is_negative ? -a : b) <= levels.starts[i] + 1;
    }
    if (!are_fine) continue;
    levels.bucket_shift = shift;
    levels.first_bucket = first;
    levels.buckets = buckets;
    return;
  }
}

Levels make_levels(Format format, Codebook codebook) {
  Levels levels;
  std::copy(codebook.begin(), codebook.end(), levels.by_code);
  std::vector<uint8_t> codes;
  for (size_t code = 0; code < codebook.size(); ++code) {
    // Only bitsandbytes' fp4 uses its second zero: for small values below 0.
    const bool is_unused = codebook[code] == 0 && codebook[0] == 0 && code > 0 && format != Format::kFp4;
    if (std::isfinite(codebook[code]) && !is_unused) codes.push_back(static_cast<uint8_t>(code));
  }
  std::sort(codes.begin(), codes.end(), [&](uint8_t a, uint8_t b) {
    return codebook[a] != codebook[b] ? codebook[a] < codebook[b] : a > b;
  });
  levels.count = static_cast<int>(codes.size());
  for (int i = 0; i < levels.count; ++i) {
    const uint8_t code = codes[static_cast<size_t>(i)];
    levels.codes[i] = code;
    levels.values[i] = codebook[code];
    if (codebook[code] == 0) levels.code_of_zero = code;
  }
  levels.largest = levels.values[levels.count - 1];
  if (format == Format::kFp8) levels.fp8_mantissa = 3;
  if (format == Format::kFp8E5m2) levels.fp8_mantissa = 2;
  for (int i = 0; i < 256; ++i) {
    levels.limits[i] =
        i + 1 < levels.count ? limit_of(format, levels, i) : std::numeric_limits<float>::infinity();
  }
  if (levels.count > 16) set_buckets(levels);
  return levels;
}

// Which level each x is nearest to, count: kAtOnce at most. Of few levels the limits that it lies above are
// counted, one at a time over values side by side, so that the compiler takes several at once. NaN: any
// level.
constexpr int64_t kAtOnce = 64;
void nearest_levels(const Levels& levels, const float* x, int64_t count, int32_t* above) {
  if (levels.buckets > 0) {
    for (int64_t i = 0; i < count; ++i) {
      const int key = (magnitude_bits(x[i]) >> levels.bucket_shift) - levels.first_bucket;
      const int bucket = std::clamp(key, 0, levels.buckets - 1) + (std::signbit(x[i]) ? levels.buckets : 0);
      const int32_t level = levels.starts[bucket];
      above[i] = level + (x[i] > levels.limits[level] ? 1 : 0);
    }
    return;
  }
  if (levels.count > 16) {
    for (int64_t i = 0; i < count; ++i) above[i] = level_of(levels, x[i]);
    return;
  }
  std::fill_n(above, count, 0);
  for (int level = 0; level + 1 < levels.count; ++level) {
    for (int64_t i = 0; i < count; ++i) above[i] += x[i] > levels.limits[level];
  }
}

}  // namespace

Codebook codebook_of(Format format) {
  switch (format) {
    case Format::kNf4:
      return kNf4;
    case Format::kFp4:
      return kFp4;
    case Format::kFp8:
    case Format::kFp8E5m2:
      return fp8_codebook(format);
    case Format::kAffine:
    case Format::kInt8:
    case Format::kLog2:
      break;
  }
  fail(ErrorCode::kInternal, "format {} has no codebook of its own", format_name(format));
}

Codebook codebook_of(const QuantizedTensor& weight) {
  if (weight.format != Format::kLog2) return codebook_of(weight.format);
  return {weight.codebook.data<float>(), size_t{1} << weight.bits};
}

const Levels& levels_of(Format format) {
  static const Levels nf4 = make_levels(Format::kNf4, kNf4), fp4 = make_levels(Format::kFp4, kFp4),
                      e4m3 = make_levels(Format::kFp8, codebook_of(Format::kFp8)),
                      e5m2 = make_levels(Format::kFp8E5m2, codebook_of(Format::kFp8E5m2));
  switch (format) {
    case Format::kNf4:
      return nf4;
    case Format::kFp4:
      return fp4;
    case Format::kFp8:
      return e4m3;
    case Format::kFp8E5m2:
      return e5m2;
    case Format::kAffine:
    case Format::kInt8:
    case Format::kLog2:
      break;
  }
  fail(ErrorCode::kInternal, "format {} has no codebook of its own", format_name(format));
}

void validate(const LogOptions& options) {
  if (options.bits < 3 || options.bits > 8)
    fail(ErrorCode::kInvalidArgument, "bits is {}, expected 3 to 8 with format log2", options.bits);
  const double least = std::pow(double{options.log_base}, 2 - (1 << (options.bits - 1)));
  if (!(options.log_base > 1 && options.log_base <= 16) || least < 0x1p-126) {
    fail(ErrorCode::kInvalidArgument,
         "log_base is {}, expected more than 1 and at most 16, and with {} bits at most {:.4g}: the least of "
         "{} powers is to be a float",
         options.log_base, options.bits, std::min(16.0, std::pow(2, 126.0 / ((1 << (options.bits - 1)) - 2))),
         (1 << (options.bits - 1)) - 1);
  }
}

Tensor log_codebook(const LogOptions& options) {
  validate(options);
  const int half = 1 << (options.bits - 1);
  Tensor codebook = Tensor::allocate(DType::kF32, {codebook_entries(options.bits)});
  float* values = codebook.mutable_data<float>();
  std::fill_n(values, codebook.element_count(), 0.0f);
  for (int i = 1; i < half; ++i) {
    values[i] = static_cast<float>(std::pow(double{options.log_base}, i - (half - 1)));
    values[half + i] = -values[i];
  }
  return codebook;
}

Levels log_levels(const LogOptions& options) {
  return make_levels(Format::kLog2, {log_codebook(options).data<float>(), size_t{1} << options.bits});
}

int nearest_code(const Levels& levels, float x) {
  if (std::isnan(x)) return levels.code_of_zero;
  int32_t level = 0;
  nearest_levels(levels, &x, 1, &level);
  return levels.codes[level];
}

size_t first_odd_code(Format format, std::span<const uint8_t> codes) {
  if (format != Format::kFp8 && format != Format::kFp8E5m2) return codes.size();
  const uint8_t first = format == Format::kFp8 ? 0x7f : 0x7c;
  constexpr size_t kAtOnce = 4096;  // without a branch, by vectors
  for (size_t begin = 0; begin < codes.size(); begin += kAtOnce) {
    const std::span<const uint8_t> some = codes.subspan(begin, std::min(kAtOnce, codes.size() - begin));
    uint8_t largest = 0;
    for (const uint8_t code : some) largest = std::max<uint8_t>(largest, code & 0x7f);
    if (largest < first) continue;
    for (size_t i = 0; i < some.size(); ++i)
      if ((some[i] & 0x7f) >= first) return begin + i;
  }
  return codes.size();
}

float encode_group(const Levels& levels, std::span<const float> values, uint8_t* codes, int64_t code_stride) {
  float scale = 0;
  bool is_finite = true;
  for (const float value : values) {
    scale = std::max(scale, std::abs(value));
    is_finite = is_finite && std::isfinite(value);
  }
  scale = is_finite ? scale / levels.largest : std::numeric_limits<float>::quiet_NaN();
  const float factor = 1 / std::max(scale, kLeastScale);
  const auto count = static_cast<int64_t>(values.size());
  for (int64_t first = 0; first < count; first += kAtOnce) {
    const int64_t some = std::min(kAtOnce, count - first);
    float x[kAtOnce];
    int32_t nearest[kAtOnce];
    for (int64_t i = 0; i < some; ++i) x[i] = values[static_cast<size_t>(first + i)] * factor;
    nearest_levels(levels, x, some, nearest);
    for (int64_t i = 0; i < some; ++i) codes[(first + i) * code_stride] = levels.codes[nearest[i]];
  }
  return scale;
}

static_assert(std::endian::native == std::endian::little);

constexpr int64_t kUnit = 8;  // codes of a word

std::optional<QuantizedTensor> room_for_flat_codes(const FlatCodes& codes) {
  const int64_t out = codes.out_features, in = codes.in_features;
  const int64_t group_size = std::gcd(in, codes.group_size);
  if (group_size % kUnit != 0) return std::nullopt;
  QuantizedTensor weight{
      .format = codes.format, .bits = 4, .group_size = group_size, .out_features = out, .in_features = in};
  weight.codes = Tensor::allocate(DType::kI32, {in / kUnit, out});
  weight.scales = Tensor::allocate(DType::kF32, {weight.groups(), out});
  return weight;
}

void place_flat_codes(const uint8_t* bytes, int64_t first, int64_t rows, QuantizedTensor& weight) {
  const int64_t words = weight.in_features / kUnit;
  place_words({first, rows, weight.out_features}, words, weight.codes.mutable_data<uint32_t>(),
              [&](int64_t row, int64_t word) {
                uint32_t four;  // bytes, each with its first code above
                std::memcpy(&four, bytes + (row * words + word) * 4, sizeof four);
                return (four & 0x0f0f0f0fu) << 4 | (four >> 4 & 0x0f0f0f0fu);
              });
}

void place_flat_scales(std::span<const float> scales, int64_t group_size, QuantizedTensor& weight) {
  const int64_t out = weight.out_features;
  uint32_t* const to = weight.scales.mutable_data<uint32_t>();
  place_words({0, out, out}, weight.groups(), to, [&](int64_t row, int64_t group) {
    const int64_t first = row * weight.in_features + group * weight.group_size;
    return std::bit_cast<uint32_t>(scales[static_cast<size_t>(first / group_size)]);
  });
}

std::optional<QuantizedTensor> from_flat_codes(const FlatCodes& codes, std::span<const float> scales) {
  std::optional<QuantizedTensor> weight = room_for_flat_codes(codes);
  if (!weight) return std::nullopt;
  place_flat_codes(codes.bytes, 0, codes.out_features, *weight);
  place_flat_scales(scales, codes.group_size, *weight);
  return weight;
}

Tensor dense_of(const FlatCodes& codes, std::span<const float> scales) {
  Tensor dense = Tensor::allocate(DType::kF32, {codes.out_features, codes.in_features});
  const Codebook codebook = codebook_of(codes.format);
  for (int64_t i = 0; i < dense.element_count(); ++i) {
    dense.mutable_data<float>()[i] =
        decode_code(codebook, code_at(codes, i), scales[static_cast<size_t>(i / codes.group_size)]);
  }
  return dense;
}

Tensor flat_bytes(const QuantizedTensor& weight) {
  const int64_t out = weight.out_features, words = weight.in_features / 8;
  Tensor bytes = Tensor::allocate(DType::kU8, {out * weight.in_features / 2, 1});
  const uint32_t* codes = weight.codes.data<uint32_t>();
  for (int64_t row = 0; row < out; ++row) {
    for (int64_t word = 0; word < words; ++word) {
      const uint32_t eight = codes[word * out + row];  // the first code lowest; in a byte it is above
      const uint32_t four = (eight & 0x0f0f0f0fu) << 4 | (eight >> 4 & 0x0f0f0f0fu);
      std::memcpy(bytes.mutable_data<uint8_t>() + (row * words + word) * 4, &four, sizeof four);
    }
  }
  return bytes;
}

std::vector<float> flat_scales(const QuantizedTensor& weight) {
  const int64_t groups = weight.groups(), out = weight.out_features;
  std::vector<float> scales(static_cast<size_t>(groups * out));
  for (int64_t row = 0; row < out; ++row) {
    for (int64_t group = 0; group < groups; ++group)
      scales[static_cast<size_t>(row * groups + group)] = weight.scales.data<float>()[group * out + row];
  }
  return scales;
}

}  // namespace lowbit
