// The linear algebra of quantization on a GPU: ops/gram.h and packed_gemm.h through NVIDIA's libraries.
#pragma once

#include "ops/gemm.h"
#include "ops/gram.h"

namespace lowbit {

void gram_accumulate_on_gpu(const OpContext& context, ConstActivations x, int64_t tokens, int64_t width,
                            float* h);
[[nodiscard]] bool inverse_cholesky_on_gpu(const OpContext& context, const float* h, int64_t n,
                                           FactorPrecision precision, float* u);

// PackedFactor. `operands` without a: that is what was packed, from its row `begin` on.
Tensor pack_factor_on_gpu(const OpContext& context, const float* a, int64_t stride, int64_t rows,
                          int64_t depth);
constexpr int64_t kPackedGramRows = 1024;  // of the panel through which a permuted H is packed
Tensor pack_permuted_gram_on_gpu(const OpContext& context, const PermuteGramArgs& gram);
void subtract_product_on_gpu(const OpContext& context, const Tensor& packed, const GemmOperands& operands,
                             int64_t begin);

}  // namespace lowbit
