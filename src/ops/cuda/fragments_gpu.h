// Codes to the order of fragments.h and back, on a GPU. All pointers are to its memory.
#pragma once

#include "ops/cuda/matmul_decode.h"

#include <cstdint>

namespace lowbit {

// A quantized weight's words, scales and zero points as format/weight.h has them on a CPU, to what
// fragments.h says.
struct GpuPackArgs {
  int64_t out = 0, in = 0;
  int64_t group_size = 0, kept_group_size = 0;
  int bits = 0;
  const void *words = nullptr, *scales = nullptr, *zero_points = nullptr;  // zero_points: null stays null
  void *fragments = nullptr, *fragment_scales = nullptr, *fragment_zero_points = nullptr;
};
void gpu_pack_fragments(const GpuPackArgs& args, void* stream);

// The other way, and to numbers: BF16 [out, in], scale * (code - zero_point) rounded to nearest.
// column_order: I32 [in] or null.
struct GpuUnpackArgs {
  int64_t out = 0, in = 0, group_size = 0;
  int bits = 0;
  const void *fragments = nullptr, *scales = nullptr, *zero_points = nullptr;
  const int32_t* column_order = nullptr;
  uint16_t* to = nullptr;
};
void gpu_unpack_fragments(const GpuUnpackArgs& args, void* stream);

// Any weight, one thread an output: slow, for the shapes that the others do not take. x only, no SwiGLU.
void gpu_matmul_plain(const GpuDecodeArgs& args, void* stream);

}  // namespace lowbit
