#include "ops/attention_args.h"

#include <immintrin.h>

namespace lowbit {
namespace {
// In this order.
// clang-format off
#include "ops/cpu/vector_avx2.inc"
#include "ops/cpu/exp.inc"
#include "ops/cpu/attention.inc"
// clang-format on
}  // namespace

void attention_avx2(const AttentionArgs& args, int64_t begin, int64_t end, void* scratch) noexcept {
  attention_run<FloatBlocks>(args, begin, end, static_cast<float*>(scratch));
}

}  // namespace lowbit
