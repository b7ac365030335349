#include "quantize/observers.h"

#include "base/fail.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace lowbit {
namespace {

constexpr int64_t kChunk = 1 << 16;  // values that a thread takes at a time
constexpr float kMost = 1e30f;       // of a magnitude: beyond it, widths and squares are no numbers
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Range {
  float low = std::numeric_limits<float>::infinity(), high = -std::numeric_limits<float>::infinity();
  float size() const { return std::max(std::abs(low), std::abs(high)); }
};

// Of values up to kMost; otherwise nothing.
std::optional<Range> range_of(const ThreadPool& threads, const float* values, int64_t count) {
  std::vector<std::optional<Range>> chunks(static_cast<size_t>((count + kChunk - 1) / kChunk));
  threads.parallel_for(static_cast<int64_t>(chunks.size()), 1, [&](int64_t first, int64_t last, int) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      Range range;
      bool is_finite = true;
      for (int64_t i = chunk * kChunk; i < std::min(count, (chunk + 1) * kChunk); ++i) {
        range.low = std::min(range.low, values[i]);
        range.high = std::max(range.high, values[i]);
        is_finite = is_finite && std::abs(values[i]) <= kMost;
      }
      if (is_finite) chunks[static_cast<size_t>(chunk)] = range;
    }
  });
  Range all;
  for (const std::optional<Range>& chunk : chunks) {
    if (!chunk) return std::nullopt;
    all = {std::min(all.low, chunk->low), std::max(all.high, chunk->high)};
  }
  return all;
}

// Adds each value to counts[bin_of(value)].
template <class BinOf>
void count_values(const ThreadPool& threads, const float* values, int64_t count, std::vector<double>& counts,
                  const BinOf& bin_of) {
  std::vector<std::vector<int64_t>> own(static_cast<size_t>(threads.size()));
  threads.parallel_for(count, kChunk, [&](int64_t first, int64_t last, int worker) {
    std::vector<int64_t>& mine = own[static_cast<size_t>(worker)];
    mine.resize(counts.size());
    for (int64_t i = first; i < last; ++i) ++mine[bin_of(values[i])];
  });
  for (const std::vector<int64_t>& mine : own) {
    for (size_t bin = 0; bin < mine.size(); ++bin) counts[bin] += static_cast<double>(mine[bin]);
  }
}

// As torch.histc finds it, in F32.
struct HistogramBins {
  float low, width;
  explicit HistogramBins(const Range& range) : low(range.low), width(range.high - range.low) {
    if (width > 0) return;
    low -= 1;
    width = 2;
  }
  size_t operator()(float value) const {
    const auto bin = static_cast<int64_t>((value - low) * static_cast<float>(kHistogramBins) / width);
    return static_cast<size_t>(std::clamp<int64_t>(bin, 0, kHistogramBins - 1));
  }
};

// The counts of a narrower range in the bins of a wider one: each bin in sixteen parts, which go where their
// middles are.
std::vector<double> spread(const std::vector<double>& counts, const Range& from, const Range& to) {
  constexpr int64_t kParts = 16;
  std::vector<double> wider(static_cast<size_t>(kHistogramBins));
  if (from.low == from.high) {
    wider[HistogramBins(to)(from.low)] = std::accumulate(counts.begin(), counts.end(), 0.0);
    return wider;
  }
  const double part = (double{from.high} - from.low) / (kHistogramBins * kParts),
               width = (double{to.high} - to.low) / kHistogramBins;
  for (int64_t i = 0; i < kHistogramBins * kParts; ++i) {
    const double middle = from.low + (static_cast<double>(i) + 0.5) * part;
    const auto bin = static_cast<int64_t>(std::floor((middle - to.low) / width));
    wider[static_cast<size_t>(std::clamp<int64_t>(bin, 0, kHistogramBins - 1))] +=
        counts[static_cast<size_t>(i / kParts)] / kParts;
  }
  return wider;
}

void add_to_histogram(const ThreadPool& threads, const Range& batch, const float* values, int64_t count,
                      Observation& seen) {
  Range range = batch;
  if (seen.values == 0) {
    seen.counts.assign(static_cast<size_t>(kHistogramBins), 0);
  } else {
    const Range before{seen.lowest, seen.highest};
    range = {std::min(before.low, batch.low), std::max(before.high, batch.high)};
    if (range.low != before.low || range.high != before.high)
      seen.counts = spread(seen.counts, before, range);
  }
  count_values(threads, values, count, seen.counts, HistogramBins(range));
}

