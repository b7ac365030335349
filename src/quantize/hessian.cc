#include "quantize/hessian.h"

#include "base/fail.h"
#include "ops/gram.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace lowbit {
namespace {

class Factorization {
 public:
  Factorization(const OpContext& ops, const Hessian& hessian, std::span<const int32_t> order,
                float dead_diagonal)
      : ops_(ops), hessian_(hessian), order_(order), diagonal_(hessian.diagonal) {
    double sum = 0, live = 0, alive = 0;
    for (float value : diagonal_) {
      sum += value;
      largest_ = std::max<double>(largest_, value);
      if (value > 0) live += value, alive += 1;
    }
    const double fill = dead_diagonal > 0 ? double{dead_diagonal} : alive > 0 ? live / alive : 1;
    for (float& value : diagonal_) {
      if (!(value > 0)) value = static_cast<float>(fill), sum += fill;
    }
    mean_ = sum / static_cast<double>(diagonal_.size());
    result_.values = allocate(ops, DType::kF32, {hessian.width(), hessian.width()});
  }

  bool attempt(double damp_percent, double floor, FactorPrecision precision) {
    const int64_t width = hessian_.width();
    const float damping = static_cast<float>(damp_percent * mean_ + floor);
    std::vector<float> diagonal;
    for (int32_t column : order_) diagonal.push_back(diagonal_[static_cast<size_t>(column)] + damping);
    const Tensor order_there = placed(ops_, order_), diagonal_there = placed(ops_, diagonal);
    float* u = result_.values.mutable_data<float>();
    permute_gram(ops_, {.h = hessian_.values.data<float>(),
                        .order = order_there.data<int32_t>(),
                        .diagonal = diagonal_there.data<float>(),
                        .width = width,
                        .rows = width,
                        .to = u});
    if (!inverse_cholesky(ops_, u, width, precision, u)) return false;
    for (float pivot : diagonal_of(ops_, u, width)) {
      if (!(pivot > 0) || !std::isfinite(pivot)) return false;
    }
    result_.damp_percent = damp_percent;
    return true;
  }

  double largest() const { return largest_; }
  InverseFactor& result() { return result_; }

 private:
  const OpContext& ops_;
  const Hessian& hessian_;
  std::span<const int32_t> order_;
  std::vector<float> diagonal_;
  double mean_ = 0, largest_ = 0;
  InverseFactor result_;
};

}  // namespace

bool Hessian::is_finite() const {
  return std::all_of(diagonal.begin(), diagonal.end(), [](float value) { return std::isfinite(value); });
}

Hessian make_hessian(const OpContext& ops, Tensor values, int64_t tokens) {
  std::vector<float> diagonal = diagonal_of(ops, values.data<float>(), values.size(0));
  return {std::move(values), std::move(diagonal), tokens};
}

HessianAccumulator::HessianAccumulator(const OpContext& ops, int64_t width)
    : ops_(&ops), width_(width), hessian_{zeros(ops, DType::kF32, {width, width}), {}, 0} {
  if (!ops.gpu) buffer_ = Tensor::allocate(DType::kF32, {kChunkTokens, width});
}

void HessianAccumulator::add(ConstActivations rows, int64_t tokens) {
  hessian_.tokens += tokens;
  float* h = hessian_.values.mutable_data<float>();
  if (ops_->gpu) return gram_accumulate(*ops_, rows, tokens, width_, h);
  const float* x = floats(rows);
  while (tokens > 0) {
    int64_t taken = std::min(tokens, kChunkTokens - buffered_);
    if (taken == kChunkTokens) {
      gram_accumulate(*ops_, x, taken, width_, h);
    } else {
      std::memcpy(buffer_.mutable_data<float>() + buffered_ * width_, x,
                  static_cast<size_t>(taken * width_) * sizeof(float));
      buffered_ += taken;
      if (buffered_ == kChunkTokens) {
        gram_accumulate(*ops_, buffer_.data<float>(), buffered_, width_, h);
        buffered_ = 0;
      }
    }
    x += taken * width_;
    tokens -= taken;
  }
}

Hessian HessianAccumulator::finish() {
  float* h = hessian_.values.mutable_data<float>();
  if (buffered_ > 0) gram_accumulate(*ops_, buffer_.data<float>(), buffered_, width_, h);
  buffered_ = 0;
  mirror_upper(*ops_, h, width_);
  buffer_ = Tensor();
  return make_hessian(*ops_, std::move(hessian_.values), hessian_.tokens);
}

std::optional<InverseFactor> invert(const OpContext& ops, const Hessian& hessian,
                                    std::span<const int32_t> order, const Inversion& inversion) {
  if (!hessian.is_finite()) return std::nullopt;
  const double damp_percent = inversion.damp_percent;
  Factorization factorization(ops, hessian, order, inversion.dead_diagonal);
  InverseFactor& result = factorization.result();
  double step = 0.01;
  for (double percent = damp_percent; percent < 1; percent += step, step *= 2) {
    if (!factorization.attempt(percent, 0, inversion.precision)) continue;
    if (percent > damp_percent) {
      result.note = fmt::format("the Hessian was singular at damp_percent {:.3g}; {:.3g} was needed",
                                damp_percent, percent);
    }
    return std::move(result);
  }
  for (double floor = 1e-6; floor < 1; floor *= 10) {
    if (factorization.attempt(damp_percent, floor * factorization.largest(), inversion.precision)) {
      result.note =
          fmt::format("the Hessian was singular; {:.0e} of its largest diagonal element was added", floor);
      return std::move(result);
    }
  }
  if (factorization.attempt(damp_percent, 0, FactorPrecision::kDouble)) {
    result.note = "the Hessian was inverted in double precision";
    return std::move(result);
  }
  return std::nullopt;
}

}  // namespace lowbit
