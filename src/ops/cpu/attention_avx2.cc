#include <immintrin.h>

#include "ops/attention_args.h"

namespace lowbit {
namespace {
#include "ops/cpu/vector_avx2.inc"

#include "ops/cpu/exp.inc"

#include "ops/cpu/attention.inc"
}  // namespace

void attention_avx2(const AttentionArgs& args, int64_t begin, int64_t end, void* scratch) noexcept {
  attention_run<FloatBlocks>(args, begin, end, static_cast<float*>(scratch));
}

}  // namespace lowbit
