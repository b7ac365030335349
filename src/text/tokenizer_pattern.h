// What a tokenizer file splits or replaces: a string, a regular expression, or one of the well-known split
// patterns, which are matched by hand in linear time.
#pragma once

#include "base/json.h"
#include "text/regex.h"

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

// The rules that the split patterns of GPT-2, cl100k, Llama 3 and Qwen 2 differ in. All cover every
// character.
struct SplitRules {
  bool any_case_contractions = false;  // 'S as well as 's
  bool any_letter_prefix = false;      // [^\r\n\p{L}\p{N}]? before letters, instead of one space
  int max_digits = 0;          // numbers in pieces of this length without a space before; 0: " ?\p{N}+"
  bool take_newlines = false;  // [\r\n]* after symbols, and \s*[\r\n]+ before other white space
};

// The rules behind a pattern string, when it is one of the known ones.
std::optional<SplitRules> known_split_rules(std::string_view pattern);
inline constexpr SplitRules kGpt2SplitRules = {};
inline constexpr std::string_view kGpt2SplitPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// Appends consecutive pieces that cover `text`.
void split_by_rules(const SplitRules& rules, std::string_view text, std::vector<TextRange>& pieces);

class Pattern {
 public:
  static Pattern from_literal(std::string literal);
  static Pattern from_regex(std::string_view regex);
  // {"String": "..."} or {"Regex": "..."}.
  static Pattern from_json(const Json& json);

  // All matches from left to right, none overlapping.
  void find_all(std::string_view text, std::vector<TextRange>& matches) const;
  // The literal, when the pattern is one.
  const std::string* literal() const { return regex_ || rules_ ? nullptr : &literal_; }

 private:
  std::string literal_;
  std::optional<Regex> regex_;
  std::optional<SplitRules> rules_;
};

}  // namespace lowbit
