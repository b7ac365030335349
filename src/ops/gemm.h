// FP32 and FP64 matrix products for the linear algebra of quantization methods (layers use ops/matmul.h).
#pragma once

#include "ops/context.h"
#include "ops/kernel_table.h"

#include <vector>

namespace lowbit {

// c -= a^T b. a: [depth, rows], b: [depth, columns], c: [rows, columns], row-major with strides in elements;
// c overlaps neither. Deterministic for any number of threads: an element is summed over depth in order, in
// pieces of 512.
struct GemmOperands {
  const float* a = nullptr;
  const float* b = nullptr;
  float* c = nullptr;
  int64_t a_stride = 0, b_stride = 0, c_stride = 0;
  int64_t rows = 0, columns = 0, depth = 0;
};
void gemm_subtract(const OpContext& context, const GemmOperands& operands);

std::vector<KernelListing> gemm_kernels();  // of "gemm" and "gemm_double"

}  // namespace lowbit
