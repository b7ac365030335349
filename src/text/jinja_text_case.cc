// Letter case and classes of characters, as Python's str has them.
#include "text/jinja_text.h"

#include <utf8proc.h>
#include <utility>

namespace lowbit::jinja {

namespace {

utf8proc_category_t category(char32_t c) { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }

bool is_upper(char32_t c) { return category(c) == UTF8PROC_CATEGORY_LU; }
bool is_lower(char32_t c) { return category(c) == UTF8PROC_CATEGORY_LL || c == 0xaa || c == 0xba; }
bool is_cased(char32_t c) { return is_upper(c) || is_lower(c) || category(c) == UTF8PROC_CATEGORY_LT; }

// Letters whose upper case is more than one letter (SpecialCasing.txt); the Greek and Armenian ones are left
// out.
const char* special_upper(char32_t c) {
  static const std::pair<char32_t, const char*> kSpecial[] = {
      {0xdf, "SS"},          {0x149, "\xca\xbcN"}, {0x1f0, "J\xcc\x8c"},  {0xfb00, "FF"},
      {0xfb01, "FI"},        {0xfb02, "FL"},       {0xfb03, "FFI"},       {0xfb04, "FFL"},
      {0xfb05, "ST"},        {0xfb06, "ST"},       {0x1e96, "H\xcc\xb1"}, {0x1e97, "T\xcc\x88"},
      {0x1e98, "W\xcc\x8a"}, {0x1e99, "Y\xcc\x8a"}};
  for (const auto& [letter, upper] : kSpecial) {
    if (letter == c) return upper;
  }
  return nullptr;
}

void append_cased(std::string& out, char32_t c, Case to) {
  if (to == Case::kUpper) {
    if (const char* special = special_upper(c)) {
      out += special;
      return;
    }
    encode(static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))), out);
  } else if (to == Case::kLower) {
    if (c == 0x130) {
      out += "i\xcc\x87";
      return;
    }
    encode(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))), out);
  } else {
    if (c == 0xdf) {
      out += "Ss";
      return;
    }
    encode(static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c))), out);
  }
}

}  // namespace

Value change_case(Heap& heap, const String& string, Case to) {
  TextBuilder out(heap);
  UserCursor user(string);
  const std::string_view text = string.text;
  heap.scan(4 * text.size());
  bool after_cased = false;
  std::string piece;
  for (size_t i = 0; i < text.size(); i = next_code_point(text, i)) {
    const char32_t c = decode(text, i);
    Case how = to;
    if (to == Case::kTitle) how = after_cased ? Case::kLower : Case::kTitle;
    if (to == Case::kCapitalize) how = i == 0 ? Case::kTitle : Case::kLower;
    if (to == Case::kSwap) how = is_upper(c) ? Case::kLower : (is_lower(c) ? Case::kUpper : Case::kSwap);
    after_cased = is_cased(c);
    piece.clear();
    if (how == Case::kSwap) {
      encode(c, piece);
    } else {
      append_cased(piece, c, how);
    }
    out.append(piece, user.at(i));
  }
  return out.finish();
}

bool has_case(const String& string, Case which) {
  bool found = false;
  for (size_t i = 0; i < string.text.size(); i = next_code_point(string.text, i)) {
    const char32_t c = decode(string.text, i);
    if (!is_cased(c)) continue;
    if ((which == Case::kUpper) != is_upper(c) || category(c) == UTF8PROC_CATEGORY_LT) return false;
    found = true;
  }
  return found;
}

bool all_of(const String& string, const std::function<bool(char32_t)>& is_member) {
  for (size_t i = 0; i < string.text.size(); i = next_code_point(string.text, i)) {
    if (!is_member(decode(string.text, i))) return false;
  }
  return !string.text.empty();
}

bool is_digit(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_ND || c == 0xb2 || c == 0xb3 || c == 0xb9 || c == 0x2070 ||
         (c >= 0x2074 && c <= 0x2079) || (c >= 0x2080 && c <= 0x2089);
}

bool is_alpha(char32_t c) {
  const utf8proc_category_t found = category(c);
  return found >= UTF8PROC_CATEGORY_LU && found <= UTF8PROC_CATEGORY_LO;
}

}  // namespace lowbit::jinja
