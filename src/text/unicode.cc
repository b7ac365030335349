#include "text/unicode.h"

#include "base/fail.h"
#include "text/unicode_versions.h"

#include <algorithm>
#include <utf8proc.h>

namespace lowbit {
namespace {

utf8proc_category_t category(uint32_t c) { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }

bool is_between(uint32_t c, uint32_t first, uint32_t last) { return c >= first && c <= last; }

}  // namespace

Utf8Unit next_utf8_unit(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[at + i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {1, true, false};
  if (lead < 0xC2 || lead > 0xF4) return {1, false, false};
  const uint32_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte carries what rules out overlong forms, surrogates and values above 10FFFF.
  const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (uint32_t i = 1; i < length; ++i) {
    if (at + i >= text.size()) return {i, false, true};
    const bool fits = i == 1 ? byte(i) >= low && byte(i) <= high : (byte(i) & 0xC0) == 0x80;
    if (!fits) return {i, false, false};
  }
  return {length, true, false};
}

bool is_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const Utf8Unit unit = next_utf8_unit(text, at);
    if (!unit.is_valid) return false;
    at += unit.length;
  }
  return true;
}

CodePoint decode_utf8(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(text[at + i])); };
  const uint32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {(lead & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  if (lead < 0xF0) return {(lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
  return {(lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F), 4};
}

CodePoint decode_utf8_before(std::string_view text, size_t end) {
  size_t begin = end - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
  return decode_utf8(text, begin);
}

void append_utf8(std::string& out, uint32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | c >> 6);
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | c >> 12);
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | c >> 18);
    out += static_cast<char>(0x80 | (c >> 12 & 0x3F));
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  }
}

std::string to_utf8(uint32_t code_point) {
  std::string out;
  append_utf8(out, code_point);
  return out;
}

bool is_letter(uint32_t c) {
  if (c < 0x80) return (c | 0x20) >= 'a' && (c | 0x20) <= 'z';
  const auto k = category(c);
  return (k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO) ||
         (k == UTF8PROC_CATEGORY_CN && is_newer_letter(c));
}

bool is_number(uint32_t c) {
  if (c < 0x80) return c >= '0' && c <= '9';
  const auto k = category(c);
  return (k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO) ||
         (k == UTF8PROC_CATEGORY_CN && is_newer_number(c));
}

bool is_mark(uint32_t c) {
  const auto k = category(c);
  return (k >= UTF8PROC_CATEGORY_MN && k <= UTF8PROC_CATEGORY_ME) ||
         (k == UTF8PROC_CATEGORY_CN && is_newer_mark(c));
}

bool is_accent(uint32_t c) { return is_mark(c) != differs_as_accent(c); }

bool is_nonspacing_mark(uint32_t c) {
  return (category(c) == UTF8PROC_CATEGORY_MN) != differs_as_mark_of_bert(c);
}

