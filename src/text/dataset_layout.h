// One JSON object of a data set to an example, whatever of the known layouts it has.
#pragma once

#include "base/json.h"
#include "lowbit/dataset.h"

#include <string>
#include <string_view>

namespace lowbit {

// Keeps the first warnings and counts the rest.
class DatasetWarnings {
 public:
  void add(std::string warning);
  std::vector<std::string> take();

 private:
  std::vector<std::string> kept_;
  size_t dropped_ = 0;
};

// where: "train.jsonl: line 7", the begin of every message; `line`: "line 7", of every warning. Sets all of
// the example but its id. Returns kChat or kText.
DatasetKind read_example(const Json& object, std::string_view where, std::string_view line,
                         const DatasetOptions& options, Example& example, DatasetWarnings& warnings);

}  // namespace lowbit
