#include "format/codebook.h"

#include "base/fail.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

namespace lowbit {
namespace {

constexpr Codebook kNf4 = {-1.0f,
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
constexpr Codebook kFp4 = {0.0f, 0.0625f / 12,  8.0f / 12,  1.0f,  4.0f / 12,  0.5f,  2.0f / 12,  0.25f,
                           0.0f, -0.0625f / 12, -8.0f / 12, -1.0f, -4.0f / 12, -0.5f, -2.0f / 12, -0.25f};

constexpr CodeSearch kNf4Search = [] {
  CodeSearch search{.count = 15};
  for (int i = 0; i < 16; ++i) {
    const auto code = static_cast<size_t>(i);
    if (i < 15) search.middles[i] = (kNf4[code] + kNf4[code + 1]) / 2;
    search.codes[i] = static_cast<uint8_t>(i);
  }
  return search;
}();
// The middles as bitsandbytes prints them, some digits short.
constexpr CodeSearch kFp4Search = {
    .middles = {0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f, 0.4166667f, 0.583333f, 0.8333333f},
    .count = 7,
    .codes = {0, 1, 6, 7, 4, 5, 2, 3},
    .by_magnitude = true};

// Counts what each value lies above: a middle at a time, over values side by side, so that the compiler takes
// several at once. NaN lies above nothing.
constexpr int64_t kAtOnce = 64;
// count: kAtOnce at most.
void nearest_codes(const CodeSearch& search, const float* x, int64_t count, uint8_t* codes,
                   int64_t code_stride) {
  float counted[kAtOnce];
  for (int64_t i = 0; i < count; ++i) counted[i] = search.by_magnitude ? std::abs(x[i]) : x[i];
  int32_t above[kAtOnce] = {};
  for (int middle = 0; middle < search.count; ++middle) {
    for (int64_t i = 0; i < count; ++i) above[i] += counted[i] > search.middles[middle];
  }
  const uint8_t negative = search.by_magnitude ? 8 : 0;
  for (int64_t i = 0; i < count; ++i)
    codes[i * code_stride] = static_cast<uint8_t>(search.codes[above[i]] | (x[i] < 0 ? negative : 0));
}

}  // namespace

const Codebook& codebook_of(Format format) {
  switch (format) {
    case Format::kNf4:
      return kNf4;
    case Format::kFp4:
      return kFp4;
    default:
      fail(ErrorCode::kInternal, "{} has no codebook", format_name(format));
  }
}

const CodeSearch& code_search(Format format) { return format == Format::kFp4 ? kFp4Search : kNf4Search; }

int nearest_code(Format format, float x) {
  if (std::isnan(x)) x = 0;
  uint8_t code = 0;
  nearest_codes(code_search(format), &x, 1, &code, 1);
  return code;
}

float encode_group(Format format, std::span<const float> values, uint8_t* codes, int64_t code_stride) {
  float scale = 0;
  bool is_finite = true;
  for (const float value : values) {
    scale = std::max(scale, std::abs(value));
    is_finite = is_finite && std::isfinite(value);
  }
  if (!is_finite) scale = std::numeric_limits<float>::quiet_NaN();
  // Below 1e-38 the reciprocal would not be finite.
  const float factor = 1 / std::max(scale, 1e-38f);
  const auto count = static_cast<int64_t>(values.size());
  const CodeSearch& search = code_search(format);
  for (int64_t first = 0; first < count; first += kAtOnce) {
    const int64_t some = std::min(kAtOnce, count - first);
    float x[kAtOnce];
    for (int64_t i = 0; i < some; ++i)
      x[i] = std::clamp(values[static_cast<size_t>(first + i)] * factor, -1.0f, 1.0f);
    nearest_codes(search, x, some, codes + first * code_stride, code_stride);
  }
  return scale;
}

static_assert(std::endian::native == std::endian::little);

std::optional<QuantizedTensor> from_flat_codes(const FlatCodes& codes, std::span<const float> scales) {
  constexpr int64_t kUnit = 8;   // codes of a word
  constexpr int64_t kRows = 16;  // at a time: their words go to neighbouring places
  const int64_t out = codes.out_features, in = codes.in_features;
  const int64_t group_size = std::gcd(in, codes.group_size);
  if (group_size % kUnit != 0) return std::nullopt;
  QuantizedTensor weight{
      .format = codes.format, .bits = 4, .group_size = group_size, .out_features = out, .in_features = in};
  weight.codes = Tensor::allocate(DType::kI32, {in / kUnit, out});
  weight.scales = Tensor::allocate(DType::kF32, {weight.groups(), out});
  uint32_t* const words = weight.codes.mutable_data<uint32_t>();
  float* const to = weight.scales.mutable_data<float>();
  for (int64_t first = 0; first < out; first += kRows) {
    const int64_t end = std::min(out, first + kRows);
    for (int64_t word = 0; word < in / kUnit; ++word) {
      for (int64_t row = first; row < end; ++row) {
        uint32_t four;  // bytes, each with its first code above
        std::memcpy(&four, codes.bytes + (row * in + word * kUnit) / 2, sizeof four);
        words[word * out + row] = (four & 0x0f0f0f0fu) << 4 | (four >> 4 & 0x0f0f0f0fu);
      }
    }
    for (int64_t group = 0; group < weight.groups(); ++group) {
      for (int64_t row = first; row < end; ++row) {
        const int64_t flat = (row * in + group * group_size) / codes.group_size;
        to[group * out + row] = scales[static_cast<size_t>(flat)];
      }
    }
  }
  return weight;
}

Tensor dense_of(const FlatCodes& codes, std::span<const float> scales) {
  Tensor dense = Tensor::allocate(DType::kF32, {codes.out_features, codes.in_features});
  const Codebook& codebook = codebook_of(codes.format);
  for (int64_t i = 0; i < dense.element_count(); ++i) {
    dense.mutable_data<float>()[i] =
        decode_code(codebook, code_at(codes, i), scales[static_cast<size_t>(i / codes.group_size)]);
  }
  return dense;
}

}  // namespace lowbit
