#include "ops/softmax.h"

#include "ops/cuda/elementwise_gpu.h"
#include "ops/cuda/sampling_gpu.h"
#include "ops/parallel.h"
#include "ops/softmax_args.h"

#include <cmath>

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

// What a GPU's kernel leaves for each row, brought here.
template <class T, class Launch>
void read_rows(const OpContext& context, int64_t rows, T* out, const Launch& launch) {
  if (rows <= 0) return;
  const size_t bytes = static_cast<size_t>(rows) * sizeof(T);
  const Scratch there = context.workspace->take(bytes);
  launch(there.as<T>(), context.gpu->stream());
  context.gpu->copy_out(out, there.as<T>(), bytes);
}

}  // namespace

void log_sum_exp(const OpContext& context, const float* x, int64_t rows, int64_t vocab, double* out) {
  if constexpr (kHasCuda) {
    if (context.gpu) {
      read_rows(context, rows, out,
                [&](double* there, void* stream) { gpu_log_sum_exp(x, rows, vocab, there, stream); });
      return;
    }
  }
  const LogSumExpArgs args{x, vocab, out};
  const auto& kernel = choose_kernel<LogSumExpArgs>(context, "log_sum_exp", kLogSumExpTable, args);
  run_kernel(context, kernel, args, rows, chunk_for(vocab, kChunk));
}

void token_nll(const OpContext& context, const float* x, const int32_t* targets, int64_t rows, int64_t vocab,
               double* out) {
  if constexpr (kHasCuda) {
    if (context.gpu) {
      const size_t bytes = static_cast<size_t>(rows) * sizeof(int32_t);
      const Scratch there = context.workspace->take(bytes + 1);
      context.gpu->copy_in(there.as<void>(), targets, bytes);
      read_rows(context, rows, out, [&](double* to, void* stream) {
        gpu_token_nll(x, there.as<int32_t>(), rows, vocab, to, stream);
      });
      return;
    }
  }
  log_sum_exp(context, x, rows, vocab, out);
  for (int64_t row = 0; row < rows; ++row) out[row] -= static_cast<double>(x[row * vocab + targets[row]]);
}

void argmax(const OpContext& context, const float* x, int64_t rows, int64_t vocab, int32_t* out) {
  if constexpr (kHasCuda) {
    if (context.gpu) {
      read_rows(context, rows, out,
                [&](int32_t* there, void* stream) { gpu_argmax(x, rows, vocab, there, false, stream); });
      return;
    }
  }
  const ArgmaxArgs args{x, vocab, out};
  const auto& kernel = choose_kernel<ArgmaxArgs>(context, "argmax", kArgmaxTable, args);
  run_kernel(context, kernel, args, rows, chunk_for(vocab, 4 * kChunk));
}

void finite_argmax(const OpContext& context, const float* x, int64_t rows, int64_t vocab, int32_t* out) {
  if constexpr (kHasCuda) {
    if (context.gpu) {
      read_rows(context, rows, out,
                [&](int32_t* there, void* stream) { gpu_argmax(x, rows, vocab, there, true, stream); });
      return;
    }
  }
  argmax(context, x, rows, vocab, out);
  for (int64_t row = 0; row < rows; ++row) {
    if (out[row] >= 0 && std::isinf(x[row * vocab + out[row]])) out[row] = -1;
  }
}

void divergence(const OpContext& context, const float* reference, const float* x, int64_t rows, int64_t vocab,
                double* out) {
  if constexpr (kHasCuda) {
    if (context.gpu) {
      read_rows(context, rows, out, [&](double* there, void* stream) {
        gpu_divergence(reference, x, rows, vocab, there, stream);
      });
      return;
    }
  }
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
