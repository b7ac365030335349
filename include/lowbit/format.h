// What codes mean. The affine format: value = scale * (code - zero_point), one scale and zero_point per row
// and group of columns. The others: value = scale * codebook[code].
#pragma once

namespace lowbit {

struct AffineOptions {
  int bits = 4;          // 2, 3, 4 or 8 bits per code
  int group_size = 128;  // columns that share a scale; -1: the whole row. A short last group is allowed
  bool sym = true;       // zero_point fixed at the middle code, 2^(bits-1); false: chosen per group
};

// The format log2: a sign, 0, and the powers of log_base from 1 down, as many as the codes of half the bits.
struct LogOptions {
  int bits = 4;        // 3 to 8
  float log_base = 2;  // in (1, 16]. Least error: 2 with 3 bits, 1.41 with 4, 1.22 with 5, 1.11 with 6
};

}  // namespace lowbit
