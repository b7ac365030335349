// Rows of int8, of weights and of inputs: value = scale * code, code in [-127, 127], one scale for a row. As
// LLM.int8() has them (Dettmers et al., arXiv 2208.07339), with the roundings of bitsandbytes. And inputs on
// one grid for all rows, as torch.ao and compressed-tensors have it. Scalar truth for kernels and dialects;
// bytes: docs/formats/bitsandbytes.md, docs/formats/compressed_tensors.md.
#pragma once

#include "format/weight.h"

#include <cstdint>
#include <span>

namespace lowbit {

constexpr float kInt8Largest = 127;  // of a code's magnitude

// The scale of a row, and what its codes are made with: code = round_half_even(value * factor). That is 127
// times the rounded reciprocal, not 127 / largest: so bitsandbytes on the CPU. 0 for a row of zeros.
inline float int8_scale(float largest) { return largest / kInt8Largest; }
inline float int8_factor(float largest) { return largest > 0 ? kInt8Largest * (1 / largest) : 0; }

// The same of files that keep scales in F16 or BF16 (F32: as above), so that codes are chosen for the scale
// that is kept. Never 0 but for a row of zeros.
struct Int8Grid {
  float scale, factor;
};
Int8Grid int8_grid(float largest, DType scale_dtype);

// The largest magnitude; NaN when a value is not finite.
float largest_magnitude(std::span<const float> values);
// Clamped to [-127, 127].
void encode_int8(std::span<const float> values, float factor, int8_t* codes);

// A matrix as files keep it, rows one behind the other, as layers hold it. codes: [out, in]; a file may hold
// -128 too. scales: [out].
QuantizedTensor from_int8_rows(const int8_t* codes, std::span<const float> scales, int64_t in_features);
// The same in parts: room for the codes and scales; the codes of rows [first, first + rows); all scales.
QuantizedTensor room_for_int8_rows(int64_t out, int64_t in);
void place_int8_rows(const int8_t* codes, int64_t first, int64_t rows, QuantizedTensor& weight);
void place_int8_scales(std::span<const float> scales, QuantizedTensor& weight);

// Codes of inputs on a grid, and the values that a grid may have: torch.ao's quint8 has 0 to 255.
struct CodeRange {
  int least = -128, most = 127;
};
// The grid that covers [lowest, highest] and 0, as torch.ao computes it, in F32. Symmetric: highest code is
// half a step short of the largest magnitude.
InputGrid input_grid(float lowest, float highest, bool is_symmetric, CodeRange codes = {});
// code = round_half_even(value * (1 / scale)) + zero_point, clamped.
int encode_input(float value, const InputGrid& grid, CodeRange codes = {});
inline float decode_input(int code, const InputGrid& grid) {
  return grid.scale * static_cast<float>(code - grid.zero_point);
}

// Makes the inputs of a kInt8 weight static. kInvalidArgument: a scale that is not positive and finite, a
// zero point that is no code.
void set_static_inputs(QuantizedTensor& weight, const InputGrid& grid);

}  // namespace lowbit
