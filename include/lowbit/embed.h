// Texts to vectors with an encoder, as sentence-transformers does it.
#pragma once

#include "lowbit/generate.h"

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace lowbit {

struct EmbedOptions {
  std::string pooling = "auto";  // "mean" of the tokens' last states, "cls": the first token's; "auto": as
                                 // 1_Pooling/config.json of the model says, "mean" without one
  int64_t max_length = 0;        // ids of a text, special tokens included; 0: max_seq_length of the model's
                                 // sentence_bert_config.json, else its max_position_embeddings
  bool truncate = false;         // cut longer texts; otherwise they are an error
  int64_t batch_size = 32;       // texts at once; does not change the vectors
};

struct Embeddings {
  int64_t count = 0, width = 0;
  std::vector<float> values;   // [count, width], in the order of the texts
  std::string pooling;         // "mean" or "cls"
  bool is_normalized = false;  // each divided by its Euclidean norm: modules.json of the model says so
  int64_t max_length = 0;
  int64_t tokens = 0, truncated = 0;  // ids that were read; texts that were cut
};

// kInvalidArgument: not an encoder, an option out of its range, a text that is too long (says how many are).
// kNotFound: no tokenizer. kUnsupported: the model's files ask for another pooling, or for steps behind it.
Embeddings embed(const LanguageModel& model, std::span<const std::string> texts,
                 const EmbedOptions& options = {}, const Log& log = {});

}  // namespace lowbit
