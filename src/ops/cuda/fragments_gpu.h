// Codes to the order of fragments.h and back, on a GPU. All pointers are to its memory.
#pragma once

#include "format/levels.h"
#include "ops/cuda/matmul_decode.h"

#include <cstdint>
#include <span>

namespace lowbit {

// A quantized weight's words, scales and zero points as format/weight.h has them on a CPU, to what
// fragments.h says.
struct GpuPackArgs {
  int64_t out = 0, in = 0;
  int64_t group_size = 0, kept_group_size = 0;
  int bits = 0;
  bool has_table = false;                                                  // codes point into one
  bool has_wide_scales = false;                                            // F32, rounded to F16 ...
  float scale_factor = 1;                                                  // ... times this
  const void *words = nullptr, *scales = nullptr, *zero_points = nullptr;  // zero_points: null stays null
  void *fragments = nullptr, *fragment_scales = nullptr, *fragment_zero_points = nullptr;
};
void gpu_pack_fragments(const GpuPackArgs& args, void* stream);

// A dense matrix to codes that point into a table, with the scales of groups of 64 inputs: the codes and the
// scales (rounded to F16) of encode_group. Or to rows of int8, those of encode_int8_rows (ops/encode.h).
struct GpuEncodeArgs {
  int64_t out = 0, in = 0;         // in: a multiple of kTableGroup; of 8 for int8
  const Levels* levels = nullptr;  // of a format with 4 bits, in this machine's memory; null: int8
  ConstActivations from;           // F32, F16 or BF16 [out, in]
  void *fragments = nullptr, *fragment_scales = nullptr;
  // A value was not finite, or a scale beyond F16: the least `index` of such a matrix is left here.
  unsigned* failed = nullptr;
  unsigned index = 0;
};
void gpu_encode_fragments(const GpuEncodeArgs& args, void* stream);

// The other way, and to numbers: BF16 [out, in], scale * (code - zero_point) or scale * codebook[code],
// rounded to nearest. column_order: I32 [in] or null.
struct GpuUnpackArgs {
  int64_t out = 0, in = 0, group_size = 0;
  int bits = 0;
  std::span<const float> codebook;  // 2^bits values, 16 at least, in this machine's memory; or none
  float scale_factor = 1;           // of GpuPackArgs
  const void *fragments = nullptr, *scales = nullptr, *zero_points = nullptr;
  const int32_t* column_order = nullptr;
  uint16_t* to = nullptr;
};
void gpu_unpack_fragments(const GpuUnpackArgs& args, void* stream);

// Any weight, one thread an output: slow, for the shapes that the others do not take. x only, no SwiGLU.
void gpu_matmul_plain(const GpuDecodeArgs& args, void* stream);

}  // namespace lowbit
