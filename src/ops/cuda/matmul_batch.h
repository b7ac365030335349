// The kernel of gpu_matmul_decode for two to 32 rows where there is wgmma (compute capability 9.0).
#pragma once

#include "ops/cuda/matmul_decode.h"

namespace lowbit {

// False where there is none for these sizes, or on this GPU.
bool gpu_matmul_batch(const GpuDecodeArgs& args, void* stream);

bool has_gpu_batch();  // this GPU can run it
// Whether it takes products of weights that have so many tiles of 16 outputs together; then with SwiGLU too.
bool fits_gpu_batch(int64_t in, int64_t tiles, int bits, int64_t group_size);
// Whether, if so, x may come as hidden. It has no column_order.
bool norms_in_batch(int64_t rows, int64_t tiles);

}  // namespace lowbit
