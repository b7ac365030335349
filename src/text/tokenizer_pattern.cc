#include "text/tokenizer_pattern.h"

#include "base/fail.h"
#include "text/unicode.h"

#include <array>

namespace lowbit {
namespace {

constexpr size_t kMaxLiteralBytes = 4096;

struct KnownPattern {
  std::string_view pattern;
  SplitRules rules;
};

constexpr KnownPattern kKnownPatterns[] = {
    // GPT-2, and what ByteLevel's use_regex means
    {R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)", kGpt2SplitRules},
    {R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)", kGpt2SplitRules},
    // cl100k, Llama 3
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     {true, true, 3, true}},
    // Qwen 2, 2.5, 3
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     {true, true, 1, true}},
};

class Splitter {
 public:
  Splitter(const SplitRules& rules, std::string_view text) : rules_(rules), text_(text) {}

  // The end of the piece that begins at `at`; the alternatives are tried in the order of the pattern.
  size_t piece_end(size_t at) const {
    const CodePoint first = decode_utf8(text_, at);
    if (first.value == '\'') {
      if (const size_t length = contraction_length(at)) return at + length;
    }
    const size_t after = at + first.length;
    const CodePoint second = after < text_.size() ? decode_utf8(text_, after) : CodePoint{0xFFFFFFFF, 0};
    const bool has_second = second.length > 0;

    if (is_letter(first.value)) return run_end(after, is_letter);
    const bool first_is_number = is_number(first.value);
    const bool may_precede_letters = rules_.any_letter_prefix
                                         ? first.value != '\r' && first.value != '\n' && !first_is_number
                                         : first.value == ' ';
    if (may_precede_letters && has_second && is_letter(second.value))
      return run_end(after + second.length, is_letter);

    if (rules_.max_digits > 0) {
      if (first_is_number) return digits_end(after);
    } else {
      if (first_is_number) return run_end(after, is_number);
      if (first.value == ' ' && has_second && is_number(second.value))
        return run_end(after + second.length, is_number);
    }

    const bool first_is_space = is_space(first.value);
    if (!first_is_space) return symbols_end(after);
    if (first.value == ' ' && has_second && is_symbol(second.value))
      return symbols_end(after + second.length);
    return spaces_end(at, after);
  }

 private:
  static bool is_symbol(uint32_t c) { return !is_space(c) && !is_letter(c) && !is_number(c); }

  size_t run_end(size_t at, bool (*belongs)(uint32_t)) const {
    while (at < text_.size()) {
      const CodePoint c = decode_utf8(text_, at);
      if (!belongs(c.value)) break;
      at += c.length;
    }
    return at;
  }

  size_t digits_end(size_t at) const {
    for (int count = 1; count < rules_.max_digits && at < text_.size(); ++count) {
      const CodePoint c = decode_utf8(text_, at);
      if (!is_number(c.value)) break;
      at += c.length;
    }
    return at;
  }

  size_t symbols_end(size_t at) const {
    at = run_end(at, is_symbol);
    if (rules_.take_newlines) {
      while (at < text_.size() && (text_[at] == '\r' || text_[at] == '\n')) ++at;
    }
    return at;
  }

  size_t spaces_end(size_t begin, size_t at) const {
    size_t last = begin, after_newline = 0;  // `last`: where the run's last character begins
    if (text_[begin] == '\r' || text_[begin] == '\n') after_newline = at;
    while (at < text_.size()) {
      const CodePoint c = decode_utf8(text_, at);
      if (!is_space(c.value)) break;
      last = at;
      at += c.length;
      if (c.value == '\r' || c.value == '\n') after_newline = at;
    }
    if (rules_.take_newlines && after_newline > 0) return after_newline;
    // \s+(?!\S): what follows the run keeps its last space, unless that space is all there is.
    return at == text_.size() || last == begin ? at : last;
  }

  // 's 't 're 've 'm 'll 'd: the length in bytes, or 0.
  size_t contraction_length(size_t at) const {
    const auto letter = [&](size_t i) {
      if (i >= text_.size()) return '\0';
      const char c = text_[i];
      return rules_.any_case_contractions && c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
    };
    const char first = letter(at + 1), second = letter(at + 2);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
    if ((first == 'r' || first == 'v') && second == 'e') return 3;
    if (first == 'l' && second == 'l') return 3;
    // U+017F, the long s, is an s to a match without case.
    if (rules_.any_case_contractions && text_.substr(at + 1, 2) == "\xC5\xBF") return 3;
    return 0;
  }

  const SplitRules& rules_;
  std::string_view text_;
};

}  // namespace

std::optional<SplitRules> known_split_rules(std::string_view pattern) {
  for (const KnownPattern& known : kKnownPatterns) {
    if (known.pattern == pattern) return known.rules;
  }
  return std::nullopt;
}

void split_by_rules(const SplitRules& rules, std::string_view text, std::vector<TextRange>& pieces) {
  const Splitter splitter(rules, text);
  for (size_t at = 0; at < text.size();) {
    const size_t end = splitter.piece_end(at);
    pieces.push_back({at, end});
    at = end;
  }
}

Pattern Pattern::from_literal(std::string literal) {
  if (literal.size() > kMaxLiteralBytes) {
    fail(ErrorCode::kUnsupported, "a pattern has {} bytes, at most {} are supported", literal.size(),
         kMaxLiteralBytes);
  }
  Pattern pattern;
  pattern.literal_ = std::move(literal);
  return pattern;
}

Pattern Pattern::from_regex(std::string_view regex) {
  Pattern pattern;
  pattern.rules_ = known_split_rules(regex);
  if (!pattern.rules_) pattern.regex_.emplace(regex);
  return pattern;
}

Pattern Pattern::from_json(const Json& json) {
  if (const Json* literal = json.find("String")) return from_literal(literal->as_string());
  if (const Json* regex = json.find("Regex")) return from_regex(regex->as_string());
  fail(ErrorCode::kUnsupported, "a pattern is neither a \"String\" nor a \"Regex\"");
}

void Pattern::find_all(std::string_view text, std::vector<TextRange>& matches) const {
  if (regex_) return regex_->find_all(text, matches);
  if (rules_) return split_by_rules(*rules_, text, matches);
  if (literal_.empty()) return;
  for (size_t at = text.find(literal_); at != text.npos; at = text.find(literal_, at + literal_.size())) {
    matches.push_back({at, at + literal_.size()});
  }
}

}  // namespace lowbit
