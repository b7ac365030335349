// Python's str on UTF-8: indices count code points, and every operation carries along which bytes a user
// wrote.
#pragma once

#include "text/jinja_value.h"

#include <functional>
#include <string>
#include <string_view>

namespace lowbit::jinja {

// Collects a string, its user-written ranges included; memory is charged to the heap.
class TextBuilder {
 public:
  explicit TextBuilder(Heap& heap, size_t max_bytes = SIZE_MAX) : heap_(heap), max_bytes_(max_bytes) {}

  void append(std::string_view text, bool is_user = false);
  void append(const String& source) { append(source, 0, source.text.size()); }
  void append(const String& source, size_t begin, size_t end);
  // str(value), as printing does.
  void append(const Value& value);
  size_t size() const { return text_.size(); }
  Value finish();
  void take(std::string& text, std::vector<TextRange>& user);

 private:
  void mark(size_t begin, size_t end);

  Heap& heap_;
  size_t max_bytes_;
  std::string text_;
  std::vector<TextRange> user_;
};

// Answers for growing positions whether a user wrote the byte there.
class UserCursor {
 public:
  explicit UserCursor(const String& string) : ranges_(string.user) {}
  bool at(size_t position) {
    while (next_ < ranges_.size() && ranges_[next_].end <= position) ++next_;
    return next_ < ranges_.size() && ranges_[next_].begin <= position;
  }

 private:
  const std::vector<TextRange>& ranges_;
  size_t next_ = 0;
};

int64_t count_code_points(std::string_view text);
size_t next_code_point(std::string_view text, size_t position);
char32_t decode(std::string_view text, size_t position);  // of valid UTF-8
void encode(char32_t code_point, std::string& out);
bool is_valid_utf8(std::string_view text);
bool is_space(char32_t c);       // str.isspace
bool is_printable(char32_t c);   // str.isprintable
bool is_line_break(char32_t c);  // where str.splitlines splits
size_t byte_offset(const String& string, int64_t code_point);

size_t find_text(Heap& heap, std::string_view text, std::string_view what, size_t from);
size_t rfind_text(Heap& heap, std::string_view text, std::string_view what);
Value slice_text(Heap& heap, const String& string, size_t begin, size_t end);  // bytes

enum class Side { kLeft = 1, kRight = 2, kBoth = 3 };
// chars: the set to strip, or null for white space.
Value strip(Heap& heap, const String& string, Side side, const String* chars);
Value replace(Heap& heap, const String& string, const String& from, const String& to, int64_t count);
Value split(Heap& heap, const String& string, const String* separator, int64_t max_split);
Value rsplit(Heap& heap, const String& string, const String* separator, int64_t max_split);
Value splitlines(Heap& heap, const String& string, bool keep_ends);
Value escape_html(Heap& heap, const String& string);  // the result is markup

enum class Case { kUpper, kLower, kTitle, kCapitalize, kSwap };
Value change_case(Heap& heap, const String& string, Case to);
bool has_case(const String& string, Case which);                                    // str.isupper, islower
bool all_of(const String& string, const std::function<bool(char32_t)>& is_member);  // false when empty
bool is_digit(char32_t c);
bool is_alpha(char32_t c);

std::string float_repr(double value);  // Python's repr
// str(value), repr(value); printing a list prints the repr of its elements.
Value to_string(Heap& heap, const Value& value);
void append_repr(TextBuilder& out, Heap& heap, const Value& value, int depth = 0);

struct JsonStyle {
  std::string indent;  // empty and is_indented: line breaks only
  bool is_indented = false;
  bool ensure_ascii = false;
  bool sort_keys = false;
  std::string item_separator = ", ", key_separator = ": ";
};
Value to_json(Heap& heap, const Value& value, const JsonStyle& style);  // Python's json.dumps

// "..." % arguments, and "...".format(arguments); the grammar of Python without its rarest corners, which are
// kUnsupported.
struct Arguments;
Value format_percent(Heap& heap, const String& format, const Value& arguments);
Value format_braces(Heap& heap, const String& format, const Arguments& arguments);

}  // namespace lowbit::jinja
