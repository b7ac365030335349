// Values as text: Python's str and repr, and json.dumps.
#include "base/fail.h"
#include "text/jinja_text.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fmt/format.h>

namespace lowbit::jinja {

namespace {

void check_depth(int depth) {
  if (depth > kMaxValueDepth) {
    fail(ErrorCode::kInvalidArgument, "a value is nested deeper than {} levels", kMaxValueDepth);
  }
}

void append_string_repr(TextBuilder& out, Heap& heap, const String& string) {
  const std::string_view text = string.text;
  heap.scan(text.size());
  const bool has_single = text.find('\'') != text.npos, has_double = text.find('"') != text.npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  out.append(std::string_view(&quote, 1));
  UserCursor user(string);
  size_t plain = 0;  // where the bytes begin that are printed as they are
  for (size_t i = 0; i < text.size();) {
    const char32_t c = decode(text, i);
    const size_t next = next_code_point(text, i);
    std::string escaped;
    if (c == '\\' || c == static_cast<char32_t>(quote)) {
      escaped = {'\\', static_cast<char>(c)};
    } else if (c == '\n') {
      escaped = "\\n";
    } else if (c == '\r') {
      escaped = "\\r";
    } else if (c == '\t') {
      escaped = "\\t";
    } else if (!is_printable(c)) {
      const auto code = static_cast<uint32_t>(c);
      escaped = c < 0x100     ? fmt::format("\\x{:02x}", code)
                : c < 0x10000 ? fmt::format("\\u{:04x}", code)
                              : fmt::format("\\U{:08x}", code);
    }
    if (!escaped.empty()) {
      out.append(string, plain, i);
      out.append(escaped, user.at(i));
      plain = next;
    }
    i = next;
  }
  out.append(string, plain, text.size());
  out.append(std::string_view(&quote, 1));
}

void append_list_repr(TextBuilder& out, Heap& heap, const List& list, int depth) {
  const char* open = "[";
  const char* close = "]";
  switch (list.list_kind) {
    case ListKind::kList:
      break;
    case ListKind::kTuple:
      open = "(";
      close = list.items.size() == 1 ? ",)" : ")";
      break;
    case ListKind::kKeys:
      open = "dict_keys([", close = "])";
      break;
    case ListKind::kValues:
      open = "dict_values([", close = "])";
      break;
    case ListKind::kItems:
      open = "dict_items([", close = "])";
      break;
    case ListKind::kRange:
    case ListKind::kGenerator:
      fail(ErrorCode::kUnsupported, "printing a generator or a range: make it a list first, with |list");
  }
  out.append(open);
  for (size_t i = 0; i < list.items.size(); ++i) {
    if (i > 0) out.append(", ");
    append_repr(out, heap, list.items[i], depth + 1);
  }
  out.append(close);
}

void append_dict_repr(TextBuilder& out, Heap& heap, const Dict& dict, int depth) {
  out.append("{");
  for (size_t i = 0; i < dict.entries.size(); ++i) {
    if (i > 0) out.append(", ");
    append_repr(out, heap, dict.entries[i].first, depth + 1);
    out.append(": ");
    append_repr(out, heap, dict.entries[i].second, depth + 1);
  }
  out.append("}");
}

class JsonWriter {
 public:
  JsonWriter(Heap& heap, TextBuilder& out, const JsonStyle& style) : heap_(heap), out_(out), style_(style) {}

  void write(const Value& value, int depth) {
    heap_.step();
    check_depth(depth);
    switch (value.kind) {
      case ValueKind::kNone:
        out_.append("null");
        break;
      case ValueKind::kBool:
        out_.append(value.boolean ? "true" : "false");
        break;
      case ValueKind::kInteger:
        out_.append(std::to_string(value.integer));
        break;
      case ValueKind::kFloat:
        out_.append(number(value.number));
        break;
      case ValueKind::kString:
        write_string(*value.string);
        break;
      case ValueKind::kList:
        if (value.list->list_kind > ListKind::kTuple) fail_type(value);
        write_list(*value.list, depth);
        break;
      case ValueKind::kDict:
        write_dict(*value.dict, depth);
        break;
      default:
        fail_type(value);
    }
  }

 private:
  [[noreturn]] static void fail_type(const Value& value) {
    if (value.is_undefined()) fail_undefined(value);
    fail(ErrorCode::kInvalidArgument, "a '{}' cannot be written as JSON", type_name(value));
  }

  static std::string number(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
    return float_repr(value);
  }

  void new_line(int depth) {
    if (!style_.is_indented) return;
    out_.append("\n");
    for (int i = 0; i < depth; ++i) out_.append(style_.indent);
  }

  void write_list(const List& list, int depth) {
    out_.append("[");
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0) out_.append(style_.item_separator);
      new_line(depth + 1);
      write(list.items[i], depth + 1);
    }
    if (!list.items.empty()) new_line(depth);
    out_.append("]");
  }

