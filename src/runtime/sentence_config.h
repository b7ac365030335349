// What a sentence-transformers folder says beside the model itself: how token states become a vector.
#pragma once

#include "base/json.h"

#include <string>
#include <string_view>

namespace lowbit {

struct SentenceConfig {
  std::string pooling = "mean";  // or "cls"
  bool is_normalized = false;
  int64_t max_length = 0;  // 0: not said
};

// Of its files, each of which may be missing. Errors name `where`: kCorruptFile for what is of another type,
// kUnsupported for what lowbit would have to do besides.
void read_lengths(const Json& sentence_bert_config, std::string_view where, SentenceConfig& config);
void read_pooling(const Json& pooling_config, std::string_view where, SentenceConfig& config);
void read_modules(const Json& modules, std::string_view where, SentenceConfig& config);

}  // namespace lowbit
