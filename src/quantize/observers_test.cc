#include "quantize/observers.h"

#include "base/files.h"
#include "base/json.h"
#include "io/safetensors.h"
#include "support.h"

#include <cmath>
#include <gtest/gtest.h>
#include <numeric>
#include <random>

namespace lowbit {
namespace {

using namespace lowbit::testing;
namespace fs = std::filesystem;

constexpr Observer kAll[] = {Observer::kMinmax,     Observer::kMoving, Observer::kHistogram,
                             Observer::kPercentile, Observer::kMse,    Observer::kEntropy};

Observation seen_by(const ObserverRule& rule, const std::vector<std::vector<float>>& batches,
                    int thread_count = 2) {
  const ThreadPool threads(thread_count);
  Observation seen;
  for (const std::vector<float>& batch : batches)
    EXPECT_TRUE(observe(threads, rule, batch.data(), static_cast<int64_t>(batch.size()), seen));
  return seen;
}

// Batches of different widths: every batch may widen the range.
std::vector<std::vector<float>> some_batches(int count, size_t values, float outliers = 0) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<std::vector<float>> batches;
  for (int i = 0; i < count; ++i) {
    std::vector<float> batch(values);
    for (float& value : batch) value = normal(random) * (1 + 0.3f * static_cast<float>(i)) + 0.2f;
    for (size_t at = 7; at < values; at += 4001) batch[at] *= outliers > 0 ? outliers : 1;
    batches.push_back(std::move(batch));
  }
  return batches;
}

// --- beside torch.ao (material/peers/torch_ao: torch 2.15.0)

struct TorchAo {
  Json observers;
  std::map<std::string, Tensor> tensors;
  explicit TorchAo(const fs::path& material) {
    const fs::path folder = material / "peers" / "torch_ao";
    observers = parse_json(read_file(folder / "torch_ao.json", 1 << 24), "torch_ao.json").get("observers");
    for (const NamedTensor& named : open_safetensors(folder / "torch_ao.safetensors").tensors)
      tensors.emplace(named.name, named.tensor);
  }
  std::vector<std::vector<float>> batches() const {
    std::vector<std::vector<float>> result;
    for (int i = 0; i < 4; ++i) result.push_back(values(fmt::format("observer.batch{}", i)));
    return result;
  }
  std::vector<float> values(const std::string& name) const {
    const Tensor wide = converted(tensors.at(name), DType::kF32);
    return {wide.data<float>(), wide.data<float>() + wide.element_count()};
  }
};

struct Scheme {
  const char* name;
  bool is_symmetric;
  CodeRange codes;
};
constexpr Scheme kSchemes[] = {{"sym.qint8", true, {}},
                               {"sym.qint8.reduce_range", true, {-64, 63}},
                               {"sym.quint8", true, {0, 255}},
                               {"sym.qint8.-127..127", true, {-127, 127}},
                               {"affine.qint8", false, {}},
                               {"affine.qint8.reduce_range", false, {-64, 63}},
                               {"affine.quint8", false, {0, 255}},
                               {"affine.quint8.reduce_range", false, {0, 127}}};

// row: of per-channel observers, or 0.
void expect_grid(const Json& expected, size_t row, const ObserverRule& rule, const Observation& seen) {
  const InputGrid grid = choose_grid(rule, seen);
  const auto number = [&](const char* key) {
    const Json& value = expected.get(key);
    return value.is_array() ? value.as_array().at(row).as_number() : value.as_number();
  };
  // Of a histogram's range torch computes both ends in F32.
  EXPECT_FLOAT_EQ(grid.scale, static_cast<float>(number("scale")));
  if (rule.observer != Observer::kHistogram) {
    EXPECT_EQ(grid.scale, static_cast<float>(number("scale")));
  }
  EXPECT_EQ(grid.zero_point, number("zero_point"));
  EXPECT_EQ(seen.lowest, static_cast<float>(number("min")));
  EXPECT_EQ(seen.highest, static_cast<float>(number("max")));
}

TEST(Observers, ChooseTheGridsOfTorch) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const TorchAo torch(material);
  int compared = 0;
  for (const auto& [name, observer] : {std::pair{"MinMax.", Observer::kMinmax},
                                       {"MovingAverageMinMax.", Observer::kMoving},
                                       {"Histogram.", Observer::kHistogram}}) {
    for (const Scheme& scheme : kSchemes) {
      for (const int count : {1, 4}) {
        const std::string key = fmt::format("{}{}.after{}", name, scheme.name, count);
        const Json* expected = torch.observers.find(key);
        if (!expected) continue;
        SCOPED_TRACE(key);
        std::vector<std::vector<float>> batches = torch.batches();
        batches.resize(static_cast<size_t>(count));
        const ObserverRule rule{
            .observer = observer, .is_symmetric = scheme.is_symmetric, .codes = scheme.codes};
        expect_grid(*expected, 0, rule, seen_by(rule, batches));
        ++compared;
      }
    }
  }
  EXPECT_EQ(compared, 38);
}

