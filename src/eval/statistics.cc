#include "eval/statistics.h"

#include "base/fail.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace lowbit {

void RunningMean::add(double value) {
  ++count_;
  const double distance = value - mean_;
  mean_ += distance / static_cast<double>(count_);
  squares_ += distance * (value - mean_);
}

double RunningMean::standard_error() const {
  if (count_ < 2) return 0;
  const double count = static_cast<double>(count_);
  return std::sqrt(squares_ / (count - 1) / count);
}

double percentile(const std::vector<double>& ascending, double share) {
  if (ascending.empty()) return 0;
  const double place = std::clamp(share, 0.0, 1.0) * static_cast<double>(ascending.size() - 1);
  const size_t below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, ascending.size() - 1);
  const double part = place - static_cast<double>(below);
  return ascending[below] + part * (ascending[above] - ascending[below]);
}

namespace {

// Ranks of the values, less their mean.
std::vector<double> centered_ranks(const std::vector<float>& values) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return values[a] < values[b]; });
  std::vector<double> ranks(values.size());
  for (size_t begin = 0, end = 0; begin < order.size(); begin = end) {
    while (end < order.size() && values[order[end]] == values[order[begin]]) ++end;
    const double rank = static_cast<double>(begin + end - 1) / 2 - static_cast<double>(order.size() - 1) / 2;
    for (size_t i = begin; i < end; ++i) ranks[order[i]] = rank;
  }
  return ranks;
}

}  // namespace

std::optional<double> spearman(const std::vector<float>& a, const std::vector<float>& b) {
  LOWBIT_ASSERT(a.size() == b.size());
  const std::vector<double> x = centered_ranks(a), y = centered_ranks(b);
  double xy = 0, xx = 0, yy = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    xy += x[i] * y[i];
    xx += x[i] * x[i];
    yy += y[i] * y[i];
  }
  if (xx == 0 || yy == 0) return std::nullopt;
  return xy / std::sqrt(xx * yy);
}

std::optional<double> ratio(int64_t numerator, int64_t denominator) {
  if (denominator == 0) return std::nullopt;
  return static_cast<double>(numerator) / static_cast<double>(denominator);
}

double mcnemar_p_value(int64_t became_wrong, int64_t became_right) {
  const int64_t trials = became_wrong + became_right, least = std::min(became_wrong, became_right);
  // log C(trials, k) / 2^trials, from one k to the next.
  double term = -static_cast<double>(trials) * std::log(2.0), sum = 0;
  for (int64_t k = 0; k <= least; ++k) {
    if (k > 0) term += std::log(static_cast<double>(trials - k + 1) / static_cast<double>(k));
    sum += std::exp(term);
  }
  return std::min(1.0, 2 * sum);
}

Proportion wilson_interval(int64_t successes, int64_t trials) {
  Proportion result;
  if (trials <= 0) return result;
  constexpr double z = 1.959963984540054;  // the 97.5 % point of the normal distribution
  const double n = static_cast<double>(trials), share = static_cast<double>(successes) / n;
  const double scale = 1 + z * z / n, middle = (share + z * z / (2 * n)) / scale;
  const double reach = z * std::sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale;
  result.value = share;
  // At 0 and n the bound is exactly 0 and 1; rounding must not leave it just beside.
  result.low = successes == 0 ? 0 : std::max(0.0, middle - reach);
  result.high = successes == trials ? 1 : std::min(1.0, middle + reach);
  return result;
}

}  // namespace lowbit
