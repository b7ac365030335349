// Counts of right and wrong answers, and the figures that follow from them.
#pragma once

#include "lowbit/evaluate.h"

#include <vector>

namespace lowbit {

// Fills counts, precision, recall, F1 and accuracy of `result` from its labels (1, 0) and predictions (1, 0,
// -1).
//
// unparsable "count": an unparsable answer is neither positive nor negative. It lowers recall when the truth
// is positive (recall = tp / all positives, F1 = 2 tp / (2 tp + fp + missed positives)) and accuracy always;
// samples = tn + fp + fn + tp + unparsable.
// unparsable "negative": it counts as the answer "negative", as most evaluation scripts do; `unparsable` says
// how many of tn and fn are such, and samples = tn + fp + fn + tp.
void score(ClassifyResult& result, const std::string& unparsable);

}  // namespace lowbit
