#include "ops/cpu/matmul_kernels.h"

#include <immintrin.h>
#include <string.h>

namespace lowbit {
namespace {
#include "ops/cpu/vector_avx512.inc"
}  // namespace

namespace {
// What the registers hold of x's rows and of vectors of output columns.
constexpr int kProductRows = 8;
constexpr int kProductVectors = 2;
#include "ops/cpu/int8_product.inc"
}  // namespace

void matmul_int8_avx512vnni(const MatmulArgs& args, int64_t begin, int64_t end, void* scratch) noexcept {
  run(args, begin, end, scratch);
}

}  // namespace lowbit
