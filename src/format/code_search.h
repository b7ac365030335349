// A codebook and how its codes are found, as plain data: for kernels too.
#pragma once

#include <array>
#include <cstdint>

namespace lowbit {

using Codebook = std::array<float, 16>;  // in the order of the codes; the largest magnitude is 1

// How the nearest code is found: it is the one at the number of `middles` that lie below x, or (fp4) below its
// magnitude, and then 8 higher for negative x.
struct CodeSearch {
  static constexpr int kMostMiddles = 15;
  float middles[kMostMiddles] = {};  // ascending
  int count = 0;                     // of them
  uint8_t codes[kMostMiddles + 1] = {};
  bool by_magnitude = false;
};

}  // namespace lowbit
