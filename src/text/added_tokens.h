// Added tokens: found in the text before the model sees it. HF tokenizers' rules.
#pragma once

#include "base/json.h"
#include "text/tokenizer_normalizer.h"

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace lowbit {

struct AddedToken {
  std::string content;
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // takes the white space on its left
  bool rstrip = false;
  bool normalized = true;  // looked for in the normalized text, else in the text as it is
  bool special = false;    // marks structure; skipped by skip_special_tokens
  bool operator==(const AddedToken&) const = default;

  // An element of "added_tokens" or a value of "added_tokens_decoder".
  static AddedToken from_json(const Json& json);
};

// Texts to numbers, found leftmost first and longest among those.
class TokenMatcher {
 public:
  static constexpr size_t kMaxContentBytes = 1024;  // bounds the work per byte of text

  void add(std::string_view content, int32_t value);  // the first of two equal contents wins
  bool is_empty() const { return first_.empty(); }

  struct Hit {
    size_t begin = 0, end = 0;
    int32_t value = -1;  // -1: nothing found
  };
  Hit find(std::string_view text, size_t from) const;

 private:
  struct Node {
    int32_t value = -1;
  };
  std::vector<Node> nodes_;
  std::unordered_map<uint64_t, int32_t> children_;  // node << 8 | byte
  std::vector<int32_t> first_;                      // children of the root by byte, -1: none
};

struct TextSegment {
  TextRange range;
  int32_t id = -1;  // of the added token that stands here, -1: text
};

class AddedTokens {
 public:
  void add(const AddedToken& token, int32_t id);
  // To be called after the last add: prepares the search.
  void prepare(const Normalizer& normalizer);

  bool has_normalized() const { return !normalized_.is_empty(); }
  bool has_special_normalized() const { return has_special_normalized_; }
  const AddedToken* find(int32_t id) const;
  bool is_special(std::string_view content) const { return special_.count(std::string(content)) > 0; }

  // Where special tokens may be recognised: nowhere, or everywhere but in the literal ranges.
  struct Filter {
    bool parse_special = false;
    std::span<const TextRange> literal = {};  // sorted
  };
  // Cuts `text` into added tokens and the text between them. `origin` leads from bytes of `text` to those
  // that filter.literal counts; empty: `base` plus the offset.
  void split(std::string_view text, bool is_normalized, const Filter& filter, size_t base,
             std::span<const uint32_t> origin, std::vector<TextSegment>& segments) const;

 private:
  std::unordered_map<int32_t, AddedToken> tokens_;  // by id, the last one added
  std::unordered_set<std::string> special_;         // contents
  std::vector<std::pair<AddedToken, int32_t>> special_list_, plain_list_;
  TokenMatcher plain_, normalized_;  // `plain_`: looked for in the text as it is
  bool has_special_normalized_ = false;
};

}  // namespace lowbit
