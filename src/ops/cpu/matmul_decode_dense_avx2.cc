#include "ops/cpu/matmul_kernels.h"

#include <immintrin.h>
#include <string.h>

namespace lowbit {
namespace {
#include "ops/cpu/vector_avx2.inc"
}  // namespace

namespace {
constexpr int kDenseColumns = 2;  // rows of W that meet four rows of x at a time: what fits the registers
#include "ops/cpu/dense_decode.inc"
}  // namespace

void matmul_decode_dense_avx2(const MatmulArgs& args, int64_t begin, int64_t end, void*) noexcept {
  run(args, begin, end);
}

}  // namespace lowbit
