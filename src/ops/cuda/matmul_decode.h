// y = x W^T on a GPU for few rows of x: W streams once through the tensor cores, whose operand has room for
// eight rows at the price of one.
#pragma once

#include "ops/cuda/fragments.h"
#include "tensor/activations.h"

#include <cstdint>

namespace lowbit {

// Rows as a product of 2 to 32 rows reads them at once (matmul_batch.h). Up to eight: [row][in] BF16. More:
// of 32 inputs four pieces of kept_rows(rows) x 16 bytes, where a row's 16 bytes of piece i are inputs 8 c +
// 2 i and 8 c + 2 i + 1, c = 0 ... 3. in: a multiple of 128.
struct GpuKeptRows {
  uint16_t* x = nullptr;
  const float* norm_weight = nullptr;  // [in]: x is hidden times this; or null
  float* squares = nullptr;            // then: [rows][in / 8], of hidden
};
constexpr int kept_rows(int64_t rows) { return rows > 16 ? 32 : rows > 8 ? 16 : 8; }

// One of up to three matrices that share x. All pointers are to the GPU's memory.
struct GpuMatrix {
  int64_t out = 0;
  const void* weight = nullptr;       // BF16 [out, in], or codes: see fragments.h
  const void* scales = nullptr;       // codes only, see fragments.h
  const void* zero_points = nullptr;  // likewise; null: the middle of the codes
  const float* bias = nullptr;        // [out] or null
  Activations y;                      // BF16 or F32 [rows, out]; no data where add_to is given
  float* add_to = nullptr;            // [rows, out] that the product is added to
  // Where products of 2 to 32 rows on Hopper leave the outputs for the next product too: what add_to holds
  // then, with the norm's weight; or y, in its place.
  GpuKeptRows next;
};

constexpr int kMostMatrices = 3;

struct GpuDecodeArgs {
  int64_t rows = 0, in = 0;
  int bits = 0;            // 16 (BF16), or of the codes
  int64_t group_size = 0;  // codes only: as kept, see fragments.h
  bool has_table = false;  // into which codes of 4 bits point; of 8: that says which floats they are
  CodeTable table;
  const uint16_t* x = nullptr;            // BF16 [rows, in]
  const int32_t* column_order = nullptr;  // of x, or null: x[column_order[p]] meets position p of the codes
  const float* hidden = nullptr;          // F32 [rows, in]: instead of x, whose place rms_norm of it takes
  const float* norm_weight = nullptr;     // [in]
  float epsilon = 0;
  const float* factors = nullptr;  // [rows], of the products, or null: what gpu_norm_rows made of x
  GpuKeptRows kept;                // instead of x and factors, see keeps_rows
  bool swiglu = false;  // of two matrices of one size: y of the first (no add_to) is silu(first) * second
  int matrices = 0;
  GpuMatrix matrix[kMostMatrices];
};

// Of 16 outputs, of all matrices of a call.
inline int64_t tiles_of(const GpuDecodeArgs& args) {
  int64_t tiles = 0;
  for (int i = 0; i < args.matrices; ++i) tiles += tile_count(args.matrix[i].out);
  return tiles;
}

// The same for rows [first, first + count) of it, which are not kept.
inline GpuDecodeArgs rows_of(GpuDecodeArgs args, int64_t first, int64_t count) {
  args.rows = count;
  if (args.x) args.x += first * args.in;
  if (args.hidden) args.hidden += first * args.in;
  if (args.factors) args.factors += first;
  for (GpuMatrix& matrix : args.matrix) {
    if (matrix.add_to) matrix.add_to += first * matrix.out;
    if (matrix.y.data) matrix.y = matrix.y.from(first * matrix.out);
  }
  return args;
}

constexpr int64_t kDecodeRows = 32;  // most rows of a call

// Whether the kernel reads such a weight: 16-byte pieces of rows, groups of 32 or 128; of 64 with a table.
constexpr bool fits_gpu_decode(int64_t in, int bits, int64_t group_size) {
  return in % 8 == 0 && (bits == 16 || group_size == 32 || group_size == 128 ||
                         ((bits == 4 || bits == 8) && group_size == kTableGroup));
}

// Whether x may come as hidden, and in a column_order where there is one. tiles: see tiles_of.
bool prepares_in_decode(int64_t rows, int64_t in, int64_t tiles, int bits, int64_t group_size);

// Whether x may come as `kept`, from a product whose out is this `in`, and outputs may be left so (`next`).
// Then without a column_order.
bool keeps_rows(int64_t rows, int64_t in, int64_t tiles, int bits, int64_t group_size);

// Most rows of a call with swiglu.
int64_t gated_decode_rows(int64_t in, int64_t tiles, int bits, int64_t group_size);

// Queued on `stream` (a cudaStream_t). The sums are taken in an order that the weights' sizes, bits and
// group_size decide, not the rows: the same bytes for a row in any batch. (GPUs with little shared memory may
// have another order.)
void gpu_matmul_decode(const GpuDecodeArgs& args, void* stream);

}  // namespace lowbit
