// The kernel of gpu_matmul_decode for two to 32 rows where there is wgmma (compute capability 9.0).
#pragma once

#include "ops/cuda/matmul_decode.h"

namespace lowbit {

// False where there is none for these sizes, on this GPU, for x in a column_order or x that it is to norm.
bool gpu_matmul_batch(const GpuDecodeArgs& args, void* stream);

bool has_gpu_batch();  // this GPU can run it
// Most rows of one launch with weights that have so many tiles of 16 outputs together; 0 where there is none.
int64_t gpu_batch_rows(int64_t in, int64_t tiles, int bits, int64_t group_size);

}  // namespace lowbit
