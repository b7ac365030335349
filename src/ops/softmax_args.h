// What the kernels over rows of logits get. Plain data only. Units: rows.
#pragma once

#include <cstdint>

namespace lowbit {

struct LogSumExpArgs {
  const float* x;
  int64_t vocab;
  double* out;
};
struct ArgmaxArgs {
  const float* x;
  int64_t vocab;
  int32_t* out;
};
struct DivergenceArgs {
  const float* reference;
  const float* x;
  int64_t vocab;
  double* out;
};

void log_sum_exp_ref(const LogSumExpArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void log_sum_exp_avx2(const LogSumExpArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void log_sum_exp_avx512(const LogSumExpArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void argmax_ref(const ArgmaxArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void argmax_avx2(const ArgmaxArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void divergence_ref(const DivergenceArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void divergence_avx2(const DivergenceArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void divergence_avx512(const DivergenceArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;

}  // namespace lowbit
