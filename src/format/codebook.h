// Formats whose codes point into a table: value = codebook[code] * scale. Scalar truth for kernels and
// methods.
//   nf4, fp4   4 bits, as bitsandbytes has them (Dettmers et al., QLoRA, arXiv 2305.14314); its fp4 is not
//              OCP's E2M1. docs/formats/bitsandbytes.md
//   fp8        E4M3 with the largest value 448, no infinity, NaN 0x7f and 0xff; fp8_e5m2 with infinities, the
//              largest value 57344 (Micikevicius et al., FP8 formats, arXiv 2209.05433). docs/formats/fp8.md
//   log2       a sign, 0 and the powers of a base up to 1, 3 to 8 bits. docs/formats/log2.md
#pragma once

#include "format/levels.h"
#include "format/weight.h"
#include "lowbit/format.h"

#include <optional>
#include <span>

namespace lowbit {

using Codebook = std::span<const float>;  // 2^bits values, in the order of the codes

constexpr bool has_codebook(Format format) { return format != Format::kAffine && format != Format::kInt8; }

// Of the formats whose bits are known. kInternal for the others.
Codebook codebook_of(Format format);
const Levels& levels_of(Format format);
// Where the first code is that is no number or infinite; codes.size() where there is none. fp8 only: other
// codes are all numbers.
size_t first_odd_code(Format format, std::span<const uint8_t> codes);
// Of any weight that has a codebook.
Codebook codebook_of(const QuantizedTensor& weight);

// kInvalidArgument: bits not 3 to 8; log_base not between 1 and 16, or so large that the least power is below
// 2^-126.
void validate(const LogOptions& options);
// What a codebook tensor has: whole vectors of kernels are read of it.
constexpr int64_t codebook_entries(int bits) { return bits < 4 ? 16 : int64_t{1} << bits; }
// F32 [codebook_entries(bits)], those behind 2^bits 0. With m = 2^(bits - 1) - 1: code 0 is 0, code i <= m is
// log_base^(i - m), and 2^(bits - 1) more is the same with a minus. That of 0 is 0 again and never chosen.
Tensor log_codebook(const LogOptions& options);
Levels log_levels(const LogOptions& options);

// The code whose value is nearest to x. A tie goes to the lower value with nf4, to the smaller magnitude with
// fp4 (bitsandbytes on CUDA; on the CPU its fp4 takes the lower value) and log2, to the even code with fp8 as
// IEEE 754 rounds. 0 and NaN get the code of 0 without a sign. What is larger than all gets the largest.
int nearest_code(const Levels& levels, float x);

// A group: its scale, and codes[i * code_stride] of values[i]. The scale is the largest magnitude over that
// of the codebook; 1 / scale is rounded, then multiplied with, as bitsandbytes does; a group of zeros has
// scale 0 and codes of 0. NaN when a value is not finite.
float encode_group(const Levels& levels, std::span<const float> values, uint8_t* codes, int64_t code_stride);

inline float decode_code(Codebook codebook, int code, float scale) {
  return codebook[static_cast<size_t>(code)] * scale;
}

// A matrix as bitsandbytes keeps it: rows one behind the other, two codes to a byte, the first one above;
// groups are counted over the whole, the last one may be short, and so may begin and end anywhere in a row.
struct FlatCodes {
  Format format = Format::kNf4;
  int64_t group_size = 64, out_features = 0, in_features = 0;
  const uint8_t* bytes = nullptr;  // [ceil(out * in / 2)]
};
inline int code_at(const FlatCodes& codes, int64_t i) {
  return i % 2 == 0 ? codes.bytes[i / 2] >> 4 : codes.bytes[i / 2] & 15;
}
// As layers hold it; where a group does not fit a row, in smaller ones that repeat its scale. Nothing where
// these would not be whole words of codes. scales: one for each group.
std::optional<QuantizedTensor> from_flat_codes(const FlatCodes& codes, std::span<const float> scales);
// The same in parts: room for the codes and scales (codes.bytes is not read); the codes of rows [first, first
// + rows) from their bytes; all scales, of groups of group_size.
std::optional<QuantizedTensor> room_for_flat_codes(const FlatCodes& codes);
void place_flat_codes(const uint8_t* bytes, int64_t first, int64_t rows, QuantizedTensor& weight);
void place_flat_scales(std::span<const float> scales, int64_t group_size, QuantizedTensor& weight);
Tensor dense_of(const FlatCodes& codes, std::span<const float> scales);  // F32 [out, in]
// Back: the bytes, U8 [out * in / 2, 1], and one scale for each group, of a weight of 4 bits whose groups
// fill its rows.
Tensor flat_bytes(const QuantizedTensor& weight);
std::vector<float> flat_scales(const QuantizedTensor& weight);

}  // namespace lowbit
