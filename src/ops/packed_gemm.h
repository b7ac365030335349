// A matrix that is multiplied many times from the left, packed once: the Hessian of coordinate descent, which
// every slab of rows and every sweep reads again.
#pragma once

#include "ops/context.h"
#include "ops/gemm_args.h"
#include "ops/gram_args.h"
#include "ops/kernel_table.h"
#include "tensor/tensor.h"

#include <vector>

namespace lowbit {

class PackedFactor {
 public:
  PackedFactor() = default;
  // a: F32 [depth, rows], row-major with `stride`. Takes about the bytes of `a`, on a GPU half as much again.
  // There and with AMX each element is kept as the sum of two BF16 numbers (16 bits of mantissa; a product of
  // the two low parts is left out).
  PackedFactor(const OpContext& context, const float* a, int64_t stride, int64_t rows, int64_t depth);
  // The same of a permuted H that is never whole in memory. On a GPU.
  PackedFactor(const OpContext& context, const PermuteGramArgs& gram);

  // c -= a[begin .. end, :]^T b. b: F32 [end - begin, columns], c: F32 [rows, columns]. The same bits for any
  // number of threads, and for any cut of the columns into calls.
  void subtract_product(const OpContext& context, int64_t begin, int64_t end, const float* b,
                        int64_t b_stride, float* c, int64_t c_stride, int64_t columns) const;

 private:
  const Kernel<GemmArgs>* kernel_ = nullptr;  // null on a GPU
  int64_t rows_ = 0, depth_ = 0;
  Tensor packed_;
};

std::vector<KernelListing> packed_gemm_kernels();

}  // namespace lowbit
