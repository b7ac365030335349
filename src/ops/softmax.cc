#include "ops/softmax.h"

#include "ops/parallel.h"
#include "ops/softmax_args.h"

namespace lowbit {
namespace {

constexpr Kernel<LogSumExpArgs> kLogSumExpTable[] = {
    {"avx512", Isa::kAvx512, nullptr, log_sum_exp_avx512},
    {"avx2", Isa::kAvx2, nullptr, log_sum_exp_avx2},
    {"ref", Isa::kRef, nullptr, log_sum_exp_ref},
};
constexpr Kernel<ArgmaxArgs> kArgmaxTable[] = {
    {"avx2", Isa::kAvx2, nullptr, argmax_avx2},
    {"ref", Isa::kRef, nullptr, argmax_ref},
};
constexpr Kernel<DivergenceArgs> kDivergenceTable[] = {
    {"avx512", Isa::kAvx512, nullptr, divergence_avx512},
    {"avx2", Isa::kAvx2, nullptr, divergence_avx2},
    {"ref", Isa::kRef, nullptr, divergence_ref},
};

constexpr int64_t kChunk = 1 << 14;

}  // namespace

void log_sum_exp(const OpContext& context, const float* x, int64_t rows, int64_t vocab, double* out) {
  const LogSumExpArgs args{x, vocab, out};
  const auto& kernel = choose_kernel<LogSumExpArgs>(context, "log_sum_exp", kLogSumExpTable, args);
  run_kernel(context, kernel, args, rows, chunk_for(vocab, kChunk));
}

void argmax(const OpContext& context, const float* x, int64_t rows, int64_t vocab, int32_t* out) {
  const ArgmaxArgs args{x, vocab, out};
  const auto& kernel = choose_kernel<ArgmaxArgs>(context, "argmax", kArgmaxTable, args);
  run_kernel(context, kernel, args, rows, chunk_for(vocab, 4 * kChunk));
}

void divergence(const OpContext& context, const float* reference, const float* x, int64_t rows, int64_t vocab,
                double* out) {
  const DivergenceArgs args{reference, x, vocab, out};
  const auto& kernel = choose_kernel<DivergenceArgs>(context, "divergence", kDivergenceTable, args);
  run_kernel(context, kernel, args, rows, chunk_for(vocab, kChunk));
}

std::vector<KernelListing> softmax_kernels() {
  std::vector<KernelListing> list;
  append_listing<LogSumExpArgs>(list, "log_sum_exp", kLogSumExpTable);
  append_listing<ArgmaxArgs>(list, "argmax", kArgmaxTable);
  append_listing<DivergenceArgs>(list, "divergence", kDivergenceTable);
  return list;
}

}  // namespace lowbit
