#include "ops/elementwise_args.h"

#include <immintrin.h>

namespace lowbit {
namespace {
// In this order.
// clang-format off
#include "ops/cpu/vector_avx512.inc"
#include "ops/cpu/exp.inc"
#include "ops/cpu/activation.inc"
// clang-format on
}  // namespace

void activate_avx512(const ActivateArgs& args, int64_t begin, int64_t end, void*) noexcept {
  activate_run(args, begin, end);
}

}  // namespace lowbit