TEST(Observers, KeepTheHistogramOfTorch) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const TorchAo torch(material);
  const std::vector<float> expected = torch.values("observer.Histogram.affine.qint8.histogram");
  const Observation seen = seen_by({.observer = Observer::kHistogram}, torch.batches());
  ASSERT_EQ(seen.counts.size(), expected.size());
  double moved = 0;  // torch places sixteenths of a bin in F32
  for (size_t i = 0; i < expected.size(); ++i) moved += std::abs(seen.counts[i] - expected[i]) / 2;
  EXPECT_LE(moved, 1);
  EXPECT_EQ(std::accumulate(seen.counts.begin(), seen.counts.end(), 0.0), 4 * 8 * 33);
}

TEST(Observers, ChooseTheGridsOfTorchForEachChannel) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const TorchAo torch(material);
  for (const auto& [name, observer] : {std::pair{"PerChannelMinMax.", Observer::kMinmax},
                                       {"MovingAveragePerChannelMinMax.", Observer::kMoving}}) {
    for (const bool is_symmetric : {true, false}) {
      for (const size_t count : {1, 4}) {
        const Json& expected = torch.observers.get(
            fmt::format("{}{}.qint8.after{}", name, is_symmetric ? "sym" : "affine", count));
        const ObserverRule rule{.observer = observer, .is_symmetric = is_symmetric};
        for (size_t row = 0; row < 8; ++row) {
          std::vector<std::vector<float>> batches = torch.batches();
          batches.resize(count);
          for (std::vector<float>& batch : batches)
            batch = {batch.begin() + static_cast<ptrdiff_t>(33 * row),
                     batch.begin() + static_cast<ptrdiff_t>(33 * row + 33)};
          expect_grid(expected, row, rule, seen_by(rule, batches));
        }
      }
    }
  }
}

TEST(Observers, ChooseTheGridsOfTorchForZerosAndConstants) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const TorchAo torch(material);
  for (const char* name : {"zeros", "constant3", "negative"}) {
    for (const bool is_symmetric : {true, false}) {
      SCOPED_TRACE(name);
      const ObserverRule rule{.is_symmetric = is_symmetric,
                              .codes = is_symmetric ? CodeRange{} : CodeRange{0, 255}};
      expect_grid(torch.observers.get(fmt::format("MinMax.{}.{}", is_symmetric ? "sym" : "affine", name)), 0,
                  rule, seen_by(rule, {torch.values(fmt::format("observer.special.{}", name))}));
    }
  }
}

