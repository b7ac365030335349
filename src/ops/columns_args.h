// What operators on matrices of columns get. Plain data only: GPU kernels include this.
#pragma once

#include "format/levels.h"

#include <cstdint>

namespace lowbit {

// Codes and the grids that they belong to.
struct CodeColumns {
  uint8_t* codes = nullptr;            // [columns][rows]
  float* scales = nullptr;             // [groups][rows]
  const float* zero_points = nullptr;  // [groups][rows], whole numbers
  const int32_t* groups = nullptr;     // [columns]
  int64_t rows = 0;
  const Levels* levels = nullptr;  // of a codebook: no zero points then
};

// Each row's codes as a bit stream: words [packed_words(columns, bits)][stride], of which
// the first `rows` of each are written. Position p of the stream holds the code of column column_of[p], or of
// p itself where that is null.
struct PackColumnsArgs {
  const uint8_t* codes = nullptr;  // [columns][rows]
  const int32_t* column_of = nullptr;
  int64_t columns = 0, rows = 0;
  int bits = 4;
  uint32_t* words = nullptr;
  int64_t stride = 0;
};

}  // namespace lowbit
