// What permute_gram gets. Plain data only: GPU kernels include this.
#pragma once

#include <cstdint>

namespace lowbit {

// Rows [first, first + rows) of H with rows and columns in another order and another diagonal: to[i -
// first][j] = h[order[i]][order[j]], but to[i - first][i] = diagonal[i]. h: [width, width]; to: [rows,
// width].
struct PermuteGramArgs {
  const float* h = nullptr;
  const int32_t* order = nullptr;
  const float* diagonal = nullptr;
  int64_t width = 0, first = 0, rows = 0;
  float* to = nullptr;
};

}  // namespace lowbit
