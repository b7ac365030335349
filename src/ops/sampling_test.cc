#include "ops/sampling.h"

#include "ops/ops_test_support.h"

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>

namespace lowbit {
namespace {

using testing::Numbers;

int32_t sample_one(const SamplingRule& rule, std::vector<float> logits, uint64_t& random,
                   std::span<const int32_t> previous = {}) {
  const SamplingRow row{previous, &random};
  int32_t chosen = -2;
  sample({}, rule, logits.data(), static_cast<int64_t>(logits.size()), std::span(&row, 1), &chosen);
  return chosen;
}

TEST(Sampling, WeightsAreThoseOfTheExponential) {
  constexpr double kUnit = 0x1p44;
  for (float temperature : {0.01f, 0.7f, 1.0f, 3.0f, 1000.0f}) {
    const double factor = weight_factor(temperature);
    EXPECT_EQ(sampling_weight(5, 5, factor), uint64_t{1} << 44);
    for (double t = 1e-9; t < 40; t *= 1.003) {
      const float below = -static_cast<float>(t) * temperature;
      const double expected = std::exp(static_cast<double>(below) / static_cast<double>(temperature)) * kUnit;
      EXPECT_NEAR(static_cast<double>(sampling_weight(0, below, factor)), expected, 1 + 3e-9 * expected) << t;
    }
    EXPECT_EQ(sampling_weight(0, NAN, factor), 0u);
    EXPECT_EQ(sampling_weight(0, -INFINITY, factor), 0u);
    EXPECT_EQ(sampling_weight(3e38f, -3e38f, factor), 0u);
  }
  // Both ends of the part behind the point: no step of the polynomial overflows.
  for (uint32_t part : {0u, 1u, 2u, 0x7fffffffu, 0x80000000u, 0xfffffffeu, 0xffffffffu}) {
    const double exponent = static_cast<double>(part);
    const double expected = std::exp2(-exponent * 0x1p-32) * kUnit;
    EXPECT_NEAR(static_cast<double>(sampling_weight(1, 0, exponent)), expected, 1 + 3e-9 * expected) << part;
  }
}

TEST(Sampling, RanksOrderTokensByLogitThenId) {
  const std::vector<float> values = {-INFINITY, -3e38f, -1, -1e-40f, 0, 1e-40f, 0.5f, 3e38f, INFINITY};
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(logit_of_rank(rank_of(values[i], 5)), values[i]);
    EXPECT_EQ(id_of_rank(rank_of(values[i], 262143)), 262143);
    EXPECT_EQ(is_finite_rank(rank_of(values[i], 0)), std::isfinite(values[i]));
    EXPECT_GT(rank_of(values[i], 0), rank_of(values[i], 1));
    if (i > 0) {
      EXPECT_GT(rank_of(values[i], 1000), rank_of(values[i - 1], 0));
    }
  }
  EXPECT_EQ(rank_of(-0.0f, 3), rank_of(0.0f, 3));
  EXPECT_FALSE(is_finite_rank(0));
}

TEST(Sampling, TheHighHalfOfAProduct) {
  EXPECT_EQ(high_product(~uint64_t{0}, ~uint64_t{0}), ~uint64_t{0} - 1);
  EXPECT_EQ(high_product(uint64_t{1} << 63, 10), 5u);
  EXPECT_EQ(high_product(0x123456789abcdef0u, 0xfedcba9876543210u), 0x121fa00ad77d7422u);
}

TEST(Sampling, TemperatureZeroTakesTheFirstOfTheLargest) {
  uint64_t random = 1;
  EXPECT_EQ(sample_one({}, {1, 3, 3, -2}, random), 1);
  EXPECT_EQ(sample_one({.temperature = 1, .top_k = 1}, {1, NAN, 3, -2}, random), 2);
  EXPECT_EQ(random, 1u) << "nothing was drawn";
}

TEST(Sampling, FrequenciesFollowTheProbabilities) {
  constexpr int kDraws = 20000;
  for (float temperature : {0.5f, 1.0f, 2.0f}) {
    uint64_t random = 1;
    std::map<int32_t, int> counts;
    const std::vector<float> shares = {0.2f, 0.5f, 0.3f};
    double sum = 0;
    for (float share : shares) sum += std::pow(share, 1 / temperature);
    for (int i = 0; i < kDraws; ++i) {
      counts[sample_one({.temperature = temperature},
                        {std::log(shares[0]), std::log(shares[1]), std::log(shares[2])}, random)]++;
    }
    for (int32_t id = 0; id < 3; ++id) {
      const double share = std::pow(shares[static_cast<size_t>(id)], 1 / temperature) / sum;
      EXPECT_NEAR(counts[id], share * kDraws, 5 * std::sqrt(share * kDraws)) << temperature;
    }
  }
}

// The candidates, written down in the plainest way.
std::vector<int32_t> expected_candidates(const std::vector<float>& logits, const SamplingRule& rule) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  auto logit = [&](int32_t id) { return logits[static_cast<size_t>(id)]; };
  std::ranges::stable_sort(ids, std::greater(), logit);
  if (rule.top_k > 0) ids.resize(std::min(ids.size(), static_cast<size_t>(rule.top_k)));
  double sum = 0, kept = 0;
  auto weight = [&](int32_t id) {
    return std::exp(static_cast<double>(logit(id) - logit(ids[0])) / static_cast<double>(rule.temperature));
  };
  for (int32_t id : ids) sum += weight(id);
  size_t count = 0;
  while (count < ids.size() && kept < sum * static_cast<double>(rule.top_p)) kept += weight(ids[count++]);
  ids.resize(count);
  std::ranges::sort(ids);
  return ids;
}

