// y = x W^T on a GPU for many rows of x that are rounded to int8, as ops/matmul.h has it for weights with int8
// inputs: the sums of codes are exact, then floats in the order of the reference. Hopper's tensor cores
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

constexpr int64_t int8_code_bytes(int64_t rows, int64_t in, int64_t tile) {
  return (rows + tile - 1) / tile * tile * padded_inputs(in);
}
constexpr int64_t int8_outlier_bytes(int64_t rows, int64_t capacity, int64_t tile) {
  return (rows + tile - 1) / tile * tile * capacity * 2;
}
constexpr int64_t int8_mask_words(int64_t in) { return (in + 31) / 32; }
constexpr int kInt8MaskRows = 8;  // that share a mask

// Rounds rows of BF16 as ops/matmul_prepare.h does: to a scale of each row, or to one grid.
struct GpuInt8Rows {
  int64_t rows = 0, in = 0;
  const uint16_t* x = nullptr;
  float threshold = 0;    // > 0: values of this magnitude or more are outliers
  float input_scale = 0;  // > 0: of a grid
  int input_zero_point = 0;
  // What is made. Either codes and the rows' scales, and what is needed of outliers (threshold > 0) ...
  int8_t* codes = nullptr;            // blocks, of rows up to a multiple of kInt8TileRows
  float* scales = nullptr;            // [rows]; NaN where a value of the row is not finite
  uint32_t* masks = nullptr;          // [ceil(rows / kInt8MaskRows)][int8_mask_words(in)]: columns with outliers
  int32_t* outlier_count = nullptr;   // [1]
  int32_t* outlier_columns = nullptr;  // [in, and up to a multiple of 64]: ascending; then -1 up to a multiple of 64
  // ... or the rounded values, outliers as they are.
  uint16_t* rounded = nullptr;  // BF16 [rows, in]
};
void gpu_round_to_int8(const GpuInt8Rows& args, void* stream);

struct GpuInt8Matrix {
  int64_t out = 0;
  const void *fragments = nullptr, *scales = nullptr;  // as fragments.h says
  const int32_t* input_offsets = nullptr;              // [out] or null
  const float* bias = nullptr;                         // [out] or null
  Activations y;                                       // BF16 or F32 [rows, out]; no data where add_to is given
  float* add_to = nullptr;                             // F32 [rows, out] that the product is added to
  // Made on the way, of outputs up to a multiple of kInt8TileOutputs:
  int8_t* codes = nullptr;        // blocks
  float* wide_scales = nullptr;   // [out]
  uint16_t* outliers = nullptr;   // blocks: the codes of the outlier columns
};
struct GpuInt8Product {
  GpuInt8Rows x;
  uint16_t* x_outliers = nullptr;  // blocks: outliers, 0 elsewhere
  int64_t capacity = 0;            // columns that there is room for among the outliers, a multiple of 64
  int matrices = 0;
  GpuInt8Matrix matrix[kMostMatrices];
};
// Whether this GPU has kernels for it. They take outputs in multiples of 8.
bool has_int8_product();
// x has been rounded. Two steps: what the product reads is brought into blocks, then the product.
void gpu_prepare_int8_product(const GpuInt8Product& args, void* stream);
void gpu_int8_product(const GpuInt8Product& args, void* stream);

}  // namespace lowbit
