// How fast models load, read and write, side by side, and how near that is to what the machine can do.
#pragma once

#include "lowbit/generate.h"

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace lowbit {

struct BenchOptions {
  std::vector<int64_t> batch_size = {1, 8};  // sequences at once; each is measured
  int64_t prompt_tokens = 128;               // of each, read at once
  int64_t new_tokens = 64;                   // written one by one; encoders write none
  int64_t rounds = 3;  // in each all models are loaded and measured, one after the other
};

struct BenchModel {
  std::string name;
  std::filesystem::path folder;
  RuntimeOptions runtime;
};

struct BenchFigure {
  double median = 0, lowest = 0, highest = 0;  // over the rounds; 0: not measured
  double share_of_limit = 0;  // of what the machine's measured limit allows; 0: there is none
  double ratio_to_first = 0;  // of the medians, to the first model's
};

struct BenchSpeed {
  int64_t batch_size = 0;  // the figures are of all sequences together
  BenchFigure prefill_tokens_per_second, decode_tokens_per_second;
  BenchFigure texts_per_second;  // of an encoder, which has no others
};

struct BenchRow {
  std::string name, device;
  BenchFigure load_seconds;
  BenchFigure first_token_seconds;  // from the beginning of loading; not of an encoder
  // The most at a time that loading and running added to this process, mapped files left out.
  uint64_t peak_anonymous_bytes = 0;
  MemoryUse memory;
  uint64_t step_bytes = 0;          // weights that a decoding step reads
  double operations_per_token = 0;  // products and sums with weights, counted as two
  BenchFigure read_gbps;            // the machine, over as many bytes, in the same rounds
  double matrix_gops = 0;           // the machine, 1e9 operations a second; 0: not known
  std::vector<BenchSpeed> speeds;   // in the order of batch_size
};

struct BenchResult {
  std::vector<BenchRow> models;
  int64_t prompt_tokens = 0;
  std::string protocol;
};

// Medians of runs this near to each other are taken as equal.
constexpr double kBenchTolerance = 0.02;
inline bool is_slower(const BenchFigure& figure) {
  return figure.ratio_to_first > 0 && figure.ratio_to_first < 1 - kBenchTolerance;
}

// Models of one kind: all write text, or all are encoders. One model is in memory at a time.
// kInvalidArgument: no models, two kinds, options out of range, a prompt and an answer longer than a model's
// context.
BenchResult bench(const std::vector<BenchModel>& models, const BenchOptions& options = {},
                  const Log& log = {});
std::string to_json(const BenchResult& result);

struct SpeedOptions {
  int64_t batch_size = 1, prompt_tokens = 128, new_tokens = 64;  // as above
  int64_t repetitions = 3;                                       // the median counts
};

struct SpeedResult {
  double decode_tokens_per_second = 0, prefill_tokens_per_second = 0;
  std::string protocol;
};

// How fast a loaded model reads and writes, all sequences together. kInvalidArgument as above, and encoders.
SpeedResult measure_speed(const LanguageModel& model, const SpeedOptions& options = {}, const Log& log = {});

}  // namespace lowbit
