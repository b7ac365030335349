// ops/matmul.h on a GPU, and weights as its kernels read them.
#pragma once

#include "ops/matmul.h"

namespace lowbit {

void matmul_on_gpu(const OpContext& context, ConstActivations x, int64_t tokens,
                   std::span<const MatmulOutput> outputs, MatmulMode mode);

// A weight of this machine's memory, moved to the GPU: dense ones as BF16, codes as fragments.h says.
Tensor to_gpu(const OpContext& context, const Tensor& weight);
QuantizedTensor to_gpu(const OpContext& context, const QuantizedTensor& weight);

}  // namespace lowbit