  void write_dict(const Dict& dict, int depth) {
    std::vector<const std::pair<Value, Value>*> entries;
    heap_.charge(dict.entries.size() * sizeof(void*));
    for (const auto& entry : dict.entries) entries.push_back(&entry);
    if (style_.sort_keys) {
      std::stable_sort(entries.begin(), entries.end(),
                       [&](const auto* a, const auto* b) { return compare(heap_, a->first, b->first) < 0; });
    }
    out_.append("{");
    for (size_t i = 0; i < entries.size(); ++i) {
      if (i > 0) out_.append(style_.item_separator);
      new_line(depth + 1);
      write_key(entries[i]->first, depth);
      out_.append(style_.key_separator);
      write(entries[i]->second, depth + 1);
    }
    if (!entries.empty()) new_line(depth);
    out_.append("}");
  }

  void write_key(const Value& key, int depth) {
    if (key.is_string()) return write_string(*key.string);
    if (!key.is_none() && !key.is_number()) fail_type(key);
    out_.append("\"");
    write(key, depth + 1);
    out_.append("\"");
  }

  void write_string(const String& string) {
    const std::string_view text = string.text;
    heap_.scan(text.size());
    UserCursor user(string);
    out_.append("\"");
    size_t plain = 0;
    for (size_t i = 0; i < text.size();) {
      const char32_t c = decode(text, i);
      const size_t next = next_code_point(text, i);
      const std::string escaped = escape(c);
      if (!escaped.empty()) {
        out_.append(string, plain, i);
        out_.append(escaped, user.at(i));
        plain = next;
      }
      i = next;
    }
    out_.append(string, plain, text.size());
    out_.append("\"");
  }

  std::string escape(char32_t c) const {
    switch (c) {
      case '"':
        return "\\\"";
      case '\\':
        return "\\\\";
      case '\b':
        return "\\b";
      case '\f':
        return "\\f";
      case '\n':
        return "\\n";
      case '\r':
        return "\\r";
      case '\t':
        return "\\t";
      default:
        break;
    }
    const auto code = static_cast<uint32_t>(c);
    if (code < 0x20 || (style_.ensure_ascii && code >= 0x7f && code < 0x10000)) {
      return fmt::format("\\u{:04x}", code);
    }
    if (style_.ensure_ascii && code >= 0x10000) {
      return fmt::format("\\u{:04x}\\u{:04x}", 0xd800 + ((code - 0x10000) >> 10),
                         0xdc00 + ((code - 0x10000) & 0x3ff));
    }
    return {};
  }

  Heap& heap_;
  TextBuilder& out_;
  const JsonStyle& style_;
};

}  // namespace

std::string float_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[40];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
  std::string_view shortest(buffer, static_cast<size_t>(end - buffer));
  std::string sign;
  if (shortest[0] == '-') {
    sign = "-";
    shortest.remove_prefix(1);
  }
  const size_t e = shortest.find('e');
  int exponent = 0;
  const char* exponent_text = shortest.data() + e + 1;
  if (*exponent_text == '+') ++exponent_text;
  std::from_chars(exponent_text, end, exponent);
  std::string digits(1, shortest[0]);
  if (e > 2) digits += shortest.substr(2, e - 2);
  const int count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    return fmt::format("{}{}{}{}e{}{:02d}", sign, digits[0], count > 1 ? "." : "", digits.substr(1),
                       exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  if (exponent < 0) return fmt::format("{}0.{:0>{}}{}", sign, "", -exponent - 1, digits);
  if (count <= exponent + 1)
    return sign + digits + std::string(static_cast<size_t>(exponent + 1 - count), '0') + ".0";
  return sign + digits.substr(0, static_cast<size_t>(exponent + 1)) + "." +
         digits.substr(static_cast<size_t>(exponent + 1));
}

void append_repr(TextBuilder& out, Heap& heap, const Value& value, int depth) {
  heap.step();
  check_depth(depth);
  switch (value.kind) {
    case ValueKind::kUndefined:
      out.append("Undefined");
      break;
    case ValueKind::kNone:
      out.append("None");
      break;
    case ValueKind::kBool:
      out.append(value.boolean ? "True" : "False");
      break;
    case ValueKind::kInteger:
      out.append(std::to_string(value.integer));
      break;
    case ValueKind::kFloat:
      out.append(float_repr(value.number));
      break;
    case ValueKind::kString:
      if (value.string->is_markup) out.append("Markup(");
      append_string_repr(out, heap, *value.string);
      if (value.string->is_markup) out.append(")");
      break;
    case ValueKind::kList:
      append_list_repr(out, heap, *value.list, depth);
      break;
    case ValueKind::kDict:
      append_dict_repr(out, heap, *value.dict, depth);
      break;
    case ValueKind::kNamespace:
      out.append("<Namespace ");
      append_dict_repr(out, heap, value.name_space->attributes, depth);
      out.append(">");
      break;
    default:
      fail(ErrorCode::kUnsupported, "printing a '{}': did you forget to call it?", type_name(value));
  }
}

Value to_string(Heap& heap, const Value& value) {
  if (value.is_string()) return value;
  TextBuilder out(heap);
  out.append(value);
  return out.finish();
}

Value to_json(Heap& heap, const Value& value, const JsonStyle& style) {
  TextBuilder out(heap);
  JsonWriter(heap, out, style).write(value, 0);
  return out.finish();
}

}  // namespace lowbit::jinja
