#include "ops/gptq_block_args.h"

#include <immintrin.h>

namespace lowbit {
namespace {
// In this order.
// clang-format off
#include "ops/cpu/vector_avx2.inc"
#include "ops/cpu/levels.inc"
#include "ops/cpu/gptq_block.inc"
// clang-format on
}  // namespace

void gptq_block_avx2(const GptqBlockArgs& args, int64_t begin, int64_t end, void* scratch) noexcept {
  gptq_block_run(args, begin, end, scratch);
}

}  // namespace lowbit
