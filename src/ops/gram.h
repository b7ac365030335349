// X^T X, the matrix that GPTQ calls its Hessian, and its inverse Cholesky factor.
#pragma once

#include "ops/context.h"
#include "ops/gram_args.h"
#include "ops/kernel_table.h"

#include <cstdint>
#include <vector>

namespace lowbit {

// h += x^T x. x: [tokens, width]; h: [width, width] F32, of which elements with row <= column are to be read:
// the CPU leaves the others alone, a GPU does not. The result depends on how tokens are cut into calls, but
// not on the number of threads. The AMX kernel rounds x to BF16 (products then are exact in FP32).
void gram_accumulate(const OpContext& context, ConstActivations x, int64_t tokens, int64_t width, float* h);

// Copies the part above the diagonal to below it.
void mirror_upper(const OpContext& context, float* matrix, int64_t width);

// In this machine's memory.
std::vector<float> diagonal_of(const OpContext& context, const float* matrix, int64_t width);

// Rows and columns in another order, and another diagonal.
void permute_gram(const OpContext& context, const PermuteGramArgs& args);

// What lies near the diagonal of that matrix: band[i][kGramBand / 2 + j - i] for |i - j| < kGramBand / 2. So
// a block of up to kGramBand / 2 columns from `begin` on stands at band + begin * kGramBand + kGramBand / 2
// with kGramBand - 1 elements from row to row. band: [width, kGramBand]. args.first, rows and to are not
// read. On a GPU.
constexpr int64_t kGramBand = 256;
void permuted_gram_band(const OpContext& context, const PermuteGramArgs& args, float* band);

enum class FactorPrecision { kFloat, kDouble };

// The upper triangular U with inverse(H) = U^T U, U = R^-1 where H = R R^T and R is upper triangular
// (Cholesky from the last row up). h: [width, width], elements with row <= column are read. u: [width,
// width], below the diagonal zero; may be h. False, u undefined, when H is not positive definite in this
// precision. On a GPU through cuSOLVER; kDevice where that cannot be used.
[[nodiscard]] bool inverse_cholesky(const OpContext& context, const float* h, int64_t width,
                                    FactorPrecision precision, float* u);

// Of "gram". inverse_cholesky runs on the kernels of ops/gemm.h.
std::vector<KernelListing> gram_kernels();

}  // namespace lowbit
