// The kernel of gpu_matmul_decode for one row.
#pragma once

#include "ops/cuda/matmul_decode.h"

namespace lowbit {

// False where x is too wide for it.
bool gpu_matmul_row(const GpuDecodeArgs& args, void* stream);

}  // namespace lowbit
