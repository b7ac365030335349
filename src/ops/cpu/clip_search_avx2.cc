#include "ops/clip_search_args.h"

#include <immintrin.h>

namespace lowbit {
namespace {
// In this order.
// clang-format off
#include "ops/cpu/vector_avx2.inc"
#include "ops/cpu/levels.inc"
#include "ops/cpu/clip_search.inc"
// clang-format on
}  // namespace

void clip_search_avx2(const ClipSearchArgs& args, int64_t begin, int64_t end, void* scratch) noexcept {
  clip_search_run(args, begin, end, scratch);
}

}  // namespace lowbit
