// The user's data as token sequences: some to calibrate on, a few held back for the check after saving.
#pragma once

#include "base/json.h"
#include "lowbit/quantize.h"

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace lowbit {

struct Calibration {
  std::vector<std::vector<int32_t>> samples;    // at most max_length ids each, in the order of the file
  std::vector<std::vector<int32_t>> held_back;  // never among the samples
  std::string kind;                             // "chat", "text", "plain text"
  int64_t examples = 0;                         // in the file (windows of a plain text)
  int64_t truncated = 0;                        // samples that were longer than max_length
  int64_t dropped = 0;                          // looked at, but with fewer than 2 tokens or equal to another
  int64_t tokens = 0;                           // of the samples
  std::vector<std::string> dialogue_hashes;     // of the samples that are chats: dialogue_hash of dataset.h
  std::vector<std::string> warnings;

  int64_t longest() const;
  Json facts() const;  // for the report: counts and the spread of lengths
};

// The choice among more examples than asked for follows from the seed alone; about 5 % more (2 to 16) are
// held back. Chats are rendered with the model's own template, without a generation prompt and without
// further special tokens; text lines get the special tokens that the tokenizer adds by itself; a plain text
// is cut into consecutive windows. Errors: of load_dataset, Tokenizer and ChatTemplate; kInvalidArgument when
// no example has two tokens.
Calibration load_calibration(const std::filesystem::path& model, const CalibrationOptions& options,
                             int64_t max_positions);

// A hash of the sequences, for the fingerprint of a run.
std::string sequences_hash(const std::vector<std::vector<int32_t>>& sequences);

}  // namespace lowbit
