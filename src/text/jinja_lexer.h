// Jinja source to tokens: text outside of tags, with its white space already trimmed as trim_blocks and
// lstrip_blocks (which chat templates are written for) and the signs of each tag ask, and what stands inside
// of tags.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit::jinja {

enum class TokenKind : uint8_t {
  kData,
  kBlockBegin,
  kBlockEnd,
  kVariableBegin,
  kVariableEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  uint32_t offset = 0;  // of the source, for messages
  std::string text;     // of a string: its value, escapes resolved
  int64_t integer = 0;
  double number = 0;

  bool is(std::string_view operation) const { return kind == TokenKind::kOperator && text == operation; }
  bool is_name(std::string_view name) const { return kind == TokenKind::kName && text == name; }
};

// Line ends become "\n" and one at the very end is dropped, as Jinja does; offsets count in this text.
std::string normalize_source(std::string_view source);

// Throws kInvalidArgument for what is not Jinja, kUnsupported for integers over 64 bits; the message names
// the place.
std::vector<Token> tokenize_template(std::string_view normalized_source, std::string_view where);

// "where: line 3 column 7".
std::string place_of(std::string_view source, size_t offset, std::string_view where);

}  // namespace lowbit::jinja
