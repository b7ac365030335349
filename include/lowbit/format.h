// What codes mean. The affine format: value = scale * (code - zero_point), one scale and zero_point per row
// and group of columns.
#pragma once

namespace lowbit {

struct AffineOptions {
  int bits = 4;          // 2, 3, 4 or 8 bits per code
  int group_size = 128;  // columns that share a scale; -1: the whole row. A short last group is allowed
  bool sym = true;       // zero_point fixed at the middle code, 2^(bits-1); false: chosen per group
};

}  // namespace lowbit
