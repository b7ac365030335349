#include "ops/elementwise_args.h"
#include "ops/softmax_args.h"

#include <immintrin.h>

namespace lowbit {
namespace {
// In this order.
// clang-format off
#include "ops/cpu/vector_avx2.inc"
#include "ops/cpu/exp.inc"
#include "ops/cpu/activation.inc"
// clang-format on

inline void norm_row(const RmsNormArgs& args, const float* x, float* y) {
  const int64_t width = args.width, whole = width / kLanes * kLanes;
  Wide sums[kWides] = {wide_zero(), wide_zero()};
  for (int64_t i = 0; i < width; i += kLanes) {
    const Vec v = i < whole ? load(x + i) : load_first(x + i, width - i, 0);
    for (int part = 0; part < kWides; ++part) {
      const Wide wide = widen(v, part);
      sums[part] = _mm256_fmadd_pd(wide, wide, sums[part]);
    }
  }
  const double mean = wide_reduce(wide_add(sums[0], sums[1])) / static_cast<double>(width);
  const Vec inverse = set1(static_cast<float>(1 / __builtin_sqrt(mean + static_cast<double>(args.epsilon))));
  for (int64_t i = 0; i < whole; i += kLanes)
    store(y + i, mul(mul(load(x + i), inverse), load(args.weight + i)));
  if (whole < width) {
    const int64_t count = width - whole;
    store_first(
        y + whole, count,
        mul(mul(load_first(x + whole, count, 0), inverse), load_first(args.weight + whole, count, 0)));
  }
}

// Sum over the row of of(x), of: a pair of vectors of doubles or one double to the same.
template <class Of>
inline double sum_of(const float* x, int64_t width, const Of& of) {
  const int64_t whole = width / kLanes * kLanes;
  Wide sums[kWides] = {wide_zero(), wide_zero()};
  for (int64_t i = 0; i < whole; i += kLanes) {
    const Vec v = load(x + i);
    for (int part = 0; part < kWides; ++part) sums[part] = wide_add(sums[part], of(widen(v, part)));
  }
  double sum = wide_reduce(wide_add(sums[0], sums[1]));
  for (int64_t i = whole; i < width; ++i) sum += wide_reduce(of(wide_set1(static_cast<double>(x[i])))) / 4;
  return sum;
}

inline void layer_norm_row(const LayerNormArgs& args, const float* x, float* y) {
  const int64_t width = args.width, whole = width / kLanes * kLanes;
  const double count = static_cast<double>(width);
  const double mean = sum_of(x, width, [](Wide v) { return v; }) / count;
  const Wide middle = wide_set1(mean);
  const double squares = sum_of(x, width, [middle](Wide v) {
    const Wide off = wide_sub(v, middle);
    return _mm256_mul_pd(off, off);
  });
  const float inverse =
      static_cast<float>(1 / __builtin_sqrt(squares / count + static_cast<double>(args.epsilon)));
  const float center = static_cast<float>(mean);
  auto normed = [&](Vec v, Vec weight, Vec bias) {
    return fma(mul(sub(v, set1(center)), set1(inverse)), weight, bias);
  };
  for (int64_t i = 0; i < whole; i += kLanes)
    store(y + i, normed(load(x + i), load(args.weight + i), load(args.bias + i)));
  if (const int64_t rest = width - whole; rest > 0) {
    store_first(y + whole, rest,
                normed(load_first(x + whole, rest, 0), load_first(args.weight + whole, rest, 0),
                       load_first(args.bias + whole, rest, 0)));
  }
}

inline int32_t argmax_of(const float* x, int64_t vocab) {
  const int64_t whole = vocab / (4 * kLanes) * (4 * kLanes);
  Vec most[4];
  for (int v = 0; v < 4; ++v) most[v] = set1(-__builtin_inff());
  for (int64_t i = 0; i < whole; i += 4 * kLanes) {
    for (int v = 0; v < 4; ++v) most[v] = max_of(load(x + i + v * kLanes), most[v]);
  }
  float maximum = reduce_max(max_of(max_of(most[0], most[1]), max_of(most[2], most[3])));
  for (int64_t i = whole; i < vocab; ++i) maximum = x[i] > maximum ? x[i] : maximum;
  for (int64_t i = 0; i < whole; i += kLanes) {
    const int equal = _mm256_movemask_ps(_mm256_cmp_ps(load(x + i), set1(maximum), _CMP_EQ_OQ));
    if (equal) return static_cast<int32_t>(i + __builtin_ctz(static_cast<unsigned>(equal)));
  }
  for (int64_t i = whole; i < vocab; ++i) {
    if (x[i] == maximum) return static_cast<int32_t>(i);
  }
  return -1;
}
}  // namespace

void rms_norm_avx2(const RmsNormArgs& args, int64_t begin, int64_t end, void*) noexcept {
  for (int64_t row = begin; row < end; ++row)
    norm_row(args, args.x + row * args.width, args.y + row * args.width);
}

void rope_avx2(const RopeArgs& args, int64_t begin, int64_t end, void*) noexcept {
  for (int64_t token = begin; token < end; ++token) {
    const float* cosines = args.cosines + args.positions[token] * args.half;
    const float* sines = args.sines + args.positions[token] * args.half;
    for (int64_t head = 0; head < args.heads; ++head) {
      float* low = args.x + (token * args.heads + head) * args.head_dim;
      float* high = low + args.half;
      int64_t i = 0;
      for (; i + kLanes <= args.half; i += kLanes) {
        const Vec a = load(low + i), b = load(high + i), c = load(cosines + i), s = load(sines + i);
        store(low + i, sub(mul(a, c), mul(b, s)));
        store(high + i, add(mul(b, c), mul(a, s)));
      }
      for (; i < args.half; ++i) {
        const float a = low[i], b = high[i];
        low[i] = a * cosines[i] - b * sines[i];
        high[i] = b * cosines[i] + a * sines[i];
      }
    }
  }
}

void layer_norm_avx2(const LayerNormArgs& args, int64_t begin, int64_t end, void*) noexcept {
  for (int64_t row = begin; row < end; ++row)
    layer_norm_row(args, args.x + row * args.width, args.y + row * args.width);
}

void activate_avx2(const ActivateArgs& args, int64_t begin, int64_t end, void*) noexcept {
  activate_run(args, begin, end);
}

void argmax_avx2(const ArgmaxArgs& args, int64_t begin, int64_t end, void*) noexcept {
  for (int64_t row = begin; row < end; ++row)
    args.out[row] = argmax_of(args.x + row * args.vocab, args.vocab);
}

}  // namespace lowbit
