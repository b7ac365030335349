// Python's two ways to format: "%d" % x and "{}".format(x).
#include "base/fail.h"
#include "text/jinja_interpreter.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fmt/format.h>

namespace lowbit::jinja {

namespace {

constexpr int64_t kMaxWidth = 10'000;

struct Spec {
  std::string fill = " ";
  char align = '\0';  // < > ^ =
  char sign = '-';
  bool is_alternate = false, has_comma = false;
  int64_t width = 0, precision = -1;
  char type = '\0';
};

[[noreturn]] void fail_format(const char* what) { fail(ErrorCode::kInvalidArgument, "format: {}", what); }

int64_t read_count(std::string_view text, size_t& at, int64_t otherwise) {
  int64_t value = otherwise;
  const auto result = std::from_chars(text.data() + at, text.data() + text.size(), value);
  if (result.ec == std::errc::result_out_of_range || value > kMaxWidth) fail_format("a width is too large");
  at = static_cast<size_t>(result.ptr - text.data());
  return value;
}

Spec parse_spec(std::string_view text) {
  Spec spec;
  size_t at = 0;
  const auto is_align = [](char c) { return c == '<' || c == '>' || c == '^' || c == '='; };
  if (!text.empty()) {
    const size_t next = next_code_point(text, 0);
    if (next < text.size() && is_align(text[next])) {
      spec.fill = std::string(text.substr(0, next));
      spec.align = text[next];
      at = next + 1;
    } else if (is_align(text[0])) {
      spec.align = text[at++];
    }
  }
  const auto take = [&](char c) { return at < text.size() && text[at] == c ? (++at, true) : false; };
  for (char sign : {'+', '-', ' '}) {
    if (take(sign)) spec.sign = sign;
  }
  spec.is_alternate = take('#');
  if (take('0') && !spec.align) {
    spec.fill.assign(1, '0');
    spec.align = '=';
  }
  spec.width = read_count(text, at, 0);
  spec.has_comma = take(',');
  if (take('.')) {
    spec.precision = read_count(text, at, -1);
    if (spec.precision < 0) fail_format("a precision is missing");
  }
  if (at < text.size()) spec.type = text[at++];
  if (at != text.size()) fail(ErrorCode::kUnsupported, "the format specification '{}'", text.substr(0, 40));
  return spec;
}

void pad(TextBuilder& out, const Spec& spec, char default_align, std::string_view sign, const Value& body) {
  const int64_t missing =
      std::max<int64_t>(0, spec.width - body.string->length - static_cast<int64_t>(sign.size()));
  const char align = spec.align ? spec.align : default_align;
  const int64_t left = align == '>' ? missing : (align == '^' ? missing / 2 : 0);
  for (int64_t i = 0; i < left; ++i) out.append(spec.fill);
  out.append(sign);
  if (align == '=') {
    for (int64_t i = 0; i < missing; ++i) out.append(spec.fill);
  }
  out.append(*body.string);
  if (align != '=') {
    for (int64_t i = left; i < missing; ++i) out.append(spec.fill);
  }
}

std::string with_commas(std::string digits) {
  const size_t whole = digits.find_first_not_of("0123456789");
  size_t at = whole == digits.npos ? digits.size() : whole;
  while (at > 3) digits.insert(at -= 3, 1, ',');
  return digits;
}

std::string general(double value, int64_t precision, bool keeps_zeros) {
  return fmt::format(fmt::runtime(keeps_zeros ? "{:#.{}g}" : "{:.{}g}"), value, static_cast<int>(precision));
}

std::string number_body(const Value& value, const Spec& spec) {
  const double magnitude = std::abs(value.as_double());
  const int precision = static_cast<int>(spec.precision < 0 ? 6 : spec.precision);
  switch (spec.type) {
    case 'f':
    case 'F':
      return fmt::format("{:.{}f}", magnitude, precision);
    case 'e':
      return fmt::format("{:.{}e}", magnitude, precision);
    case 'E':
      return fmt::format("{:.{}E}", magnitude, precision);
    case 'g':
      return general(magnitude, std::max(precision, 1), spec.is_alternate);
    case '%':
      return fmt::format("{:.{}f}%", magnitude * 100, precision);
    default:
      break;
  }
  if (value.is_float()) {
    if (spec.type != '\0') fail(ErrorCode::kUnsupported, "the format type '{}' for a float", spec.type);
    return spec.precision < 0 ? float_repr(magnitude) : general(magnitude, std::max(precision, 1), false);
  }
  const int64_t integer = value.as_integral();
  const uint64_t absolute = integer < 0 ? 0 - static_cast<uint64_t>(integer) : static_cast<uint64_t>(integer);
  switch (spec.type) {
    case '\0':
    case 'd':
    case 'i':
    case 'u':
      return std::to_string(absolute);
    case 'x':
      return fmt::format("{}{:x}", spec.is_alternate ? "0x" : "", absolute);
    case 'X':
      return fmt::format("{}{:X}", spec.is_alternate ? "0X" : "", absolute);
    case 'o':
      return fmt::format("{}{:o}", spec.is_alternate ? "0o" : "", absolute);
    case 'b':
      return fmt::format("{}{:b}", spec.is_alternate ? "0b" : "", absolute);
    default:
      fail(ErrorCode::kUnsupported, "the format type '{}' for an integer", spec.type);
  }
}

void append_number(Heap& heap, TextBuilder& out, const Value& value, const Spec& spec) {
  std::string body = number_body(value, spec);
  if (spec.has_comma) body = with_commas(body);
  const bool is_negative = value.is_float() ? std::signbit(value.number) : value.as_integral() < 0;
  const std::string sign = is_negative ? "-" : (spec.sign == '-' ? "" : std::string(1, spec.sign));
  pad(out, spec, '>', sign, heap.string(body));
}

void append_text(Heap& heap, TextBuilder& out, const Value& text, const Spec& spec, char default_align) {
  Value body = text;
  if (spec.precision >= 0)
    body = slice_text(heap, *text.string, 0, byte_offset(*text.string, spec.precision));
  pad(out, spec, default_align, "", body);
}

Value repr(Heap& heap, const Value& value) {
  TextBuilder out(heap);
  append_repr(out, heap, value);
  return out.finish();
}

void append_formatted(Heap& heap, TextBuilder& out, const Value& value, char conversion,
                      std::string_view spec_text) {
  Value converted = value;
  if (conversion == 's') converted = to_string(heap, value);
  if (conversion == 'r') converted = repr(heap, value);
  if (spec_text.empty()) return out.append(converted);
  const Spec spec = parse_spec(spec_text);
  if (converted.is_string()) {
    if (spec.type != '\0' && spec.type != 's') fail_format("a number was expected, found a string");
    return append_text(heap, out, converted, spec, '<');
  }
  if (converted.kind == ValueKind::kBool && spec.type == '\0') {
    // Python's bool formats as an int when there is a specification
    return append_number(heap, out, Value::of(converted.as_integral()), spec);
  }
  if (!converted.is_number()) {
    fail(ErrorCode::kInvalidArgument, "format: a '{}' takes no format specification", type_name(converted));
  }
  append_number(heap, out, converted, spec);
}

}  // namespace

Value format_braces(Heap& heap, const String& format, const Arguments& arguments) {
  TextBuilder out(heap);
  const std::string_view text = format.text;
  size_t next_automatic = 0, plain = 0;
  for (size_t i = 0; i < text.size();) {
    if (text[i] != '{' && text[i] != '}') {
      ++i;
      continue;
    }
    heap.step();
    out.append(format, plain, i);
    if (i + 1 < text.size() && text[i + 1] == text[i]) {
      out.append(format, i, i + 1);
      plain = i += 2;
      continue;
    }
    const size_t end = text.find('}', i);
    if (text[i] == '}' || end == text.npos) fail_format("a single brace");
    std::string_view field = text.substr(i + 1, end - i - 1);
    if (field.find('{') != field.npos) fail(ErrorCode::kUnsupported, "format: a field inside a field");
    std::string_view spec;
    if (const size_t colon = field.find(':'); colon != field.npos) {
      spec = field.substr(colon + 1);
      field = field.substr(0, colon);
    }
    char conversion = '\0';
    if (const size_t mark = field.find('!'); mark != field.npos) {
      if (mark + 2 != field.size() || (field[mark + 1] != 's' && field[mark + 1] != 'r'))
        fail_format("a bad conversion");
      conversion = field[mark + 1];
      field = field.substr(0, mark);
    }
    const Value* value = nullptr;
    if (field.empty() ||
        std::all_of(field.begin(), field.end(), [](char c) { return c >= '0' && c <= '9'; })) {
      size_t at = 0;
      const size_t index = field.empty() ? next_automatic++ : static_cast<size_t>(read_count(field, at, 0));
      if (index < arguments.positional.size()) value = &arguments.positional[index];
    } else {
      if (field.find_first_of(".[") != field.npos)
        fail(ErrorCode::kUnsupported, "format: an attribute in a field");
      for (const auto& [name, argument] : arguments.keywords) {
        if (name == field) value = &argument;
      }
    }
    if (!value)
      fail(ErrorCode::kInvalidArgument, "format: there is no argument for '{{{}}}'", field.substr(0, 60));
    append_formatted(heap, out, *value, conversion, spec);
    plain = i = end + 1;
  }
  out.append(format, plain, text.size());
  return out.finish();
}

Value format_percent(Heap& heap, const String& format, const Value& arguments) {
  TextBuilder out(heap);
  const std::string_view text = format.text;
  const bool is_tuple = arguments.is_list() && arguments.list->list_kind == ListKind::kTuple;
  size_t used = 0, plain = 0;
  bool uses_names = false;
  const auto next_argument = [&]() -> Value {
    const size_t count = is_tuple ? arguments.list->items.size() : 1;
    if (used >= count) fail_format("not enough arguments for the format string");
    return is_tuple ? arguments.list->items[used++] : (++used, arguments);
  };
  for (size_t i = text.find('%'); i != text.npos; i = text.find('%', i)) {
    heap.step();
    out.append(format, plain, i);
    ++i;
    Value value;
    bool has_value = false;
    if (i < text.size() && text[i] == '(') {
      const size_t end = text.find(')', i);
      if (end == text.npos || !arguments.is_dict()) fail_format("a named field needs a dict");
      const Value* found = find(heap, *arguments.dict, text.substr(i + 1, end - i - 1));
      if (!found) fail_format("a named field is missing in the dict");
      value = *found;
      has_value = uses_names = true;
      i = end + 1;
    }
    Spec spec;
    for (; i < text.size() && std::string_view("-+ #0").find(text[i]) != std::string_view::npos; ++i) {
      if (text[i] == '-') spec.align = '<';
      if (text[i] == '+' || (text[i] == ' ' && spec.sign != '+')) spec.sign = text[i];
      if (text[i] == '#') spec.is_alternate = true;
      if (text[i] == '0' && spec.align != '<') {
        spec.fill.assign(1, '0');
        spec.align = '=';
      }
    }
    if (i < text.size() && text[i] == '*') fail(ErrorCode::kUnsupported, "'*' in a format string");
    spec.width = read_count(text, i, 0);
    if (i < text.size() && text[i] == '.') {
      ++i;
      spec.precision = read_count(text, i, 0);
    }
    if (i >= text.size()) fail_format("the format string ends inside a field");
    spec.type = text[i++];
    plain = i;
    if (spec.type == '%') {
      out.append("%");
      continue;
    }
    if (!has_value) value = next_argument();
    if (spec.type == 's' || spec.type == 'r') {
      if (spec.align == '=') spec.align = '>', spec.fill.assign(1, ' ');
      append_text(heap, out, spec.type == 's' ? to_string(heap, value) : repr(heap, value), spec, '>');
      continue;
    }
    if (value.is_undefined()) fail_undefined(value);
    if (!value.is_number()) fail_format("a number was expected");
    if (spec.type == 'd' || spec.type == 'i' || spec.type == 'u') {
      spec.type = 'd';
      if (value.is_float()) {
        if (!(std::abs(value.number) < 9e18)) fail_format("a number is too large");
        value = Value::of(static_cast<int64_t>(value.number));
      }
    }
    append_number(heap, out, value, spec);
  }
  out.append(format, plain, text.size());
  if (is_tuple && used < arguments.list->items.size()) fail_format("not all arguments were used");
  if (!is_tuple && used == 0 && !uses_names && !arguments.is_dict() && !arguments.is_list()) {
    fail_format("not all arguments were used");
  }
  return out.finish();
}

}  // namespace lowbit::jinja
