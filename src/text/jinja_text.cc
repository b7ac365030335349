#include "text/jinja_text.h"

#include "base/fail.h"

#include <algorithm>
#include <cstring>
#include <utf8proc.h>

namespace lowbit::jinja {

void TextBuilder::mark(size_t begin, size_t end) {
  if (begin == end) return;
  if (!user_.empty() && user_.back().end == begin) {
    user_.back().end = end;
  } else {
    heap_.charge(sizeof(TextRange));
    user_.push_back({begin, end});
  }
}

void TextBuilder::append(std::string_view text, bool is_user) {
  heap_.charge(text.size());
  if (text.size() > max_bytes_ - text_.size()) {
    fail(ErrorCode::kInvalidArgument, "the rendered text is longer than {} MiB", max_bytes_ >> 20);
  }
  if (is_user) mark(text_.size(), text_.size() + text.size());
  text_.append(text);
}

void TextBuilder::append(const String& source, size_t begin, size_t end) {
  const size_t offset = text_.size();
  append(std::string_view(source.text).substr(begin, end - begin));
  auto range = std::partition_point(source.user.begin(), source.user.end(),
                                    [begin](const TextRange& r) { return r.end <= begin; });
  for (; range != source.user.end() && range->begin < end; ++range) {
    mark(offset + std::max(range->begin, begin) - begin, offset + std::min(range->end, end) - begin);
  }
}

void TextBuilder::append(const Value& value) {
  if (value.is_string()) {
    append(*value.string);
  } else if (!value.is_undefined()) {
    append_repr(*this, heap_, value);
  }
}

Value TextBuilder::finish() {
  String* result = heap_.make<String>();
  result->text = std::move(text_);
  result->user = std::move(user_);
  result->length = count_code_points(result->text);
  text_.clear();
  user_.clear();
  return Value::of(result);
}

void TextBuilder::take(std::string& text, std::vector<TextRange>& user) {
  text = std::move(text_);
  user = std::move(user_);
}

int64_t count_code_points(std::string_view text) {
  int64_t count = 0;
  for (char c : text) count += (c & 0xc0) != 0x80;
  return count;
}

size_t next_code_point(std::string_view text, size_t position) {
  do ++position;
  while (position < text.size() && (text[position] & 0xc0) == 0x80);
  return position;
}

char32_t decode(std::string_view text, size_t position) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[position + i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return first;
  if (first < 0xe0) return (first & 0x1f) << 6 | (byte(1) & 0x3f);
  if (first < 0xf0) return (first & 0x0f) << 12 | (byte(1) & 0x3f) << 6 | (byte(2) & 0x3f);
  return (first & 0x07) << 18 | (byte(1) & 0x3f) << 12 | (byte(2) & 0x3f) << 6 | (byte(3) & 0x3f);
}

void encode(char32_t code_point, std::string& out) {
  utf8proc_uint8_t bytes[4];
  const utf8proc_ssize_t size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code_point), bytes);
  out.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(size));
}

bool is_valid_utf8(std::string_view text) {
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  for (size_t i = 0; i < text.size();) {
    if (bytes[i] < 0x80) {
      ++i;
      continue;
    }
    utf8proc_int32_t code_point;
    const utf8proc_ssize_t size =
        utf8proc_iterate(bytes + i, static_cast<utf8proc_ssize_t>(text.size() - i), &code_point);
    if (size <= 0) return false;
    i += static_cast<size_t>(size);
  }
  return true;
}

