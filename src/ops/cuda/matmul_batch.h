// The kernel of gpu_matmul_decode for two to 32 rows where there is wgmma (compute capability 9.0).
#pragma once

#include "ops/cuda/matmul_decode.h"

namespace lowbit {

// False where there is none for these sizes, or on this GPU.
bool gpu_matmul_batch(const GpuDecodeArgs& args, void* stream);

// Whether it takes products of such weights for any number of outputs; then also with SwiGLU, and up to eight
// rows of x may come with a column_order, or as hidden.
bool fits_gpu_batch(int64_t in, int bits, int64_t group_size);

}  // namespace lowbit
