#include "ops/cpu/matmul_kernels.h"

#include <immintrin.h>
#include <string.h>

namespace lowbit {
namespace {
#include "ops/cpu/vector_avx512.inc"
}  // namespace

namespace {
#include "ops/cpu/codebook_int16.inc"
}  // namespace

void matmul_decode_codebook_int16_avx512vnni(const MatmulArgs& args, int64_t begin, int64_t end,
                                             void*) noexcept {
  run(args, begin, end);
}

}  // namespace lowbit