bool is_space(char32_t c) {
  if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x1f);
  return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
         c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool is_printable(char32_t c) {
  if (c < 0x7f) return c >= 0x20;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

bool is_line_break(char32_t c) {
  return (c >= 10 && c <= 13) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

size_t byte_offset(const String& string, int64_t code_point) {
  if (code_point >= string.length) return string.text.size();
  if (string.is_ascii()) return static_cast<size_t>(code_point);
  size_t position = 0;
  for (int64_t i = 0; i < code_point; ++i) position = next_code_point(string.text, position);
  return position;
}

size_t find_text(Heap& heap, std::string_view text, std::string_view what, size_t from) {
  if (from > text.size()) return std::string_view::npos;
  if (what.empty()) return from;
  heap.step();
  // memmem is linear in the worst case; string_view::find is not.
  const void* found = memmem(text.data() + from, text.size() - from, what.data(), what.size());
  const size_t at =
      found ? static_cast<size_t>(static_cast<const char*>(found) - text.data()) : std::string_view::npos;
  heap.scan((found ? at : text.size()) - from);
  return at;
}

size_t rfind_text(Heap& heap, std::string_view text, std::string_view what) {
  const std::string reversed_text(text.rbegin(), text.rend()), reversed_what(what.rbegin(), what.rend());
  heap.charge(text.size());
  const size_t at = find_text(heap, reversed_text, reversed_what, 0);
  return at == std::string_view::npos ? at : text.size() - at - what.size();
}

Value slice_text(Heap& heap, const String& string, size_t begin, size_t end) {
  if (begin == 0 && end == string.text.size() && !string.is_markup) return Value::of(&string);
  TextBuilder out(heap);
  if (begin < end) out.append(string, begin, end);
  return out.finish();
}

Value strip(Heap& heap, const String& string, Side side, const String* chars) {
  const std::string_view text = string.text;
  heap.scan(text.size());
  const auto is_stripped = [&](size_t begin, size_t end) {
    if (!chars) return is_space(decode(text, begin));
    heap.scan(chars->text.size());
    return chars->text.find(text.substr(begin, end - begin)) != std::string::npos;
  };
  size_t begin = 0, end = text.size();
  if (static_cast<int>(side) & static_cast<int>(Side::kLeft)) {
    while (begin < end) {
      const size_t next = next_code_point(text, begin);
      if (!is_stripped(begin, next)) break;
      begin = next;
    }
  }
  if (static_cast<int>(side) & static_cast<int>(Side::kRight)) {
    while (end > begin) {
      size_t last = end - 1;
      while (last > begin && (text[last] & 0xc0) == 0x80) --last;
      if (!is_stripped(last, end)) break;
      end = last;
    }
  }
  return slice_text(heap, string, begin, end);
}

Value replace(Heap& heap, const String& string, const String& from, const String& to, int64_t count) {
  TextBuilder out(heap);
  const std::string_view text = string.text;
  size_t begin = 0;
  if (from.text.empty()) {  // Python puts `to` before every character and at the end
    while (count != 0) {
      heap.step();
      out.append(to);
      --count;
      if (begin >= text.size()) break;
      const size_t end = next_code_point(text, begin);
      out.append(string, begin, end);
      begin = end;
    }
    if (begin < text.size()) out.append(string, begin, text.size());
    return out.finish();
  }
  for (; count != 0; --count) {
    const size_t at = find_text(heap, text, from.text, begin);
    if (at == std::string_view::npos) break;
    out.append(string, begin, at);
    out.append(to);
    begin = at + from.text.size();
  }
  out.append(string, begin, text.size());
  return out.finish();
}

Value split(Heap& heap, const String& string, const String* separator, int64_t max_split) {
  List* parts = heap.list();
  const std::string_view text = string.text;
  if (separator) {
    if (separator->text.empty()) fail(ErrorCode::kInvalidArgument, "split: the separator is empty");
    size_t begin = 0;
    for (; max_split != 0; --max_split) {
      const size_t at = find_text(heap, text, separator->text, begin);
      if (at == std::string_view::npos) break;
      heap.append(*parts, slice_text(heap, string, begin, at));
      begin = at + separator->text.size();
    }
    heap.append(*parts, slice_text(heap, string, begin, text.size()));
    return Value::of(parts);
  }
  heap.scan(text.size());
  size_t position = 0;
  const auto skip = [&](bool spaces) {
    while (position < text.size() && is_space(decode(text, position)) == spaces) {
      position = next_code_point(text, position);
    }
  };
  for (skip(true); position < text.size(); skip(true)) {
    const size_t begin = position;
    if (max_split-- == 0) {
      heap.append(*parts, slice_text(heap, string, begin, text.size()));
      break;
    }
    skip(false);
    heap.append(*parts, slice_text(heap, string, begin, position));
  }
  return Value::of(parts);
}

Value rsplit(Heap& heap, const String& string, const String* separator, int64_t max_split) {
  if (max_split < 0) return split(heap, string, separator, -1);
  if (!separator)
    fail(ErrorCode::kUnsupported, "rsplit without a separator but with maxsplit is not supported");
  if (separator->text.empty()) fail(ErrorCode::kInvalidArgument, "rsplit: the separator is empty");
  List* parts = heap.list();
  size_t end = string.text.size();
  for (; max_split > 0; --max_split) {
    const size_t at = rfind_text(heap, std::string_view(string.text).substr(0, end), separator->text);
    if (at == std::string_view::npos) break;
    heap.append(*parts, slice_text(heap, string, at + separator->text.size(), end));
    end = at;
  }
  heap.append(*parts, slice_text(heap, string, 0, end));
  std::reverse(parts->items.begin(), parts->items.end());
  return Value::of(parts);
}

Value splitlines(Heap& heap, const String& string, bool keep_ends) {
  List* lines = heap.list();
  const std::string_view text = string.text;
  heap.scan(text.size());
  for (size_t begin = 0; begin < text.size();) {
    size_t end = begin;
    while (end < text.size() && !is_line_break(decode(text, end))) end = next_code_point(text, end);
    size_t next = end;
    if (next < text.size()) next = text.substr(next, 2) == "\r\n" ? next + 2 : next_code_point(text, next);
    heap.append(*lines, slice_text(heap, string, begin, keep_ends ? next : end));
    begin = next;
  }
  return Value::of(lines);
}

Value escape_html(Heap& heap, const String& string) {
  TextBuilder out(heap);
  size_t begin = 0;
  const std::string_view text = string.text;
  UserCursor user(string);
  for (size_t i = 0; i < text.size() && !string.is_markup; ++i) {
    const char* replacement = nullptr;
    switch (text[i]) {
      case '&':
        replacement = "&amp;";
        break;
      case '<':
        replacement = "&lt;";
        break;
      case '>':
        replacement = "&gt;";
        break;
      case '"':
        replacement = "&#34;";
        break;
      case '\'':
        replacement = "&#39;";
        break;
      default:
        continue;
    }
    out.append(string, begin, i);
    out.append(replacement, user.at(i));
    begin = i + 1;
  }
  out.append(string, begin, text.size());
  Value result = out.finish();
  const_cast<String*>(result.string)->is_markup = true;
  return result;
}

}  // namespace lowbit::jinja
