// y = x W^T on a GPU for up to eight rows of x, which cost the same as one: W streams through the tensor
// cores once.
#pragma once

#include <cstdint>

namespace lowbit {

// All pointers are to the GPU's memory.
struct GpuDecodeArgs {
  int64_t rows = 0, in = 0, out = 0;     // rows: 1 to 8; in: a multiple of 16
  int bits = 0;                          // 16 (BF16), 8 or 4
  int64_t group_size = 0;                // codes only: a multiple of 16
  const void* fragments = nullptr;       // W, see fragments.h
  const uint16_t* scales = nullptr;      // F16 [groups, out]
  const uint8_t* zero_points = nullptr;  // [groups, out] or null: the middle of the codes
  const uint16_t* x = nullptr;           // BF16 [rows, in]
  const float* bias = nullptr;           // [out] or null
  uint16_t* y = nullptr;                 // BF16 [rows, out], or null where y_float or add_to is given
  float* y_float = nullptr;              // F32 likewise
  float* add_to = nullptr;               // F32 [rows, out] that the product is added to
};

// Queued on `stream` (a cudaStream_t). Sums are taken in an order that depends on `in` and bits alone, not on
// rows or on the GPU: the same bytes for a row in any batch.
void gpu_matmul_decode(const GpuDecodeArgs& args, void* stream);

// Fills fragments (fragment_bytes) from rows of BF16 [out, in], or from words of codes as format/weight.h has
// them (I32 [in * bits / 32, out], 4 or 8 bits).
void gpu_pack_fragments(const void* weight, int64_t out, int64_t in, int bits, void* fragments, void* stream);

}  // namespace lowbit
