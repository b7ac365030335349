// Which ids of a text are seen together, and which of them are scored: the part of a perplexity figure that
// its protocol decides.
#pragma once

#include "lowbit/evaluate.h"

#include <filesystem>
#include <string>
#include <vector>

namespace lowbit {

struct WindowPlan {
  std::vector<std::vector<int32_t>> windows;
  std::vector<int64_t> first_scored;  // per window: its positions [first_scored, size) are scored; at least 1
  std::string protocol;               // in words
};

// The ids of a whole text file, tokenized at once without special tokens; special tokens that the text spells
// stay text. Of a .jsonl or .json file: its "text" entries joined by two line ends, as WikiText's rows are.
std::vector<int32_t> load_text_ids(const Tokenizer& tokenizer, const std::filesystem::path& text);

// kInvalidArgument: context below 2, an unknown protocol, a stride outside [1, context), stride with
// llama.cpp, or fewer ids than one window has.
//   gptq       windows of `context` ids one after the other; positions 1 ... context - 1 of each; the rest is
//   dropped llama.cpp  the same windows, the first id of each replaced by BOS when the tokenizer adds one
//   (`bos`, else -1);
//              positions context / 2 + 1 ... context - 1, as its `perplexity` program does without options
//   stride     windows start every `stride` ids; of the first all positions from 1 on, of each further one
//   those that no
//              earlier window scored. Only the last may be shorter. Every id after the first is scored once.
WindowPlan plan_windows(const std::vector<int32_t>& ids, const PerplexityOptions& options, int32_t bos);

// The id that the tokenizer puts before a text by itself; -1 when it puts none.
int32_t added_bos(const Tokenizer& tokenizer);

}  // namespace lowbit
