#include "text/jinja_lexer.h"

#include "base/fail.h"
#include "text/jinja_text.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>

namespace lowbit::jinja {

namespace {

constexpr std::string_view kOperators[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                           "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                           ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};

bool is_ascii_digit(char c) { return c >= '0' && c <= '9'; }

bool is_name_byte(char c) {
  return is_ascii_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<unsigned char>(c) >= 0x80;
}

class Lexer {
 public:
  Lexer(std::string_view source, std::string_view where) : source_(source), where_(where) {}

  std::vector<Token> run() {
    while (position_ < source_.size()) read_data();
    emit(TokenKind::kEnd, source_.size(), "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail_at(size_t offset, const std::string& what,
                            ErrorCode code = ErrorCode::kInvalidArgument) {
    fail(code, "{}: {}", place_of(source_, offset, where_), what);
  }

  void emit(TokenKind kind, size_t offset, std::string text) {
    tokens_.push_back({kind, static_cast<uint32_t>(offset), std::move(text), 0, 0});
  }

  bool starts(std::string_view what) const { return source_.substr(position_, what.size()) == what; }

  void skip_space() {
    while (position_ < source_.size() && is_space(decode(source_, position_))) {
      position_ = next_code_point(source_, position_);
    }
  }

  // Text up to the next tag, and that tag.
  void read_data() {
    const size_t begin = position_;
    size_t tag = begin;
    do {
      tag = source_.find('{', tag == begin ? begin : tag);
      if (tag == source_.npos) break;
      const char kind = tag + 1 < source_.size() ? source_[tag + 1] : '\0';
      if (kind == '{' || kind == '%' || kind == '#') break;
      ++tag;
    } while (true);
    if (tag == source_.npos) {
      emit(TokenKind::kData, begin, std::string(source_.substr(begin)));
      position_ = source_.size();
      return;
    }
    const char kind = source_[tag + 1];
    position_ = tag + 2;
    char sign = '\0';
    if (position_ < source_.size() && (source_[position_] == '-' || source_[position_] == '+')) {
      sign = source_[position_++];
    }
    const std::string_view text = trim_before_tag(source_.substr(begin, tag - begin), sign, kind != '{');
    if (!text.empty()) emit(TokenKind::kData, begin, std::string(text));
    if (kind == '#') {
      read_comment(tag);
    } else if (kind == '%' && read_raw_begin()) {
      read_raw(tag);
    } else {
      emit(kind == '%' ? TokenKind::kBlockBegin : TokenKind::kVariableBegin, tag, "");
      read_tag(kind == '%', tag);
    }
  }

  std::string_view trim_before_tag(std::string_view text, char sign, bool is_block) const {
    if (sign == '-') {
      while (!text.empty()) {
        size_t last = text.size() - 1;
        while (last > 0 && (text[last] & 0xc0) == 0x80) --last;
        if (!is_space(decode(text, last))) break;
        text = text.substr(0, last);
      }
    } else if (sign != '+' && is_block) {
      const size_t line_break = text.rfind('\n');
      const size_t line = line_break == text.npos ? 0 : line_break + 1;
      if (line > 0 || at_line_start_) {
        for (size_t i = line; i < text.size(); i = next_code_point(text, i)) {
          if (!is_space(decode(text, i))) return text;
        }
        text = text.substr(0, line);
      }
    }
    return text;
  }

  // After "-%}" all white space goes, after "%}" one line break, after "+%}" nothing. `at` is past the
  // delimiter.
  void finish_tag(char sign, bool trims_line_break) {
    const size_t before = position_;
    if (sign == '-') {
      skip_space();
    } else if (sign != '+' && trims_line_break && position_ < source_.size() && source_[position_] == '\n') {
      ++position_;
    }
    at_line_start_ = position_ > before && source_[position_ - 1] == '\n';
  }

  void read_comment(size_t tag) {
    const size_t end = source_.find("#}", position_);
    if (end == source_.npos) fail_at(tag, "a comment is not closed");
    const char sign = end > position_ ? source_[end - 1] : '\0';
    position_ = end + 2;
    finish_tag(sign, true);
  }

  // Called behind "{%" and its sign: consumes "raw %}".
  bool read_raw_begin() {
    const size_t saved = position_;
    skip_space();
    if (starts("raw")) {
      position_ += 3;
      skip_space();
      const bool trims = starts("-%}");
      if (trims || starts("%}")) {
        position_ += trims ? 3 : 2;
        if (trims) skip_space();
        return true;
      }
    }
    position_ = saved;
    return false;
  }

  void read_raw(size_t tag) {
    const size_t begin = position_;
    at_line_start_ = begin > 0 && source_[begin - 1] == '\n';
    for (size_t at = source_.find("{%", begin); at != source_.npos; at = source_.find("{%", at + 1)) {
      position_ = at + 2;
      char sign = '\0';
      if (starts("-") || starts("+")) sign = source_[position_++];
      skip_space();
      if (!starts("endraw")) continue;
      position_ += 6;
      skip_space();
      char end_sign = '\0';
      if (starts("-%}") || starts("+%}")) end_sign = source_[position_++];
      if (!starts("%}")) continue;
      position_ += 2;
      const std::string_view text = trim_before_tag(source_.substr(begin, at - begin), sign, true);
      if (!text.empty()) emit(TokenKind::kData, begin, std::string(text));
      finish_tag(end_sign, true);
      return;
    }
    fail_at(tag, "a raw block is not closed: {% endraw %} is missing");
  }

  void read_tag(bool is_block, size_t tag) {
    const std::string_view end = is_block ? "%}" : "}}";
    std::string open;  // brackets that are open
    while (true) {
      skip_space();
      if (position_ >= source_.size()) fail_at(tag, is_block ? "'{%' is not closed" : "'{{' is not closed");
      if (open.empty()) {
        char sign = '\0';
        if (starts("-") || (is_block && starts("+"))) sign = source_[position_];
        if (source_.substr(position_ + (sign ? 1 : 0), 2) == end) {
          emit(is_block ? TokenKind::kBlockEnd : TokenKind::kVariableEnd, position_, "");
          position_ += sign ? 3 : 2;
          finish_tag(sign, is_block);
          return;
        }
      }
      read_token(open);
    }
  }

  void read_token(std::string& open) {
    const size_t begin = position_;
    const char c = source_[position_];
    if (c == '\'' || c == '"') return read_string(c);
    if (is_ascii_digit(c)) return read_number();
    if (is_name_byte(c)) {
      while (position_ < source_.size() && is_name_byte(source_[position_]) &&
             !is_space(decode(source_, position_))) {
        position_ = next_code_point(source_, position_);
      }
      if (position_ == begin) fail_at(begin, "unexpected character");
      return emit(TokenKind::kName, begin, std::string(source_.substr(begin, position_ - begin)));
    }
    for (std::string_view operation : kOperators) {
      if (!starts(operation)) continue;
      position_ += operation.size();
      if (c == '(' || c == '[' || c == '{') open += c;
      if (c == ')' || c == ']' || c == '}') {
        const char expected = c == ')' ? '(' : (c == ']' ? '[' : '{');
        if (open.empty() || open.back() != expected) fail_at(begin, fmt::format("unexpected '{}'", c));
        open.pop_back();
      }
      return emit(TokenKind::kOperator, begin, std::string(operation));
    }
    fail_at(begin, fmt::format("unexpected character '{}'",
                               source_.substr(begin, next_code_point(source_, begin) - begin)));
  }

  void read_number() {
    const size_t begin = position_;
    const bool after_dot = begin > 0 && source_[begin - 1] == '.';
    size_t end = begin;
    int base = 10;
    if (source_[begin] == '0' && begin + 1 < source_.size()) {
      const char kind = static_cast<char>(source_[begin + 1] | 0x20);
      base = kind == 'x' ? 16 : (kind == 'o' ? 8 : (kind == 'b' ? 2 : 10));
      if (base != 10) end += 2;
    }
    const auto is_digit_of_base = [&](char c) {
      return base == 16 ? std::isxdigit(static_cast<unsigned char>(c)) != 0
                        : c >= '0' && c < '0' + std::min(base, 10);
    };
    const auto digits = [&](size_t at) {
      while (at < source_.size() &&
             (is_digit_of_base(source_[at]) ||
              (source_[at] == '_' && at + 1 < source_.size() && is_digit_of_base(source_[at + 1])))) {
        ++at;
      }
      return at;
    };
    end = digits(end);
    bool is_float = false;
    if (base == 10 && !after_dot) {
      size_t at = end;
      if (at + 1 < source_.size() && source_[at] == '.' && is_ascii_digit(source_[at + 1])) {
        at = digits(at + 1);
        is_float = true;
      }
      if (at < source_.size() && (source_[at] | 0x20) == 'e') {
        size_t exponent = at + 1;
        if (exponent < source_.size() && (source_[exponent] == '+' || source_[exponent] == '-')) ++exponent;
        if (exponent < source_.size() && is_ascii_digit(source_[exponent])) {
          at = digits(exponent);
          is_float = true;
        }
      }
      if (is_float) end = at;
    }
    std::string text(source_.substr(begin, end - begin));
    text.erase(std::remove(text.begin(), text.end(), '_'), text.end());
    position_ = end;
    emit(is_float ? TokenKind::kFloat : TokenKind::kInteger, begin, text);
    if (is_float) {
      tokens_.back().number = std::strtod(text.c_str(), nullptr);
      return;
    }
    const char* first = text.data() + (base == 10 ? 0 : 2);
    const auto result = std::from_chars(first, text.data() + text.size(), tokens_.back().integer, base);
    if (result.ec == std::errc::result_out_of_range) {
      fail_at(begin, "an integer of more than 64 bits", ErrorCode::kUnsupported);
    }
    if (result.ec != std::errc()) fail_at(begin, "not a number");
  }

  uint32_t read_hex(size_t at, size_t count) {
    uint32_t code = 0;
    const std::string_view text = source_.substr(std::min(at, source_.size()), count);
    const auto result = std::from_chars(text.data(), text.data() + text.size(), code, 16);
    if (text.size() != count || result.ptr != text.data() + count)
      fail_at(at, "a string has a bad \\ escape");
    return code;
  }

  void read_string(char quote) {
    const size_t begin = position_++;
    std::string value;
    while (true) {
      if (position_ >= source_.size()) fail_at(begin, "a string is not closed");
      const char c = source_[position_++];
      if (c == quote) break;
      if (c != '\\') {
        value += c;
        continue;
      }
      if (position_ >= source_.size()) fail_at(begin, "a string is not closed");
      read_escape(source_[position_++], value);
    }
    emit(TokenKind::kString, begin, std::move(value));
  }

  void read_escape(char c, std::string& value) {
    static constexpr std::string_view kNames = "abfnrtv\\'\"", kMeanings = "\a\b\f\n\r\t\v\\'\"";
    if (const size_t at = kNames.find(c); at != kNames.npos) {
      value += kMeanings[at];
    } else if (c == '\n') {
      // a line that continues
    } else if (c == 'x' || c == 'u' || c == 'U') {
      const size_t count = c == 'x' ? 2 : (c == 'u' ? 4 : 8);
      const uint32_t code = read_hex(position_, count);
      if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) {
        fail_at(position_, "a string names a character that is not Unicode", ErrorCode::kUnsupported);
      }
      encode(code, value);
      position_ += count;
    } else if (c >= '0' && c <= '7') {
      uint32_t code = static_cast<uint32_t>(c - '0');
      for (int i = 0;
           i < 2 && position_ < source_.size() && source_[position_] >= '0' && source_[position_] <= '7';
           ++i) {
        code = code * 8 + static_cast<uint32_t>(source_[position_++] - '0');
      }
      encode(code, value);
    } else if (c == 'N') {
      fail_at(position_, "\\N{...} in a string is not supported", ErrorCode::kUnsupported);
    } else {
      value += '\\';  // an unknown escape stays as it is
      value += c;
    }
  }

  std::string_view source_, where_;
  size_t position_ = 0;
  bool at_line_start_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::string normalize_source(std::string_view source) {
  std::string result;
  result.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      result += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      result += source[i];
    }
  }
  if (!result.empty() && result.back() == '\n') result.pop_back();
  return result;
}

std::vector<Token> tokenize_template(std::string_view normalized_source, std::string_view where) {
  return Lexer(normalized_source, where).run();
}

std::string place_of(std::string_view source, size_t offset, std::string_view where) {
  const std::string_view before = source.substr(0, offset);
  const size_t line_break = before.rfind('\n');
  const std::string_view line = line_break == before.npos ? before : before.substr(line_break + 1);
  return fmt::format("{}: line {} column {}", where, 1 + std::count(before.begin(), before.end(), '\n'),
                     1 + count_code_points(line));
}

}  // namespace lowbit::jinja