TEST(Observers, GridsRoundAsTorchDoes) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const TorchAo torch(material);
  struct Case {
    const char* name;
    InputGrid grid;
    CodeRange codes;
  };
  for (const char* data : {"normal", "ties", "positive", "outlier", "zeros"}) {
    const std::vector<float> x = torch.values(fmt::format("x.{}", data));
    for (const Case& c : {Case{"qint8.s1.z0", {1, 0}, {}},
                          {"quint8.s1.z128", {1, 128}, {0, 255}},
                          {"qint8.s0.037.z-5", {0.037f, -5}, {}},
                          {"quint8.s0.11.z17", {0.11f, 17}, {0, 255}}}) {
      SCOPED_TRACE(fmt::format("{} {}", data, c.name));
      const std::string key = fmt::format("per_tensor.{}.{}", data, c.name);
      const Tensor& codes = torch.tensors.at(key + ".int");
      const std::vector<float> values = torch.values(key + ".dequant");
      for (size_t i = 0; i < x.size(); ++i) {
        const int code = encode_input(x[i], c.grid, c.codes);
        const auto* bytes = static_cast<const uint8_t*>(codes.bytes());
        ASSERT_EQ(code, c.codes.least < 0 ? static_cast<int8_t>(bytes[i]) : bytes[i]) << x[i];
        ASSERT_EQ(decode_input(code, c.grid), values[i]);
      }
    }
    for (const bool is_signed : {true, false}) {
      const std::string key = fmt::format("per_channel.{}.{}.axis0", data, is_signed ? "qint8" : "quint8");
      const Tensor& codes = torch.tensors.at(key + ".int");
      const std::vector<float> values = torch.values(key + ".dequant");  // with scales in double
      const auto* scales = static_cast<const double*>(torch.tensors.at("per_channel.scales_f64").bytes());
      const auto* zero_points = static_cast<const int64_t*>(torch.tensors.at(key + ".zero_point").bytes());
      const CodeRange range = is_signed ? CodeRange{} : CodeRange{0, 255};
      for (size_t i = 0; i < x.size(); ++i) {
        const size_t row = i / (x.size() / 8);
        const InputGrid grid{static_cast<float>(scales[row]), static_cast<int>(zero_points[row])};
        const int code = encode_input(x[i], grid, range);
        const auto* bytes = static_cast<const uint8_t*>(codes.bytes());
        ASSERT_EQ(code, is_signed ? static_cast<int8_t>(bytes[i]) : bytes[i]) << key << " " << i;
        ASSERT_FLOAT_EQ(decode_input(code, grid), values[i]);
      }
    }
  }
}

// --- laws

