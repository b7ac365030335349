#include "ops/softmax_args.h"

#include <immintrin.h>

namespace lowbit {
namespace {
// In this order.
// clang-format off
#include "ops/cpu/vector_avx2.inc"
#include "ops/cpu/exp.inc"
#include "ops/cpu/softmax.inc"
// clang-format on
}  // namespace

void log_sum_exp_avx2(const LogSumExpArgs& args, int64_t begin, int64_t end, void*) noexcept {
  for (int64_t row = begin; row < end; ++row)
    args.out[row] = log_sum_exp_of(args.x + row * args.vocab, args.vocab);
}

void divergence_avx2(const DivergenceArgs& args, int64_t begin, int64_t end, void*) noexcept {
  for (int64_t row = begin; row < end; ++row) {
    args.out[row] = divergence_of(args.reference + row * args.vocab, args.x + row * args.vocab, args.vocab);
  }
}

}  // namespace lowbit