void add_to_magnitudes(const ThreadPool& threads, const Range& batch, const float* values, int64_t count,
                       Observation& seen) {
  const auto middle = static_cast<size_t>(kMagnitudeBins);
  // Above all magnitudes; 2^-100 keeps the width of a bin a number.
  const int exponent = batch.size() > 0 ? std::max(std::ilogb(batch.size()) + 1, -100) : -100;
  const float limit = std::ldexp(1.0f, exponent);
  if (seen.counts.empty()) {
    seen.counts.assign(2 * middle, 0);
    seen.limit = limit;
  }
  for (; seen.limit < limit; seen.limit *= 2) {
    std::vector<double> wider(2 * middle);
    for (size_t bin = 0; bin < 2 * middle; ++bin) wider[middle / 2 + bin / 2] += seen.counts[bin];
    seen.counts = std::move(wider);
  }
  const float scale = static_cast<float>(kMagnitudeBins) / seen.limit;
  count_values(threads, values, count, seen.counts, [scale](float value) {
    const float bin = value * scale;
    const auto toward_zero = static_cast<int64_t>(bin);
    return static_cast<size_t>(toward_zero - (bin < static_cast<float>(toward_zero)) + kMagnitudeBins);
  });
}

// --- rules: a range from what was seen

Range whole_range(const ObserverRule&, const Observation& seen) { return {seen.lowest, seen.highest}; }

// What rounding values that lie evenly between two distances from a level adds to the squared error.
double cubes(double begin, double end) { return (end * end * end - begin * begin * begin) / 3; }

// The squared error when bins [first, last] become 256 levels, as torch.ao counts it.
double histogram_error(const std::vector<double>& counts, double width, int64_t first, int64_t last) {
  constexpr double kLevels = 256;
  const double step = width * static_cast<double>(last - first + 1) / kLevels;
  if (step == 0) return 0;
  double error = 0;
  for (int64_t bin = 0; bin < kHistogramBins; ++bin) {
    const double count = counts[static_cast<size_t>(bin)];
    if (count == 0) continue;
    const double begin = static_cast<double>(bin - first) * width, end = begin + width;
    const double first_level = std::clamp(std::floor(begin / step), 0.0, kLevels - 1),
                 last_level = std::clamp(std::floor(end / step), 0.0, kLevels - 1);
    error += count / width *
             (cubes(begin - (first_level + 0.5) * step, step / 2) +
              (last_level - first_level - 1) * cubes(-step / 2, step / 2) +
              cubes(-step / 2, end - (last_level + 0.5) * step));
  }
  return error;
}

// torch.ao's search: from both ends quantiles of 1e-5 are left out, from the side where that saves more bins,
// as long as the error falls.
Range least_squares_range(const ObserverRule&, const Observation& seen) {
  constexpr double kStep = 1e-5;
  std::vector<double> sums(seen.counts.size());
  std::partial_sum(seen.counts.begin(), seen.counts.end(), sums.begin());
  const double total = sums.back(), width = (double{seen.highest} - seen.lowest) / kHistogramBins;
  const auto sum = [&](int64_t bin) { return sums[static_cast<size_t>(bin)]; };
  int64_t first = 0, last = kHistogramBins - 1;
  double least = kInfinity, below = 0, above = 1;
  while (below < above) {
    int64_t left = first, right = last;
    while (left < last && sum(left) < (below + kStep) * total) ++left;
    while (right > first && sum(right) > (above - kStep) * total) --right;
    const bool is_left = left - first > last - right;
    (is_left ? below : above) += is_left ? kStep : -kStep;
    if ((is_left ? left == first : right == last)) continue;
    const int64_t next_first = is_left ? left : first, next_last = is_left ? last : right;
    const double error = histogram_error(seen.counts, width, next_first, next_last);
    if (error > least) break;
    least = error;
    first = next_first;
    last = next_last;
  }
  return {static_cast<float>(seen.lowest + width * static_cast<double>(first)),
          static_cast<float>(seen.lowest + width * static_cast<double>(last + 1))};
}

Range clipped(const Observation& seen, double magnitude) {
  const auto most = static_cast<float>(magnitude);
  return {std::max(seen.lowest, -most), std::min(seen.highest, most)};
}

// Counts of magnitudes, up to the last that is not 0.
std::vector<double> magnitudes(const Observation& seen) {
  const auto middle = static_cast<size_t>(kMagnitudeBins);
  std::vector<double> counts(middle);
  for (size_t bin = 0; bin < middle; ++bin)
    counts[bin] = seen.counts[middle + bin] + seen.counts[middle - 1 - bin];
  while (counts.size() > 1 && counts.back() == 0) counts.pop_back();
  return counts;
}

// Covers a share of the magnitudes.
Range percentile_range(const ObserverRule& rule, const Observation& seen) {
  const std::vector<double> counts = magnitudes(seen);
  const double wanted = static_cast<double>(seen.values) * rule.percentile / 100;
  double sum = 0;
  size_t bin = 0;
  while (bin < counts.size() && sum < wanted) sum += counts[bin++];
  return clipped(seen, static_cast<double>(bin) * seen.limit / kMagnitudeBins);
}