TEST(Observers, ThreadsDoNotMatter) {
  const auto batches = some_batches(3, 200'000);
  for (const Observer observer : kAll) {
    const ObserverRule rule{.observer = observer, .is_symmetric = false};
    const Observation one = seen_by(rule, batches, 1), three = seen_by(rule, batches, 3);
    EXPECT_EQ(one.counts, three.counts);
    EXPECT_EQ(choose_grid(rule, one), choose_grid(rule, three));
  }
}

TEST(Observers, CountsOfMagnitudesDoNotDependOnTheOrderOfBatches) {
  auto batches = some_batches(5, 3000);
  batches.push_back(std::vector<float>(10));  // zeros
  const ObserverRule rule{.observer = Observer::kMse};
  const Observation forward = seen_by(rule, batches);
  std::reverse(batches.begin(), batches.end());
  const Observation backward = seen_by(rule, batches);
  EXPECT_EQ(forward.counts, backward.counts);
  EXPECT_EQ(forward.limit, backward.limit);
  EXPECT_EQ(std::accumulate(forward.counts.begin(), forward.counts.end(), 0.0), 15010);
}

// Of many values and few far ones, rules that clip do, and are better for it in what they look at.
TEST(Observers, OutliersAreClippedByTheRulesThatMay) {
  const auto batches = some_batches(1, 400'000, 8);
  const std::vector<float>& values = batches[0];
  const auto clipped = [&](const InputGrid& grid) {
    const float most = grid.scale * 127.6f;
    return static_cast<double>(
               std::count_if(values.begin(), values.end(), [&](float x) { return std::abs(x) > most; })) /
           static_cast<double>(values.size());
  };
  const auto error = [&](const InputGrid& grid) {
    double sum = 0;
    for (const float x : values) sum += std::pow(double{x} - decode_input(encode_input(x, grid), grid), 2);
    return sum;
  };
  std::map<Observer, InputGrid> grids;
  for (const Observer observer : kAll) {
    const ObserverRule rule{.observer = observer, .percentile = 99.9f};
    grids[observer] = choose_grid(rule, seen_by(rule, batches));
  }
  EXPECT_EQ(clipped(grids[Observer::kMinmax]), 0);
  EXPECT_NEAR(clipped(grids[Observer::kPercentile]), 1e-3, 1e-4);
  for (const Observer observer : {Observer::kHistogram, Observer::kMse, Observer::kEntropy}) {
    EXPECT_LT(grids[observer].scale, grids[Observer::kMinmax].scale) << static_cast<int>(observer);
  }
  // None of the scales between a tenth and all of the largest magnitude is much better than what mse found.
  const double found = error(grids[Observer::kMse]);
  for (int i = 1; i <= 10; ++i)
    EXPECT_GT(error({grids[Observer::kMinmax].scale * static_cast<float>(i) / 10, 0}), 0.98 * found) << i;
  EXPECT_LT(found, 0.8 * error(grids[Observer::kMinmax]));
}

// The rule of TensorRT, evaluated again over plain arrays.
TEST(Observers, EntropyIsTheLeastDivergence) {
  std::mt19937 random(9);
  std::exponential_distribution<float> exponential(3);
  std::vector<float> values(50'000);
  for (float& value : values) value = exponential(random) * (random() % 2 ? 1.0f : -1.0f);
  const ObserverRule rule{.observer = Observer::kEntropy};
  const Observation seen = seen_by(rule, {values});
  const double width = double{seen.limit} / kMagnitudeBins;
  std::vector<double> counts(static_cast<size_t>(kMagnitudeBins));
  for (const float value : values) ++counts[static_cast<size_t>(std::abs(value) / width)];
  double least = INFINITY, best = 0;
  for (size_t kept = 128; kept <= counts.size(); ++kept) {
    std::vector<double> p(counts.begin(), counts.begin() + static_cast<ptrdiff_t>(kept)), q(kept);
    const double q_total = std::accumulate(p.begin(), p.end(), 0.0);
    for (size_t level = 0; level < 128; ++level) {
      double sum = 0, filled = 0;
      for (size_t i = level * kept / 128; i < (level + 1) * kept / 128; ++i) sum += p[i], filled += p[i] > 0;
      for (size_t i = level * kept / 128; i < (level + 1) * kept / 128; ++i)
        q[i] = p[i] > 0 ? sum / filled / q_total : 0;
    }
    p.back() += static_cast<double>(values.size()) - q_total;
    double divergence = 0;
    for (size_t i = 0; i < kept; ++i) {
      const double share = p[i] / static_cast<double>(values.size());
      if (share > 0) divergence += q[i] > 0 ? share * std::log(share / q[i]) : INFINITY;
    }
    if (divergence < least) least = divergence, best = static_cast<double>(kept) * width;
  }
  EXPECT_LT(best, *std::max_element(values.begin(), values.end()));
  EXPECT_NEAR(choose_grid(rule, seen).scale * 127.5f, best, 2.5 * width);
}

TEST(Observers, WhatIsNotFiniteIsRefusedAndLeavesNoTrace) {
  const ThreadPool threads(2);
  for (const Observer observer : kAll) {
    const ObserverRule rule{.observer = observer};
    Observation seen = seen_by(rule, {{1, 2, -3}});
    const Observation before = seen;
    for (const float bad : {NAN, INFINITY, -INFINITY, 2e30f}) {
      std::vector<float> values(150'000, 1.0f);
      values[140'001] = bad;
      EXPECT_FALSE(observe(threads, rule, values.data(), static_cast<int64_t>(values.size()), seen));
    }
    EXPECT_EQ(seen.counts, before.counts);
    EXPECT_EQ(seen.values, 3);
  }
}

TEST(Observers, NothingSeenIsAnErrorAndZerosAreNot) {
  for (const Observer observer : kAll) {
    const ObserverRule rule{.observer = observer};
    const std::string message = error_of(ErrorCode::kInvalidArgument, [&] { choose_grid(rule, {}); });
    EXPECT_NE(message.find("seen no values"), std::string::npos);
    for (const float constant : {0.0f, 3.0f, -2.0f, 1e30f, 1e-30f}) {
      for (const bool is_symmetric : {true, false}) {
        const ObserverRule each{.observer = observer, .is_symmetric = is_symmetric};
        const InputGrid grid = choose_grid(
            each, seen_by(each, {std::vector<float>(100, constant), std::vector<float>(100, constant)}));
        EXPECT_TRUE(grid.scale > 0 && std::isfinite(grid.scale));
        EXPECT_NEAR(decode_input(encode_input(constant, grid), grid), constant, 0.51f * grid.scale)
            << static_cast<int>(observer);
      }
    }
  }
}

TEST(Observers, AreFoundByName) {
  EXPECT_EQ(observer_names(), "auto, minmax, moving, histogram, percentile, mse, entropy");
  EXPECT_EQ(find_observer("entropy"), Observer::kEntropy);
  EXPECT_EQ(find_observer("none"), std::nullopt);
}

}  // namespace
}  // namespace lowbit
