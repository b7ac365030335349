// What GPTQ's inner loop gets. Plain data only: files of special instruction sets include this.
#pragma once

#include "format/levels.h"

#include <cstdint>

namespace lowbit {

// Matrices are [columns][rows], rows fastest, with `stride` floats (bytes for codes) between columns. Units:
// rows.
struct GptqBlockArgs {
  float* w;
  int64_t w_stride;
  uint8_t* codes;
  int64_t codes_stride;
  float* errors;
  int64_t errors_stride;
  const float* u;  // element (i, j) of the block at u[i * u_stride + j], i <= j
  int64_t u_stride;
  const float* scales;       // of column i: [rows] at groups[i] * grids_stride
  const float* zero_points;  // as scales
  int64_t grids_stride;
  const int32_t* groups;  // [columns]; only those of [begin, end) are read
  int64_t columns;        // at most kGptqBlockColumns
  int64_t begin, end;
  int max_code;
  // Null: the loop of GPTQ. Otherwise the values that the codes had, [columns][rows]: see refine in
  // gptq_block.h.
  const float* previous;
  int64_t previous_stride;
  const Levels* levels = nullptr;  // null: the affine grid. Otherwise no zero_points and no max_code are read
};

constexpr int64_t kGptqBlockColumns = 256;
constexpr int64_t kGptqBlockRows = 32;  // rows that a kernel takes at a time, in scratch
constexpr int64_t kGptqBlockScratchBytes = 2 * kGptqBlockColumns * kGptqBlockRows * 4;

void gptq_block_ref(const GptqBlockArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void gptq_block_avx2(const GptqBlockArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void gptq_block_avx512(const GptqBlockArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;

}  // namespace lowbit
