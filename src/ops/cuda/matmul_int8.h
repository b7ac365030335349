// y = x W^T on a GPU for many rows of x that are rounded to int8, as ops/matmul.h has it for weights with
// int8 inputs: the sums of codes are exact, then floats in the order of the reference. Hopper's tensor cores
// multiply bytes at twice the rate of BF16.
//
// Operands lie as the products read them: blocks of 64 rows x 128 bytes, 8 KB, one behind the other along the
// columns, then along the rows; within a block as the panels of wgmma.cuh. A row of 128 bytes is 128 codes,
// or 64 values in BF16 (outliers).
#pragma once

#include "ops/cuda/matmul_decode.h"

#include <cstdint>

namespace lowbit {

constexpr int64_t kInt8BlockRows = 64, kInt8BlockBytes = kInt8BlockRows * 128;
constexpr int64_t kInt8TileRows = 128, kInt8TileOutputs = 192;  // of a product's tile
// Columns of x with an outlier in any row that are multiplied fast; others are slow.
constexpr int64_t kInt8OutlierColumns = 512;
// Up to so many rows of a prompt, BF16 of the rounded values (exact but for the last of eight bits) are
// faster, with weights that become BF16 in registers (matmul_prompt.h): laying out the blocks takes as long
// for 50 rows as for 5,000.
constexpr int64_t kMostRoundedRows = 512;

constexpr int64_t int8_code_bytes(int64_t rows, int64_t in, int64_t tile) {
  return (rows + tile - 1) / tile * tile * padded_inputs(in);
}
constexpr int64_t int8_outlier_bytes(int64_t rows, int64_t capacity, int64_t tile) {
  return (rows + tile - 1) / tile * tile * capacity * 2;
}
constexpr int64_t int8_mask_words(int64_t in) { return (in + 31) / 32; }
// What outliers take beside the operands: the mask, the count, the list.
constexpr int64_t int8_list_words(int64_t in) { return int8_mask_words(in) + 1 + (in + 63) / 64 * 64; }

// Rounds rows of BF16 as ops/matmul_prepare.h does: to a scale of each row, or to one grid.
struct GpuInt8Rows {
  int64_t rows = 0, in = 0;
  const uint16_t* x = nullptr;
  float threshold = 0;    // > 0: values of this magnitude or more are outliers
  float input_scale = 0;  // > 0: of a grid
  int input_zero_point = 0;
  // What is made. Either codes and the rows' scales, and what is needed of outliers (threshold > 0) ...
  int8_t* codes = nullptr;   // blocks, of rows up to a multiple of kInt8TileRows
  float* scales = nullptr;   // [rows]; NaN where a value of the row is not finite
  uint32_t* mask = nullptr;  // [int8_mask_words(in)]: columns with outliers; zeros before
  // ... or the rounded values, outliers as they are.
  uint16_t* rounded = nullptr;  // BF16 [rows, in]
  // Of the mask, by gpu_gather_outliers:
  int32_t* outlier_count = nullptr;    // [1]
  int32_t* outlier_columns = nullptr;  // [in up to a multiple of 64]: ascending; -1 up to a multiple of 64
};
void gpu_round_to_int8(const GpuInt8Rows& args, void* stream);

struct GpuInt8Matrix {
  int64_t out = 0;
  const void *fragments = nullptr, *scales = nullptr;  // as fragments.h says
  const int32_t* input_offsets = nullptr;              // [out] or null
  const float* bias = nullptr;                         // [out] or null
  Activations y;            // BF16 or F32 [rows, out]; no data where add_to is given
  float* add_to = nullptr;  // F32 [rows, out] that the product is added to
  // Made on the way, of outputs up to a multiple of kInt8TileOutputs:
  int8_t* codes = nullptr;       // blocks
  float* wide_scales = nullptr;  // [out]
  uint16_t* outliers = nullptr;  // blocks: the codes of the outlier columns
};
struct GpuInt8Product {
  GpuInt8Rows x;
  uint16_t* x_outliers = nullptr;  // blocks: outliers, 0 elsewhere
  int64_t capacity =
      0;  // outlier columns that there is room for: a multiple of 64, at most kInt8OutlierColumns
  int matrices = 0;
  GpuInt8Matrix matrix[kMostMatrices];
};
// Whether this GPU has kernels for it. They take outputs in multiples of 8.
bool has_int8_product();
// Three steps: weights to blocks, which also clears the mask; then x is rounded; then outliers are gathered,
// where x has a threshold, and all is multiplied.
void gpu_int8_weights(const GpuInt8Product& args, void* stream);
void gpu_gather_outliers(const GpuInt8Product& args, void* stream);
void gpu_int8_product(const GpuInt8Product& args, void* stream);

}  // namespace lowbit