bool is_space(uint32_t c) {
  if (c < 0x80) return c == ' ' || (c >= '\t' && c <= '\r');
  return c == 0x85 || c == 0xA0 || c == 0x1680 || is_between(c, 0x2000, 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_word(uint32_t c) {
  if (c < 0x80) return is_letter(c) || is_number(c) || c == '_';
  switch (category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    case UTF8PROC_CATEGORY_CN:
      return is_newer_letter(c) || is_newer_number(c) || is_newer_mark(c);
    default:
      // Join_Control, and the symbols that are Other_Alphabetic (letters in circles and squares).
      return c == 0x200C || c == 0x200D || is_between(c, 0x24B6, 0x24E9) || is_between(c, 0x1F130, 0x1F149) ||
             is_between(c, 0x1F150, 0x1F169) || is_between(c, 0x1F170, 0x1F189);
  }
}

bool is_punctuation(uint32_t c) {
  if (c < 0x80)
    return is_between(c, '!', '/') || is_between(c, ':', '@') || is_between(c, '[', '`') ||
           is_between(c, '{', '~');
  const auto k = category(c);
  return (k >= UTF8PROC_CATEGORY_PC && k <= UTF8PROC_CATEGORY_PO) != differs_as_punctuation(c);
}

bool is_control_or_format(uint32_t c) {
  const auto k = category(c);
  return (k == UTF8PROC_CATEGORY_CC || k == UTF8PROC_CATEGORY_CF || k == UTF8PROC_CATEGORY_CO) !=
         differs_as_control(c);
}

bool is_cjk_ideograph(uint32_t c) {
  return is_between(c, 0x4E00, 0x9FFF) || is_between(c, 0x3400, 0x4DBF) || is_between(c, 0x20000, 0x2A6DF) ||
         is_between(c, 0x2A700, 0x2B73F) || is_between(c, 0x2B740, 0x2B81F) ||
         is_between(c, 0x2B920, 0x2CEAF) || is_between(c, 0xF900, 0xFAFF) || is_between(c, 0x2F800, 0x2FA1F);
}

size_t grapheme_end(std::string_view text, size_t at) {
  utf8proc_int32_t state = 0;
  CodePoint last = decode_utf8(text, at);
  for (at += last.length; at < text.size(); at += last.length) {
    const CodePoint c = decode_utf8(text, at);
    if (utf8proc_grapheme_break_stateful(static_cast<utf8proc_int32_t>(last.value),
                                         static_cast<utf8proc_int32_t>(c.value), &state)) {
      break;
    }
    last = c;
  }
  return at;
}

void append_lowercase(std::string& out, uint32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  } else if (c == 0x130) {
    out += "i\xCC\x87";
  } else {
    append_utf8(out, static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
  }
}

bool is_normalization_boundary(uint32_t c) {
  return c < 0x80 || is_between(c, 0x3400, 0x4DBF) || is_between(c, 0x4E00, 0x9FFF);
}

void append_normalized(std::string& out, std::string_view text, NormalForm form) {
  const bool compatible = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  const bool composed = form == NormalForm::kNfc || form == NormalForm::kNfkc;
  const auto decompose = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE |
                                                        (compatible ? UTF8PROC_COMPAT : 0));
  std::vector<utf8proc_int32_t> points;
  points.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = decode_utf8(text, at);
    if (is_newer_decomposition(c.value)) {
      points.push_back(static_cast<utf8proc_int32_t>(c.value));
      at += c.length;
      continue;
    }
    utf8proc_int32_t parts[32];  // the longest decomposition has 18 (U+FDFA)
    int last_boundclass = 0;
    const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c.value), parts, 32, decompose,
                                               &last_boundclass);
    if (count < 0 || count > 32) fail(ErrorCode::kInternal, "utf8proc cannot decompose U+{:04X}", c.value);
    points.insert(points.end(), parts, parts + count);
    at += c.length;
  }
  // Canonical order. utf8proc's own sort of one run of marks is quadratic, hence not used.
  const auto combining_class = [](utf8proc_int32_t c) -> int {
    const int known = utf8proc_get_property(c)->combining_class;
    return known != 0 && is_newer_combining(static_cast<uint32_t>(c)) ? 0 : known;
  };
  for (size_t at = 0; at < points.size();) {
    size_t end = at;
    while (end < points.size() && combining_class(points[end]) != 0) ++end;
    if (end - at > 1) {
      std::stable_sort(points.begin() + static_cast<ptrdiff_t>(at),
                       points.begin() + static_cast<ptrdiff_t>(end),
                       [&](auto a, auto b) { return combining_class(a) < combining_class(b); });
    }
    at = end + 1;
  }
  for (size_t at = 0; at < points.size();) {
    // Nothing composes across a mark that is none to the reference: [at, end) stands alone.
    size_t end = at + 1;
    while (end < points.size() && !is_newer_combining(static_cast<uint32_t>(points[end]))) ++end;
    utf8proc_ssize_t length = static_cast<utf8proc_ssize_t>(end - at);
    if (composed) {
      const auto compose = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
      length = utf8proc_normalize_utf32(points.data() + at, length, compose);
      if (length < 0) fail(ErrorCode::kInternal, "utf8proc cannot compose {} characters", end - at);
    }
    for (utf8proc_ssize_t i = 0; i < length; ++i) {
      append_utf8(out, static_cast<uint32_t>(points[at + static_cast<size_t>(i)]));
    }
    at = end;
  }
}

}  // namespace lowbit
