#include "format/bits.h"

namespace lowbit {

void pack_bits(const uint8_t* codes, int64_t code_stride, int64_t count, int bits, uint32_t* words,
               int64_t word_stride) {
  uint64_t buffer = 0;
  int filled = 0;
  for (int64_t i = 0; i < count; ++i) {
    buffer |= uint64_t{codes[i * code_stride]} << filled;
    filled += bits;
    if (filled >= 32) {
      *words = static_cast<uint32_t>(buffer);
      words += word_stride;
      buffer >>= 32;
      filled -= 32;
    }
  }
  if (filled > 0) *words = static_cast<uint32_t>(buffer);
}

void unpack_bits(const uint32_t* words, int64_t word_stride, int64_t count, int bits, uint8_t* codes,
                 int64_t code_stride) {
  const uint32_t mask = (1u << bits) - 1u;
  uint64_t buffer = 0;
  int available = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (available < bits) {
      buffer |= uint64_t{*words} << available;
      words += word_stride;
      available += 32;
    }
    codes[i * code_stride] = static_cast<uint8_t>(buffer & mask);
    buffer >>= bits;
    available -= bits;
  }
}

}  // namespace lowbit
