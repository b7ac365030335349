#include "ops/softmax_args.h"

#include <algorithm>
#include <cmath>

namespace lowbit {
namespace {

double log_sum_exp_of(const float* x, int64_t vocab) {
  float maximum = -INFINITY;
  for (int64_t i = 0; i < vocab; ++i) {
    if (std::isnan(x[i])) return NAN;
    maximum = std::max(maximum, x[i]);
  }
  if (std::isinf(maximum)) return maximum;
  double sum = 0;
  for (int64_t i = 0; i < vocab; ++i) sum += std::exp(double{x[i]} - double{maximum});
  return double{maximum} + std::log(sum);
}

}  // namespace

void log_sum_exp_ref(const LogSumExpArgs& args, int64_t begin, int64_t end, void*) noexcept {
  for (int64_t row = begin; row < end; ++row)
    args.out[row] = log_sum_exp_of(args.x + row * args.vocab, args.vocab);
}

void argmax_ref(const ArgmaxArgs& args, int64_t begin, int64_t end, void*) noexcept {
  for (int64_t row = begin; row < end; ++row) {
    const float* x = args.x + row * args.vocab;
    int64_t best = -1;
    for (int64_t i = 0; i < args.vocab; ++i) {
      if (!std::isnan(x[i]) && (best < 0 || x[i] > x[best])) best = i;
    }
    args.out[row] = static_cast<int32_t>(best);
  }
}

void divergence_ref(const DivergenceArgs& args, int64_t begin, int64_t end, void*) noexcept {
  for (int64_t row = begin; row < end; ++row) {
    const float* reference = args.reference + row * args.vocab;
    const float* x = args.x + row * args.vocab;
    const double reference_total = log_sum_exp_of(reference, args.vocab),
                 total = log_sum_exp_of(x, args.vocab);
    double sum = std::isfinite(reference_total) && std::isfinite(total) ? 0.0 : NAN;
    for (int64_t i = 0; i < args.vocab; ++i) {
      const double log_p = double{reference[i]} - reference_total;
      const double p = std::exp(log_p);
      if (p > 0) sum += p * (log_p - (double{x[i]} - total));
    }
    args.out[row] = sum;
  }
}

}  // namespace lowbit
