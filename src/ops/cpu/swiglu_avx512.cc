#include "ops/elementwise_args.h"

#include <immintrin.h>

namespace lowbit {
namespace {
// In this order.
// clang-format off
#include "ops/cpu/vector_avx512.inc"
#include "ops/cpu/exp.inc"
#include "ops/cpu/swiglu.inc"
// clang-format on
}  // namespace

void swiglu_avx512(const SwigluArgs& args, int64_t begin, int64_t end, void*) noexcept {
  swiglu_run(args, begin, end);
}

}  // namespace lowbit
