#include "eval/confusion.h"

#include "base/fail.h"
#include "eval/statistics.h"

namespace lowbit {

void score(ClassifyResult& result, const std::string& unparsable) {
  LOWBIT_ASSERT(result.labels.size() == result.predictions.size());
  const bool as_negative = unparsable == "negative";
  result.samples = static_cast<int64_t>(result.labels.size());
  result.true_negative = result.false_positive = result.false_negative = result.true_positive =
      result.unparsable = 0;
  int64_t positives = 0;
  for (size_t i = 0; i < result.labels.size(); ++i) {
    const bool truth = result.labels[i] == 1;
    int prediction = result.predictions[i];
    positives += truth;
    if (prediction < 0) {
      ++result.unparsable;
      if (!as_negative) continue;
      prediction = 0;
    }
    ++(prediction == 1 ? (truth ? result.true_positive : result.false_positive)
                       : (truth ? result.false_negative : result.true_negative));
  }
  const int64_t predicted = result.true_positive + result.false_positive;
  result.precision = wilson_interval(result.true_positive, predicted);
  result.recall = wilson_interval(result.true_positive, positives);
  result.accuracy = wilson_interval(result.true_positive + result.true_negative, result.samples);
  result.f1 = ratio(2 * result.true_positive, predicted + positives);
}

PairedResult compare_answers(const ClassifyResult& reference, const ClassifyResult& model,
                             const ClassifyOptions& options) {
  if (reference.labels != model.labels) {
    fail(
        ErrorCode::kInvalidArgument,
        "the two models did not answer the same examples ({} and {}, or with other labels): evaluate both on "
        "one file",
        reference.labels.size(), model.labels.size());
  }
  const bool as_negative = options.unparsable == "negative";
  auto is_right = [&](int prediction, int label) {
    return (prediction < 0 && as_negative ? 0 : prediction) == label;
  };
  PairedResult result;
  result.samples = static_cast<int64_t>(model.labels.size());
  for (size_t i = 0; i < model.labels.size(); ++i) {
    const int label = model.labels[i];
    const bool before = is_right(reference.predictions[i], label),
               now = is_right(model.predictions[i], label);
    for (Flips* flips : {&result.all, label == 1 ? &result.positives : &result.negatives}) {
      flips->became_wrong += before && !now;
      flips->became_right += now && !before;
    }
  }
  for (Flips* flips : {&result.all, &result.positives, &result.negatives})
    flips->p_value = mcnemar_p_value(flips->became_wrong, flips->became_right);
  return result;
}

}  // namespace lowbit
