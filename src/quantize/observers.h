// Which grid the inputs of a layer get: what calibration shows of them, and rules that choose a range from
// it. Of a tensor as a whole; the sums are of whole numbers or in the order of the batches, so that threads
// do not matter.
#pragma once

#include "base/threads.h"
#include "format/int8.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

enum class Observer : uint8_t { kMinmax, kMoving, kHistogram, kPercentile, kMse, kEntropy };
std::optional<Observer> find_observer(std::string_view name);
std::string_view observer_name(Observer observer);
std::string observer_names();  // "auto", "minmax", "moving", ..., for messages
// Of the option, beside the names of observers: which of them is best is measured for each layer.
inline constexpr std::string_view kAutoObserver = "auto";

struct ObserverRule {
  Observer observer = Observer::kMinmax;
  float percentile = 99.99f;  // of magnitudes that kPercentile covers; above 50, at most 100
  bool is_symmetric = true;
  CodeRange codes = {};
};

struct Observation {
  int64_t values = 0;
  float lowest = 0, highest = 0;  // so far; of kMoving averages of the batches'
  // kHistogram: kHistogramBins over [lowest, highest], as torch.ao keeps them; growing spreads them anew.
  // kPercentile, kMse, kEntropy: 2 * kMagnitudeBins over [-limit, limit), limit a power of two; growing adds
  // neighbours, which is exact. Empty otherwise.
  std::vector<double> counts;
  float limit = 0;
};
constexpr int64_t kHistogramBins = 2048, kMagnitudeBins = 4096;

// Adds a batch: of kMoving, what is averaged over. False, and nothing is added, when a value is not finite
// or beyond 1e30.
bool observe(const ThreadPool& threads, const ObserverRule& rule, const float* values, int64_t count,
             Observation& seen);

// The grid of what was seen. kInvalidArgument when that is nothing.
InputGrid choose_grid(const ObserverRule& rule, const Observation& seen);

}  // namespace lowbit