TEST(Sampling, EveryCandidateIsDrawnAndNothingElse) {
  Numbers numbers(1);
  for (const SamplingRule& rule : {SamplingRule{.temperature = 3, .top_k = 5},
                                   {.temperature = 3, .top_p = 0.7f},
                                   {.temperature = 3, .top_k = 9, .top_p = 0.8f},
                                   {.temperature = 1000, .top_k = 12},
                                   {.temperature = 2, .top_p = 1e-30f},
                                   {.temperature = 2, .top_k = 1000000, .top_p = 0.999f}}) {
    std::vector<float> logits = numbers.normals(20);
    logits[3] = logits[7] = logits[11];  // ties
    uint64_t random = 3;
    std::map<int32_t, int> drawn;
    for (int i = 0; i < 5000; ++i) drawn[sample_one(rule, logits, random)]++;
    std::vector<int32_t> ids;
    for (auto [id, count] : drawn) ids.push_back(id);
    EXPECT_EQ(ids, expected_candidates(logits, rule)) << rule.top_k << " " << rule.top_p;
  }
}

TEST(Sampling, OfEqualLogitsTheFirstAreCandidates) {
  uint64_t random = 9;
  for (int i = 0; i < 200; ++i) {
    EXPECT_LT(sample_one({.temperature = 1, .top_k = 3}, std::vector<float>(50, 2.5f), random), 3);
    EXPECT_LT(sample_one({.temperature = 1, .top_p = 0.0999f}, std::vector<float>(50, 2.5f), random), 5);
  }
}

TEST(Sampling, TheSameStreamGivesTheSameTokensAndStreamsDiffer) {
  auto draw = [](uint64_t random) {
    std::vector<int32_t> ids;
    for (int i = 0; i < 50; ++i)
      ids.push_back(sample_one({.temperature = 1}, std::vector<float>(100, 0.0f), random));
    return ids;
  };
  EXPECT_EQ(draw(7), draw(7));
  EXPECT_NE(draw(7), draw(8));
}

TEST(Sampling, RepetitionPenaltyWorksOnBothSignsAndOncePerToken) {
  uint64_t random = 1;
  const std::vector<int32_t> seen = {0, 2, 0, 0};
  const SamplingRow row{seen, &random};
  std::vector<float> logits = {1.5f, 1.0f, -1.0f};
  int32_t chosen = -1;
  sample({}, {.repetition_penalty = 2}, logits.data(), 3, std::span(&row, 1), &chosen);
  EXPECT_EQ(chosen, 1);
  EXPECT_EQ(logits, (std::vector<float>{0.75f, 1.0f, -2.0f}));
}

TEST(Sampling, WhereNothingIsFiniteNothingIsChosen) {
  uint64_t random = 1;
  for (float temperature : {0.0f, 1.0f}) {
    EXPECT_EQ(sample_one({.temperature = temperature}, {NAN, NAN}, random), -1);
    EXPECT_EQ(sample_one({.temperature = temperature}, {0, INFINITY, 0}, random), -1);
    EXPECT_EQ(sample_one({.temperature = temperature}, {-INFINITY, -INFINITY}, random), -1);
    EXPECT_EQ(sample_one({.temperature = temperature}, {NAN, -INFINITY, -5, NAN}, random), 2);
  }
}

// Rows are apart, and threads change nothing.
TEST(Sampling, RowsDoNotDependOnEachOther) {
  Numbers numbers(2);
  constexpr int64_t kRows = 5, kVocab = 3000;
  const SamplingRule rule{.temperature = 1, .top_k = 500, .top_p = 0.95f, .repetition_penalty = 1.2f};
  const std::vector<float> logits = numbers.normals(kRows * kVocab, 3);
  const std::vector<int32_t> previous = {5, 700, 2999};
  std::vector<uint64_t> random = {1, 2, 3, 4, 5};
  std::vector<SamplingRow> rows;
  for (uint64_t& state : random) rows.push_back({previous, &state});
  std::vector<float> together = logits;
  std::vector<int32_t> chosen(kRows);
  testing::Bench bench("", 2);
  sample(bench.context(), rule, together.data(), kVocab, rows, chosen.data());
  for (size_t row = 0; row < kRows; ++row) {
    uint64_t state = row + 1;
    const auto begin = logits.begin() + static_cast<std::ptrdiff_t>(row) * kVocab;
    EXPECT_EQ(sample_one(rule, std::vector<float>(begin, begin + kVocab), state, previous), chosen[row]);
    EXPECT_EQ(state, random[row]);
  }
}

}  // namespace
}  // namespace lowbit
