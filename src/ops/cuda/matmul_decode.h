// y = x W^T on a GPU for few rows of x: W streams once through the tensor cores, whose operand has room for eight
// rows at the price of one.
#pragma once

#include "tensor/activations.h"

#include <cstdint>

namespace lowbit {

// One of up to three matrices that share x. All pointers are to the GPU's memory.
struct GpuMatrix {
  int64_t out = 0;
  const void* weight = nullptr;       // BF16 [out, in], or codes: see fragments.h
  const void* scales = nullptr;       // codes only, see fragments.h
  const void* zero_points = nullptr;  // likewise; null: the middle of the codes
  const float* bias = nullptr;        // [out] or null
  Activations y;                      // BF16 or F32 [rows, out]; no data where add_to is given
  float* add_to = nullptr;            // [rows, out] that the product is added to
};

constexpr int kMostMatrices = 3;

struct GpuDecodeArgs {
  int64_t rows = 0, in = 0;
  int bits = 0;                 // 16 (BF16), or of the codes
  int64_t group_size = 0;       // codes only
  const uint16_t* x = nullptr;  // BF16 [rows, in]
  int matrices = 0;
  GpuMatrix matrix[kMostMatrices];
};

constexpr int64_t kDecodeRows = 32;  // most rows of a call

// Whether the kernel reads such a weight: 16-byte pieces of rows, groups that no 32 inputs straddle.
constexpr bool fits_gpu_decode(int64_t in, int bits, int64_t group_size) {
  return in % 8 == 0 && (bits == 16 || group_size >= in || group_size % 32 == 0);
}

// Queued on `stream` (a cudaStream_t). The sums are taken in an order that depends on `in`, bits and group_size
// alone, not on rows or on the GPU: the same bytes for a row in any batch.
void gpu_matmul_decode(const GpuDecodeArgs& args, void* stream);

// Any weight, one thread an output: slow, for the shapes that the others do not take.
void gpu_matmul_plain(const GpuDecodeArgs& args, void* stream);

// A quantized weight's words, scales and zero points as format/weight.h has them on a CPU, to what fragments.h says.
struct GpuPackArgs {
  int64_t out = 0, in = 0, groups = 0;
  int bits = 0;
  const void *words = nullptr, *scales = nullptr, *zero_points = nullptr;  // zero_points: null stays null
  void *fragments = nullptr, *fragment_scales = nullptr, *fragment_zero_points = nullptr;
};
void gpu_pack_fragments(const GpuPackArgs& args, void* stream);

// The other way, and to numbers: BF16 [out, in], scale * (code - zero_point) rounded to nearest. column_order: I32
// [in] or null.
struct GpuUnpackArgs {
  int64_t out = 0, in = 0, group_size = 0;
  int bits = 0;
  const void *fragments = nullptr, *scales = nullptr, *zero_points = nullptr;
  const int32_t* column_order = nullptr;
  uint16_t* to = nullptr;
};
void gpu_unpack_fragments(const GpuUnpackArgs& args, void* stream);

}  // namespace lowbit