// The least squared error among ranges clipped at 100, 99, ... 5 hundredths of the largest magnitude.
Range least_error_range(const ObserverRule& rule, const Observation& seen) {
  const double width = double{seen.limit} / kMagnitudeBins, largest = Range{seen.lowest, seen.highest}.size();
  double least = kInfinity;
  Range best{seen.lowest, seen.highest};
  for (int hundredths = 100; hundredths >= 5; --hundredths) {
    const Range range = clipped(seen, largest * hundredths / 100);
    const InputGrid grid = input_grid(range.low, range.high, rule.is_symmetric, rule.codes);
    double error = 0;
    for (size_t bin = 0; bin < seen.counts.size(); ++bin) {
      if (seen.counts[bin] == 0) continue;
      const double value = (static_cast<double>(bin) - kMagnitudeBins + 0.5) * width;
      const int code = encode_input(static_cast<float>(value), grid, rule.codes);
      const double distance = value - double{decode_input(code, grid)};
      error += seen.counts[bin] * distance * distance;
    }
    if (error < least) {
      least = error;
      best = range;
    }
  }
  return best;
}

// KL(p || q) of the first `kept` bins, what is above added to the last of them (p), and of the same in 128
// levels, each level's count shared evenly by its bins that are not empty (q).
double divergence(const std::vector<double>& counts, size_t kept, double above) {
  constexpr size_t kLevels = 128;
  double p_total = above, q_total = 0, sum = 0;
  for (size_t bin = 0; bin < kept; ++bin) q_total += counts[bin];
  p_total += q_total;
  size_t bin = 0;
  for (size_t level = 0; level < kLevels; ++level) {
    const size_t first = bin, end = (level + 1) * kept / kLevels;
    double count = 0, filled = 0;
    for (; bin < end; ++bin) {
      count += counts[bin];
      filled += counts[bin] > 0;
    }
    for (size_t i = first; i < end; ++i) {
      const double p = (counts[i] + (i + 1 == kept ? above : 0)) / p_total;
      if (p == 0) continue;
      if (counts[i] == 0) return kInfinity;
      sum += p * std::log(p / (count / filled / q_total));
    }
  }
  return sum;
}

// Migacz, 8-bit Inference with TensorRT, GTC 2017.
Range entropy_range(const ObserverRule&, const Observation& seen) {
  const std::vector<double> counts = magnitudes(seen);
  size_t best = counts.size();
  double least = kInfinity, above = 0;
  for (size_t kept = counts.size(); kept >= 128; above += counts[--kept]) {
    const double found = divergence(counts, kept, above);
    if (found < least) {
      least = found;
      best = kept;
    }
  }
  return clipped(seen, static_cast<double>(best) * seen.limit / kMagnitudeBins);
}

struct ObserverRow {
  Observer observer;
  std::string_view name;
  void (*add)(const ThreadPool& threads, const Range& batch, const float* values, int64_t count,
              Observation& seen);  // to the counts; null: there are none
  Range (*choose)(const ObserverRule& rule, const Observation& seen);
};
constexpr ObserverRow kObservers[] = {
    {Observer::kMinmax, "minmax", nullptr, whole_range},
    {Observer::kMoving, "moving", nullptr, whole_range},
    {Observer::kHistogram, "histogram", add_to_histogram, least_squares_range},
    {Observer::kPercentile, "percentile", add_to_magnitudes, percentile_range},
    {Observer::kMse, "mse", add_to_magnitudes, least_error_range},
    {Observer::kEntropy, "entropy", add_to_magnitudes, entropy_range}};

const ObserverRow& row_of(Observer observer) {
  for (const ObserverRow& row : kObservers) {
    if (row.observer == observer) return row;
  }
  fail(ErrorCode::kInternal, "observer {} is not in the table", static_cast<int>(observer));
}

}  // namespace

std::optional<Observer> find_observer(std::string_view name) {
  for (const ObserverRow& row : kObservers) {
    if (row.name == name) return row.observer;
  }
  return std::nullopt;
}

std::string_view observer_name(Observer observer) { return row_of(observer).name; }

std::string observer_names() {
  std::string names(kAutoObserver);
  for (const ObserverRow& row : kObservers) names += fmt::format(", {}", row.name);
  return names;
}

bool observe(const ThreadPool& threads, const ObserverRule& rule, const float* values, int64_t count,
             Observation& seen) {
  constexpr float kShare = 0.01f;  // of a batch in the average: torch.ao's averaging_constant
  if (count == 0) return true;
  const std::optional<Range> batch = range_of(threads, values, count);
  if (!batch) return false;
  const ObserverRow& row = row_of(rule.observer);
  if (row.add) row.add(threads, *batch, values, count, seen);
  if (seen.values == 0) {
    seen.lowest = batch->low;
    seen.highest = batch->high;
  } else if (rule.observer == Observer::kMoving) {
    seen.lowest += kShare * (batch->low - seen.lowest);
    seen.highest += kShare * (batch->high - seen.highest);
  } else {
    seen.lowest = std::min(seen.lowest, batch->low);
    seen.highest = std::max(seen.highest, batch->high);
  }
  seen.values += count;
  return true;
}

InputGrid choose_grid(const ObserverRule& rule, const Observation& seen) {
  if (seen.values == 0) {
    fail(ErrorCode::kInvalidArgument,
         "observer {} has seen no values: the calibration data leave nothing to choose a range from",
         row_of(rule.observer).name);
  }
  const Range range = row_of(rule.observer).choose(rule, seen);
  return input_grid(range.low, range.high, rule.is_symmetric, rule.codes);
}

}  // namespace lowbit
