#include "format/int8.h"

#include "base/fail.h"
#include "format/affine.h"
#include "format/bits.h"
#include "format/place_words.h"
#include "tensor/half.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace lowbit {

float largest_magnitude(std::span<const float> values) {
  float largest = 0;
  bool is_finite = true;
  for (const float value : values) {
    largest = std::max(largest, std::abs(value));
    is_finite = is_finite && std::isfinite(value);
  }
  return is_finite ? largest : std::numeric_limits<float>::quiet_NaN();
}

Int8Grid int8_grid(float largest, DType scale_dtype) {
  const float exact = int8_scale(largest);
  if (scale_dtype == DType::kF32 || largest == 0) return {exact, int8_factor(largest)};
  const float scale = scale_dtype == DType::kF16 ? round_scale(exact) : bf16_to_float(float_to_bf16(exact));
  return {scale, 1 / scale};
}

void encode_int8(std::span<const float> values, float factor, int8_t* codes) {
  for (size_t i = 0; i < values.size(); ++i) {
    // Adding 1.5 * 2^23 rounds to nearest even and leaves the integer in the low bits.
    const float level = std::clamp(values[i] * factor, -kInt8Largest, kInt8Largest) + 12582912.0f;
    codes[i] = static_cast<int8_t>(std::bit_cast<int32_t>(level) - 0x4b400000);
  }
}

static_assert(std::endian::native == std::endian::little);

QuantizedTensor room_for_int8_rows(int64_t out, int64_t in) {
  QuantizedTensor weight{.format = Format::kInt8,
                         .bits = 8,
                         .group_size = std::max<int64_t>(1, in),
                         .out_features = out,
                         .in_features = in};
  weight.codes = Tensor::allocate(DType::kI32, {packed_words(in, 8), out});
  weight.scales = Tensor::allocate(DType::kF32, {weight.groups(), out});
  return weight;
}

void place_int8_rows(const int8_t* codes, int64_t first, int64_t rows, QuantizedTensor& weight) {
  const int64_t in = weight.in_features;
  place_words({first, rows, weight.out_features}, packed_words(in, 8), weight.codes.mutable_data<uint32_t>(),
              [&](int64_t row, int64_t word) {
                const int64_t column = 4 * word;
                const int8_t* from = codes + row * in + column;
                uint32_t four = 0;
                if (column + 4 <= in) {
                  std::memcpy(&four, from, sizeof four);
                  return four ^ 0x80808080u;
                }
                const auto count = static_cast<size_t>(in - column);
                std::memcpy(&four, from, count);
                return four ^ (0x80808080u >> 8 * (4 - count));
              });
}

void place_int8_scales(std::span<const float> scales, QuantizedTensor& weight) {
  if (weight.in_features > 0)  // else there are none
    std::memcpy(weight.scales.mutable_bytes(), scales.data(), scales.size_bytes());
}

QuantizedTensor from_int8_rows(const int8_t* codes, std::span<const float> scales, int64_t in_features) {
  const auto out = static_cast<int64_t>(scales.size());
  QuantizedTensor weight = room_for_int8_rows(out, in_features);
  place_int8_rows(codes, 0, out, weight);
  place_int8_scales(scales, weight);
  return weight;
}

InputGrid input_grid(float lowest, float highest, bool is_symmetric, CodeRange codes) {
  // Below this a reciprocal may be too coarse: torch.ao's least scale.
  constexpr float kLeast = std::numeric_limits<float>::epsilon();
  const float low = std::min(lowest, 0.0f), high = std::max(highest, 0.0f);
  const auto steps = static_cast<float>(codes.most - codes.least);
  if (is_symmetric) {
    const int middle = codes.least < 0 ? 0 : (codes.most + 1) / 2;
    return {std::max(std::max(-low, high) / (steps / 2), kLeast), middle};
  }
  const float scale = std::max((high - low) / steps, kLeast);
  const int zero_point = codes.least - static_cast<int>(std::nearbyint(low / scale));
  return {scale, std::clamp(zero_point, codes.least, codes.most)};
}

int encode_input(float value, const InputGrid& grid, CodeRange codes) {
  const auto least = static_cast<float>(codes.least - grid.zero_point),
             most = static_cast<float>(codes.most - grid.zero_point);
  return static_cast<int>(std::nearbyint(std::clamp(value * (1 / grid.scale), least, most))) +
         grid.zero_point;
}

void set_static_inputs(QuantizedTensor& weight, const InputGrid& grid) {
  if (!(grid.scale > 0) || !std::isfinite(grid.scale) || grid.zero_point < -128 || grid.zero_point > 127) {
    fail(ErrorCode::kInvalidArgument,
         "a grid of inputs has scale {} and zero_point {}, expected a positive scale and -128 to 127",
         grid.scale, grid.zero_point);
  }
  weight.activations = ActivationFormat::kInt8Static;
  weight.input_grid = grid;
  weight.input_offsets = Tensor();
  if (grid.zero_point == 0) return;
  const int64_t out = weight.out_features;
  weight.input_offsets = Tensor::zeros(DType::kI32, {out});
  int32_t* const offsets = weight.input_offsets.mutable_data<int32_t>();
  const auto* const words = static_cast<const uint8_t*>(weight.codes.bytes());
  for (int64_t column = 0; column < weight.in_features; ++column) {
    const uint8_t* const codes = words + column / 4 * out * 4 + column % 4;
    for (int64_t row = 0; row < out; ++row) offsets[row] += grid.zero_point * (codes[4 * row] - 128);
  }
}

}  // namespace lowbit
