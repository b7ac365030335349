#include "eval/statistics.h"

#include "base/json.h"
#include "eval/confusion.h"
#include "lowbit/error.h"

#include <cmath>
#include <gtest/gtest.h>

namespace lowbit {
namespace {

// The closed form (Wilson 1927), evaluated in Python with the same quantile of the normal distribution.
TEST(Wilson, MatchesReferenceValues) {
  struct Case {
    int64_t successes, trials;
    double low, high;
  };
  for (const Case& c :
       {Case{8, 10, 0.49016247153664183, 0.9433178485456247}, Case{0, 20, 0.0, 0.16112515805281938},
        Case{20, 20, 0.8388748419471806, 1.0}, Case{950, 1000, 0.9346861797557492, 0.9618697376072513}}) {
    const Proportion p = wilson_interval(c.successes, c.trials);
    EXPECT_DOUBLE_EQ(*p.value, static_cast<double>(c.successes) / static_cast<double>(c.trials));
    EXPECT_NEAR(p.low, c.low, 1e-9) << c.successes << "/" << c.trials;
    EXPECT_NEAR(p.high, c.high, 1e-9) << c.successes << "/" << c.trials;
  }
}

TEST(Wilson, NoTrialsHaveNoValueAndTheWholeInterval) {
  const Proportion p = wilson_interval(0, 0);
  EXPECT_FALSE(p.value.has_value());
  EXPECT_EQ(p.low, 0);
  EXPECT_EQ(p.high, 1);
}

// Expected values: sums of binomial coefficients in whole numbers (Python's math.comb), divided once.
TEST(McNemar, MatchesExactBinomialSums) {
  struct Case {
    int64_t became_wrong, became_right;
    double p;
  };
  for (const Case& c : {Case{0, 0, 1}, Case{1, 0, 1}, Case{5, 0, 0.0625}, Case{3, 3, 1},
                        Case{12, 8, 0.5034446716308594}, Case{4, 15, 0.0192108154296875},
                        Case{120, 80, 0.0056851559967503055}, Case{1000, 1100, 0.030720707864242296}}) {
    EXPECT_NEAR(mcnemar_p_value(c.became_wrong, c.became_right), c.p, 1e-11 * c.p) << c.became_wrong;
    EXPECT_EQ(mcnemar_p_value(c.became_wrong, c.became_right),
              mcnemar_p_value(c.became_right, c.became_wrong));
  }
  EXPECT_EQ(mcnemar_p_value(3000, 0), 0) << "2^-2999 is below the least double";
}

TEST(RunningMean, IsStableForValuesFarFromZero) {
  RunningMean mean;
  for (int i = 0; i < 1000; ++i) mean.add(1e9 + (i % 2));
  EXPECT_NEAR(mean.mean(), 1e9 + 0.5, 1e-6);
  EXPECT_NEAR(mean.standard_error(), std::sqrt(0.25 * 1000 / 999 / 1000), 1e-9);
  EXPECT_EQ(RunningMean().standard_error(), 0);
}

TEST(Percentile, InterpolatesLikeNumpy) {
  const std::vector<double> values = {1, 2, 4, 8};
  EXPECT_DOUBLE_EQ(percentile(values, 0), 1);
  EXPECT_DOUBLE_EQ(percentile(values, 0.5), 3);
  EXPECT_DOUBLE_EQ(percentile(values, 0.95), 7.4);
  EXPECT_DOUBLE_EQ(percentile(values, 1), 8);
  EXPECT_DOUBLE_EQ(percentile({}, 0.5), 0);
}

// truth:      1 1 1 1 0 0 0
// prediction: 1 1 0 ? 0 1 ?
ClassifyResult mixed() {
  ClassifyResult result;
  result.labels = {1, 1, 1, 1, 0, 0, 0};
  result.predictions = {1, 1, 0, -1, 0, 1, -1};
  return result;
}

TEST(Score, UnparsableIsCountedApartAndLowersRecall) {
  ClassifyResult result = mixed();
  score(result, "count");
  EXPECT_EQ(result.true_positive, 2);
  EXPECT_EQ(result.false_negative, 1);
  EXPECT_EQ(result.false_positive, 1);
  EXPECT_EQ(result.true_negative, 1);
  EXPECT_EQ(result.unparsable, 2);
  EXPECT_EQ(result.samples, 7);
  EXPECT_DOUBLE_EQ(*result.precision.value, 2.0 / 3);
  EXPECT_DOUBLE_EQ(*result.recall.value, 2.0 / 4);
  EXPECT_DOUBLE_EQ(*result.accuracy.value, 3.0 / 7);
  EXPECT_DOUBLE_EQ(*result.f1, 2 * (2.0 / 3) * 0.5 / (2.0 / 3 + 0.5));
}

TEST(Score, UnparsableAsNegativeIsTheUsualScript) {
  ClassifyResult result = mixed();
  score(result, "negative");
  EXPECT_EQ(result.true_positive, 2);
  EXPECT_EQ(result.false_negative, 2);
  EXPECT_EQ(result.false_positive, 1);
  EXPECT_EQ(result.true_negative, 2);
  EXPECT_EQ(result.unparsable, 2);
  EXPECT_DOUBLE_EQ(*result.recall.value, 0.5);
  EXPECT_DOUBLE_EQ(*result.accuracy.value, 4.0 / 7);
}

TEST(Score, SwappedLabelsSwapTheCounts) {
  ClassifyResult result, swapped;
  result.labels = {1, 1, 1, 0, 0};
  result.predictions = swapped.predictions = {1, 1, 0, 0, 1};
  for (int label : result.labels) swapped.labels.push_back(1 - label);
  score(result, "count");
  score(swapped, "count");
  EXPECT_EQ(swapped.false_positive, result.true_positive);
  EXPECT_EQ(swapped.true_positive, result.false_positive);
  EXPECT_EQ(swapped.true_negative, result.false_negative);
  EXPECT_EQ(swapped.false_negative, result.true_negative);
}

// truth:     1 1 1 1 0 0 0
// reference: 1 1 1 0 0 1 0
// model:     0 ? 1 1 0 0 ?
TEST(Paired, CountsAnswersThatChangedSidesByTheTruth) {
  ClassifyResult reference, model;
  reference.labels = model.labels = {1, 1, 1, 1, 0, 0, 0};
  reference.predictions = {1, 1, 1, 0, 0, 1, 0};
  model.predictions = {0, -1, 1, 1, 0, 0, -1};
  const PairedResult paired = compare_answers(reference, model);
  EXPECT_EQ(paired.samples, 7);
  EXPECT_EQ(paired.all.became_wrong, 3);
  EXPECT_EQ(paired.all.became_right, 2);
  EXPECT_EQ(paired.positives.became_wrong, 2);
  EXPECT_EQ(paired.positives.became_right, 1);
  EXPECT_EQ(paired.negatives.became_wrong, 1);
  EXPECT_EQ(paired.negatives.became_right, 1);
  EXPECT_DOUBLE_EQ(paired.all.p_value, 1);
  EXPECT_EQ(compare_answers(reference, model, {.unparsable = "negative"}).negatives.became_wrong, 0);

  const PairedResult back = compare_answers(model, reference);
  EXPECT_EQ(back.all.became_wrong, 2);
  EXPECT_EQ(back.all.became_right, 3);

  const Json json = parse_json(to_json(paired), "paired");
  EXPECT_EQ(json.get("became_wrong").as_integer(), 3);
  EXPECT_EQ(json.get("positives").get("became_right").as_integer(), 1);
}

TEST(Paired, OtherExamplesAreRefused) {
  ClassifyResult reference, model;
  reference.labels = reference.predictions = {1, 0};
  model.labels = model.predictions = {0, 1};
  EXPECT_THROW(compare_answers(reference, model), Error);
}

TEST(Score, NothingOverNothingIsNull) {
  ClassifyResult result;
  result.labels = {0, 0};
  result.predictions = {0, -1};
  score(result, "count");
  EXPECT_FALSE(result.precision.value.has_value());
  EXPECT_FALSE(result.recall.value.has_value());
  EXPECT_FALSE(result.f1.has_value());
  const Json json = parse_json(to_json(result), "result");
  EXPECT_TRUE(json.get("precision").is_null());
  EXPECT_TRUE(json.get("recall").is_null());
  EXPECT_TRUE(json.get("f1").is_null());
  EXPECT_DOUBLE_EQ(json.get("accuracy").as_number(), 0.5);
}

TEST(ResultsJson, HaveThePromisedKeys) {
  const Json classify = parse_json(to_json(ClassifyResult{}), "classify");
  for (const char* key : {"samples", "true_negative", "false_positive", "false_negative", "true_positive",
                          "unparsable", "precision", "recall", "f1", "accuracy", "samples_per_second"}) {
    EXPECT_NE(classify.find(key), nullptr) << key;
  }
  const Json perplexity = parse_json(to_json(PerplexityResult{}), "perplexity");
  for (const char* key : {"perplexity", "tokens", "context", "protocol"})
    EXPECT_NE(perplexity.find(key), nullptr) << key;
  const Json divergence = parse_json(to_json(DivergenceResult{}), "divergence");
  for (const char* key : {"mean_kl", "top1_agreement", "tokens"})
    EXPECT_NE(divergence.find(key), nullptr) << key;
}

}  // namespace
}  // namespace lowbit
