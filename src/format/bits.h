// Packing of codes into 32-bit words: a contiguous little-endian bit stream, code i at bits [bits*i, bits*i +
// bits). For 2, 4 and 8 bits a word holds 32/bits whole codes, the first in the lowest bits; for 3 bits 32
// codes fill 3 words. The same stream is used by GPTQ files along both axes (docs/formats/gptq.md).
#pragma once

#include <cstdint>

namespace lowbit {

constexpr bool is_supported_bits(int bits) { return bits == 2 || bits == 3 || bits == 4 || bits == 8; }

// Words that `count` codes need, the last one padded with zeros.
constexpr int64_t packed_words(int64_t count, int bits) { return (count * bits + 31) / 32; }

// codes[i * code_stride] <-> words[w * word_stride]; strides in elements.
void pack_bits(const uint8_t* codes, int64_t code_stride, int64_t count, int bits, uint32_t* words,
               int64_t word_stride);
void unpack_bits(const uint32_t* words, int64_t word_stride, int64_t count, int bits, uint8_t* codes,
                 int64_t code_stride);

}  // namespace lowbit
