// Means with their errors, percentiles, and intervals of proportions.
#pragma once

#include "lowbit/evaluate.h"

#include <cstdint>
#include <vector>

namespace lowbit {

// Mean and variance of values that arrive one by one. Welford 1962.
class RunningMean {
 public:
  void add(double value);
  int64_t count() const { return count_; }
  double mean() const { return mean_; }  // 0 without values
  double standard_error() const;         // sample deviation / sqrt(count); 0 below two values

 private:
  int64_t count_ = 0;
  double mean_ = 0, squares_ = 0;
};

// The value below which `share` (0 to 1) of the ascending values lie, interpolated linearly between
// neighbours as numpy does by default. 0 for an empty list.
double percentile(const std::vector<double>& ascending, double share);

// Spearman's rank correlation; equal values share the mean of their ranks. None where one side is constant or
// there are fewer than two values.
std::optional<double> spearman(const std::vector<float>& a, const std::vector<float>& b);

// numerator / denominator; none when the denominator is 0.
std::optional<double> ratio(int64_t numerator, int64_t denominator);

}  // namespace lowbit
