#include "ops/cpu/matmul_kernels.h"

#include <immintrin.h>
#include <string.h>

namespace lowbit {
namespace {
#include "ops/cpu/vector_avx512.inc"
}  // namespace

namespace {
constexpr int64_t kRowBlock = 8;  // rows of x whose sums fit the registers
#include "ops/cpu/prefill.inc"
static_assert(sizeof(float) * kDepth * (kPanel + kStrip) <= kMatmulScratchBytes);
}  // namespace

void matmul_prefill_avx512(const MatmulArgs& args, int64_t begin, int64_t end, void* scratch) noexcept {
  run(args, begin, end, static_cast<float*>(scratch));
}

}  // namespace lowbit
