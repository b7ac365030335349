// The operators of quantization on a GPU: ops/columns.h, gptq_block.h, clip_search.h, fit_scales.h and what
// gram.h does without a library. All pointers are to the GPU's memory.
#pragma once

#include "ops/clip_search_args.h"
#include "ops/columns_args.h"
#include "ops/fit_scales_args.h"
#include "ops/gptq_block_args.h"
#include "ops/gram_args.h"
#include "tensor/dtype.h"

#include <cstdint>

namespace lowbit {

struct GpuLoadColumnsArgs {
  const void* weight = nullptr;
  DType dtype = DType::kBF16;  // a floating type
  int64_t in = 0, first_row = 0, rows = 0;
  const int32_t* columns = nullptr;
  int64_t count = 0;
  float* w = nullptr;
  int32_t* not_finite = nullptr;  // set where a value is not
};
void gpu_load_columns(const GpuLoadColumnsArgs& args, void* stream);
void gpu_decode_columns(const CodeColumns& columns, int64_t begin, int64_t end, float* values, void* stream);
void gpu_subtract(const float* a, const float* b, int64_t count, float* out, void* stream);
void gpu_pack_columns(const PackColumnsArgs& args, void* stream);

constexpr int kGpuDotBlocks = 256;
struct GpuDotArgs {
  const float *a = nullptr, *b = nullptr, *weights = nullptr;
  int64_t columns = 0, rows = 0;
  double* parts = nullptr;  // [kGpuDotBlocks]
  double* sum = nullptr;
};
void gpu_add_dot(const GpuDotArgs& args, void* stream);

void gpu_gptq_block(const GptqBlockArgs& args, int64_t rows, void* stream);
// column_weights may be null. Scales and zero points are those of the plain range where a row has NaN.
void gpu_clip_search(const ClipSearchArgs& args, int64_t rows, void* stream);
void gpu_fit_scales(const FitScalesArgs& args, void* stream);

// Matrices are [n, n].
void gpu_mirror_upper(float* matrix, int64_t n, void* stream);
void gpu_diagonal(const float* matrix, int64_t n, float* diagonal, void* stream);
void gpu_permute_gram(const PermuteGramArgs& args, void* stream);
void gpu_permuted_gram_band(const PermuteGramArgs& args, int64_t band_width, float* band, void* stream);
// to[x][y] = from[n - 1 - y][n - 1 - x] where y >= x, otherwise zero. F32 or F64 either.
struct GpuTurnArgs {
  const void* from = nullptr;
  DType from_dtype = DType::kF32;
  void* to = nullptr;
  DType to_dtype = DType::kF32;
  int64_t n = 0;
};
void gpu_turn(const GpuTurnArgs& args, void* stream);

// F32 rows as sums of two BF16 numbers, high = rounded, low = what that leaves: three rows for each, in one
// of two orders, so that the product over depth of one kind with the other is high high + high low + low
// high.
enum SplitParts { kHighHighLow, kHighLowHigh };
struct GpuSplitArgs {
  const float* from = nullptr;  // [rows][stride]
  int64_t stride = 0, rows = 0, columns = 0;
  uint16_t* to = nullptr;  // [3 rows][to_stride]; what is beyond columns is not written
  int64_t to_stride = 0;
  SplitParts parts = kHighHighLow;
};
void gpu_split(const GpuSplitArgs& args, void* stream);

// Of the diagonal blocks of an upper triangle c [n, n]: inverses [blocks][kGpuInvertBlock][kGpuInvertBlock],
// transposed, and in their own place in y [n, n]. The last block may be smaller.
constexpr int kGpuInvertBlock = 128;
void gpu_invert_diagonal_blocks(const float* c, int64_t n, float* inverses, float* y, void* stream);

}  // namespace lowbit
