#include "ops/elementwise_args.h"

#include <cmath>

namespace lowbit {

void rms_norm_ref(const RmsNormArgs& args, int64_t begin, int64_t end, void*) noexcept {
  for (int64_t row = begin; row < end; ++row) {
    const float* x = args.x + row * args.width;
    float* y = args.y + row * args.width;
    double squares = 0;
    for (int64_t i = 0; i < args.width; ++i) squares += double{x[i]} * double{x[i]};
    const float inverse =
        static_cast<float>(1 / std::sqrt(squares / static_cast<double>(args.width) + double{args.epsilon}));
    for (int64_t i = 0; i < args.width; ++i) y[i] = x[i] * inverse * args.weight[i];
  }
}

void rope_ref(const RopeArgs& args, int64_t begin, int64_t end, void*) noexcept {
  for (int64_t token = begin; token < end; ++token) {
    const float* cosines = args.cosines + args.positions[token] * args.half;
    const float* sines = args.sines + args.positions[token] * args.half;
    for (int64_t head = 0; head < args.heads; ++head) {
      float* low = args.x + (token * args.heads + head) * args.head_dim;
      float* high = low + args.half;
      for (int64_t i = 0; i < args.half; ++i) {
        const float a = low[i], b = high[i];
        low[i] = a * cosines[i] - b * sines[i];
        high[i] = b * cosines[i] + a * sines[i];
      }
    }
  }
}

void swiglu_ref(const SwigluArgs& args, int64_t begin, int64_t end, void*) noexcept {
  for (int64_t i = begin; i < end; ++i) {
    const float gate = args.gate[i];
    args.out[i] = gate / (1.0f + std::exp(-gate)) * args.up[i];
  }
}

}  // namespace lowbit
