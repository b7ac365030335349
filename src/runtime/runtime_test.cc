#include "runtime/answer.h"
#include "runtime/options.h"
#include "runtime/sampler.h"
#include "support.h"

#include <cmath>
#include <gtest/gtest.h>
#include <map>

namespace lowbit {
namespace {

TEST(Sampler, TemperatureZeroTakesTheFirstOfTheLargest) {
  GenerateOptions options;
  Sampler sampler(options, 0);
  std::vector<float> logits = {1, 3, 3, -2};
  EXPECT_EQ(sampler.sample(logits, {}), 1);
}

TEST(Sampler, FrequenciesFollowTheProbabilities) {
  GenerateOptions options;
  options.temperature = 1;
  Sampler sampler(options, 0);
  std::map<int32_t, int> counts;
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) {
    std::vector<float> logits = {std::log(0.5f), std::log(0.3f), std::log(0.2f)};
    counts[sampler.sample(logits, {})]++;
  }
  EXPECT_NEAR(counts[0], 0.5 * kDraws, 5 * std::sqrt(kDraws));
  EXPECT_NEAR(counts[1], 0.3 * kDraws, 5 * std::sqrt(kDraws));
  EXPECT_NE(counts[2], 0);
}

TEST(Sampler, TopKAndTopPCutTheTail) {
  GenerateOptions options;
  options.temperature = 1;
  options.top_k = 2;
  Sampler top_k(options, 0);
  GenerateOptions nucleus;
  nucleus.temperature = 1;
  nucleus.top_p = 0.6f;
  Sampler top_p(nucleus, 0);
  for (int i = 0; i < 2000; ++i) {
    std::vector<float> logits = {std::log(0.2f), std::log(0.5f), std::log(0.3f)};
    ASSERT_NE(top_k.sample(logits, {}), 0);
    ASSERT_NE(top_p.sample(logits, {}), 0);
  }
}

TEST(Sampler, TheSameSeedGivesTheSameTokensAndStreamsDiffer) {
  GenerateOptions options;
  options.temperature = 1;
  options.seed = 7;
  auto draw = [&](uint64_t stream) {
    Sampler sampler(options, stream);
    std::vector<int32_t> ids;
    for (int i = 0; i < 50; ++i) {
      std::vector<float> logits(100, 0.0f);
      ids.push_back(sampler.sample(logits, {}));
    }
    return ids;
  };
  EXPECT_EQ(draw(0), draw(0));
  EXPECT_NE(draw(0), draw(1));
}

TEST(Sampler, RepetitionPenaltyWorksOnBothSigns) {
  GenerateOptions options;
  options.repetition_penalty = 2;
  Sampler sampler(options, 0);
  const std::vector<int32_t> seen = {0, 2};
  std::vector<float> logits = {1.5f, 1.0f, -1.0f};
  EXPECT_EQ(sampler.sample(logits, seen), 1);
  EXPECT_EQ(logits[2], -2.0f);
}

TEST(Sampler, BrokenLogitsAreAnError) {
  GenerateOptions options;
  Sampler sampler(options, 0);
  std::vector<float> nan(3, NAN), infinite = {0, INFINITY, 0};
  testing::error_of(ErrorCode::kInternal, [&] { sampler.sample(nan, {}); });
  testing::error_of(ErrorCode::kInternal, [&] { sampler.sample(infinite, {}); });
}

TEST(GenerateOptions, RangesAreChecked) {
  auto refuse = [](auto change) {
    GenerateOptions options;
    change(options);
    testing::error_of(ErrorCode::kInvalidArgument, [&] { validate(options); });
  };
  refuse([](GenerateOptions& o) { o.max_new_tokens = 0; });
  refuse([](GenerateOptions& o) { o.max_new_tokens = int64_t{1} << 40; });
  refuse([](GenerateOptions& o) { o.temperature = NAN; });
  refuse([](GenerateOptions& o) { o.temperature = -1; });
  refuse([](GenerateOptions& o) { o.top_k = -1; });
  refuse([](GenerateOptions& o) { o.top_p = 0; });
  refuse([](GenerateOptions& o) { o.top_p = NAN; });
  refuse([](GenerateOptions& o) { o.repetition_penalty = 0; });
  refuse([](GenerateOptions& o) { o.stop.assign(1000000, "x"); });
  refuse([](GenerateOptions& o) { o.stop = {""}; });
  validate(GenerateOptions{});
}

}  // namespace
}  // namespace lowbit
