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

void layer_norm_ref(const LayerNormArgs& args, int64_t begin, int64_t end, void*) noexcept {
  const double count = static_cast<double>(args.width);
  for (int64_t row = begin; row < end; ++row) {
    const float* x = args.x + row * args.width;
    float* y = args.y + row * args.width;
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < args.width; ++i) sum += double{x[i]};
    const double mean = sum / count;
    for (int64_t i = 0; i < args.width; ++i) squares += (double{x[i]} - mean) * (double{x[i]} - mean);
    const float inverse = static_cast<float>(1 / std::sqrt(squares / count + double{args.epsilon}));
    const float center = static_cast<float>(mean);
    for (int64_t i = 0; i < args.width; ++i) y[i] = (x[i] - center) * inverse * args.weight[i] + args.bias[i];
  }
}

namespace {

float activated(Activation kind, float x) {
  switch (kind) {
    case Activation::kSilu:
      return x / (1.0f + std::exp(-x));
    case Activation::kGelu:
      return 0.5f * x * std::erfc(-x * 0.7071067811865476f);
    case Activation::kGeluTanh:
      return x / (1.0f + std::exp(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
    case Activation::kRelu:
      return x < 0 ? 0 : x;
    case Activation::kTanh:
      return std::tanh(x);
  }
  return NAN;
}

}  // namespace

void activate_ref(const ActivateArgs& args, int64_t begin, int64_t end, void*) noexcept {
  for (int64_t i = begin; i < end; ++i) {
    const float y = activated(args.kind, args.x[i]);
    args.out[i] = args.up ? y * args.up[i] : y;
  }
}

}  // namespace lowbit
