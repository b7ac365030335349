// Formats of 4 bits whose codes point into a table: value = codebook[code] * scale, where scale is the
// largest magnitude of a group. nf4 (Dettmers et al., QLoRA, arXiv 2305.14314) and fp4, both as bitsandbytes
// has them; its fp4 is not OCP's E2M1. Scalar truth for kernels and methods; bytes:
// docs/formats/bitsandbytes.md.
#pragma once

#include "format/code_search.h"
#include "format/weight.h"

#include <cstdint>
#include <optional>
#include <span>

namespace lowbit {

constexpr bool has_codebook(Format format) { return format == Format::kNf4 || format == Format::kFp4; }
const Codebook& codebook_of(Format format);  // kNf4, kFp4

const CodeSearch& code_search(Format format);

// The code whose value is nearest to x, which lies in [-1, 1]. A tie goes to the lower value with nf4, to the
// smaller magnitude with fp4 (bitsandbytes on CUDA; on the CPU its fp4 takes the lower value). NaN gets the
// code of 0, which for fp4 is always code 0, never -0.
int nearest_code(Format format, float x);

// A group: its scale, and codes[i * code_stride] of values[i]. 1 / scale is rounded, then multiplied with, as
// bitsandbytes does; a group of zeros has scale 0 and codes of 0. NaN when a value is not finite.
float encode_group(Format format, std::span<const float> values, uint8_t* codes, int64_t code_stride);

inline float decode_code(const Codebook& codebook, int code, float scale) {
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
Tensor dense_of(const FlatCodes& codes, std::span<const float> scales);  // F32 [out, in]

}  // namespace lowbit
