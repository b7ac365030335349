// The parts of classify() that need no model: what is asked, and what the truth is.
#pragma once

#include "lowbit/dataset.h"
#include "lowbit/evaluate.h"

namespace lowbit {

struct Question {
  std::string id;
  std::vector<Message> messages;  // all before the assistant turn that ends the example, if one does
  bool truth = false;
};

// Questions of a data set. The truth is the label key at the top level of the example, else in the JSON (or
// bare label) of the assistant turn that ends it. Errors (kInvalidArgument, with file, example and what was
// found): no dialogue, no label, a label that is not in the set of eval/answer.h, nothing left to ask.
std::vector<Question> read_questions(const Dataset& dataset, const ClassifyOptions& options,
                                     const std::string& file);

// How many of the questions calibrated the model of this folder, by the dialogue hashes of the
// quantize_report.json beside it. 0 without one. Figures on such examples may be too good.
int64_t count_seen_in_calibration(const std::filesystem::path& model, const std::vector<Question>& questions);

// Indices [0, lengths.size()) by falling length, in groups of batch_size: neighbours pad little, and the
// batch that needs the most memory comes first.
std::vector<std::vector<size_t>> length_sorted_batches(const std::vector<size_t>& lengths,
                                                       int64_t batch_size);

}  // namespace lowbit
