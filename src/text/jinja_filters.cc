// Filters of single values; those of sequences are in jinja_filters_sequence.cc.
#include "base/fail.h"
#include "text/jinja_interpreter.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace lowbit::jinja {

namespace {

using Args = const Arguments&;

// Python's str(value), what most text filters begin with.
const String& text_of(Interpreter& in, const Value& value) { return *to_string(in.heap(), value).string; }

template <Case to>
Value case_filter(Interpreter& in, const Value& value, Args args) {
  args.bind("a change of case", {});
  return change_case(in.heap(), text_of(in, value), to);
}

// Unlike str.title: a word begins behind white space, - ( { [ or <.
Value title(Interpreter& in, const Value& value, Args args) {
  args.bind("title", {});
  Heap& heap = in.heap();
  const String& string = text_of(in, value);
  const std::string_view text = string.text;
  TextBuilder out(heap);
  bool is_start = true;
  for (size_t i = 0; i < text.size();) {
    const size_t next = next_code_point(text, i);
    const char32_t c = decode(text, i);
    const bool is_separator = is_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
    const Value letter = slice_text(heap, string, i, next);
    out.append(is_separator ? letter
                            : change_case(heap, *letter.string, is_start ? Case::kUpper : Case::kLower));
    is_start = is_separator;
    i = next;
  }
  return out.finish();
}

Value trim(Interpreter& in, const Value& value, Args args) {
  return strip(in.heap(), text_of(in, value), Side::kBoth,
               string_argument(args.bind("trim", {"chars"})[0], "trim"));
}

Value replace_filter(Interpreter& in, const Value& value, Args args) {
  const auto bound = args.bind("replace", {"old", "new", "count"});
  if (!bound[0] || !bound[1])
    fail(ErrorCode::kInvalidArgument, "replace needs what to replace and with what");
  const int64_t count = bound[2] && !bound[2]->is_none() ? integer_argument(bound[2], -1, "replace") : -1;
  return replace(in.heap(), text_of(in, value), text_of(in, *bound[0]), text_of(in, *bound[1]), count);
}

Value default_filter(Interpreter& in, const Value& value, Args args) {
  const auto bound = args.bind("default", {"default_value", "boolean"});
  if (!value.is_undefined() && !(bool_argument(bound[1], false) && !is_true(value))) return value;
  return bound[0] ? *bound[0] : in.heap().string("");
}

Value string_filter(Interpreter& in, const Value& value, Args args) {
  args.bind("string", {});
  return to_string(in.heap(), value);
}

Value safe(Interpreter& in, const Value& value, Args args) {
  args.bind("safe", {});
  TextBuilder out(in.heap());
  out.append(value);
  const Value result = out.finish();
  const_cast<String*>(result.string)->is_markup = true;
  return result;
}

Value escape(Interpreter& in, const Value& value, Args args) {
  args.bind("escape", {});
  return escape_html(in.heap(), text_of(in, value));
}

Value length_filter(Interpreter&, const Value& value, Args args) {
  args.bind("length", {});
  return Value::of(length(value));
}

// Python's int(text, base) and float(text): surrounding space, a sign, single underscores between digits.
bool parse_python_number(std::string_view text, std::string& cleaned) {
  while (!text.empty() && is_space(static_cast<unsigned char>(text.front()))) text.remove_prefix(1);
  while (!text.empty() && is_space(static_cast<unsigned char>(text.back()))) text.remove_suffix(1);
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      cleaned += text[i];
    } else if (i == 0 || i + 1 == text.size() || !std::isxdigit(static_cast<unsigned char>(text[i - 1])) ||
               !std::isxdigit(static_cast<unsigned char>(text[i + 1]))) {
      return false;
    }
  }
  return !cleaned.empty() && cleaned.size() < 400;
}

bool parse_float(std::string_view text, double& value) {
  std::string cleaned;
  if (!parse_python_number(text, cleaned)) return false;
  const std::string_view body =
      std::string_view(cleaned).substr(cleaned[0] == '-' || cleaned[0] == '+' ? 1 : 0);
  std::string lower(body);
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  const bool is_word = lower == "inf" || lower == "infinity" || lower == "nan";
  if (!is_word && (body.find_first_not_of("0123456789.eE+-") != body.npos || body.empty())) return false;
  char* end = nullptr;
  value = std::strtod(cleaned.c_str(), &end);
  return end == cleaned.c_str() + cleaned.size();
}

enum class Parsed { kYes, kNo, kTooLarge };

Parsed parse_integer(std::string_view text, int base, int64_t& value) {
  std::string cleaned;
  if (!parse_python_number(text, cleaned)) return Parsed::kNo;
  std::string digits = cleaned.substr(cleaned[0] == '-' || cleaned[0] == '+' ? 1 : 0);
  if (digits.size() > 2 && digits[0] == '0') {
    const char kind = static_cast<char>(std::tolower(static_cast<unsigned char>(digits[1])));
    if ((kind == 'x' && base == 16) || (kind == 'o' && base == 8) || (kind == 'b' && base == 2))
      digits.erase(0, 2);
  }
  if (digits.empty() || !std::isalnum(static_cast<unsigned char>(digits[0]))) return Parsed::kNo;
  if (cleaned[0] == '-') digits.insert(digits.begin(), '-');
  errno = 0;
  char* end = nullptr;
  value = std::strtoll(digits.c_str(), &end, base);
  if (end != digits.c_str() + digits.size()) return Parsed::kNo;
  return errno == ERANGE ? Parsed::kTooLarge : Parsed::kYes;
}

[[noreturn]] void fail_too_large() {
  fail(ErrorCode::kInvalidArgument, "an integer of more than 64 bits: lowbit does not compute with those");
}

Value int_filter(Interpreter&, const Value& value, Args args) {
  const auto bound = args.bind("int", {"default", "base"});
  const int64_t base = integer_argument(bound[1], 10, "int");
  if (base < 2 || base > 36) fail(ErrorCode::kUnsupported, "int: the base {}", base);
  const Value otherwise = bound[0] ? *bound[0] : Value::of(int64_t{0});
  if (value.is_undefined()) fail_undefined(value);
  if (value.is_integral()) return Value::of(value.as_integral());
  double number = 0;
  if (value.is_float()) {
    number = value.number;
  } else if (value.is_string()) {
    int64_t integer = 0;
    const Parsed parsed = parse_integer(value.text(), static_cast<int>(base), integer);
    if (parsed == Parsed::kTooLarge) fail_too_large();
    if (parsed == Parsed::kYes) return Value::of(integer);
    if (!parse_float(value.text(), number)) return otherwise;
  } else {
    return otherwise;
  }
  if (!std::isfinite(number)) return otherwise;
  if (std::abs(number) >= 9.2e18) fail_too_large();
  return Value::of(static_cast<int64_t>(number));
}

Value float_filter(Interpreter&, const Value& value, Args args) {
  const auto bound = args.bind("float", {"default"});
  if (value.is_undefined()) fail_undefined(value);
  if (value.is_number()) return Value::of(value.as_double());
  double number = 0;
  if (value.is_string() && parse_float(value.text(), number)) return Value::of(number);
  return bound[0] ? *bound[0] : Value::of(0.0);
}

Value abs_filter(Interpreter&, const Value& value, Args args) {
  args.bind("abs", {});
  if (value.is_float()) return Value::of(std::abs(value.number));
  const Value negative = negate(value);
  return negative.integer < 0 ? negate(negative) : negative;
}

Value round_filter(Interpreter&, const Value& value, Args args) {
  const auto bound = args.bind("round", {"precision", "method"});
  const int64_t precision = integer_argument(bound[0], 0, "round");
  const String* method_text = string_argument(bound[1], "round");
  const std::string method = method_text ? method_text->text : "common";
  if (value.is_undefined()) fail_undefined(value);
  if (!value.is_number())
    fail(ErrorCode::kInvalidArgument, "round needs a number, found '{}'", type_name(value));
  if (precision < 0 || precision > 300) fail(ErrorCode::kUnsupported, "round: the precision {}", precision);
  if (method == "common") {
    if (value.is_integral()) return Value::of(value.as_integral());
    if (!std::isfinite(value.number)) return value;
    // printf rounds the exact decimal expansion half to even, as Python's round does
    return Value::of(
        std::strtod(fmt::format("{:.{}f}", value.number, static_cast<int>(precision)).c_str(), nullptr));
  }
  if (method != "ceil" && method != "floor") {
    fail(ErrorCode::kInvalidArgument, "round: the method must be common, ceil or floor, found '{}'",
         method.substr(0, 40));
  }
  const double scale = std::pow(10.0, static_cast<double>(precision)), scaled = value.as_double() * scale;
  return Value::of((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
}

Value tojson(Interpreter& in, const Value& value, Args args) {
  const auto bound = args.bind("tojson", {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ensure_ascii = bool_argument(bound[0], false);
  style.sort_keys = bool_argument(bound[3], false);
  if (bound[1] && !bound[1]->is_none()) {
    style.is_indented = true;
    style.item_separator.assign(1, ',');
    if (bound[1]->is_string()) {
      style.indent = bound[1]->text();
    } else {
      style.indent.assign(
          static_cast<size_t>(std::clamp<int64_t>(integer_argument(bound[1], 0, "tojson"), 0, 1000)), ' ');
    }
  }
  if (bound[2] && !bound[2]->is_none()) {
    const std::vector<Value> parts = elements(in.heap(), *bound[2]);
    if (parts.size() != 2) fail(ErrorCode::kInvalidArgument, "tojson: separators are two strings");
    style.item_separator = text_of(in, parts[0]).text;
    style.key_separator = text_of(in, parts[1]).text;
  }
  return to_json(in.heap(), value, style);
}

Value indent(Interpreter& in, const Value& value, Args args) {
  const auto bound = args.bind("indent", {"width", "first", "blank"});
  Heap& heap = in.heap();
  if (value.is_undefined()) fail_undefined(value);
  if (!value.is_string())
    fail(ErrorCode::kInvalidArgument, "indent needs a string, found '{}'", type_name(value));
  Value indention;
  if (bound[0] && bound[0]->is_string()) {
    indention = *bound[0];
  } else {
    const int64_t width = integer_argument(bound[0], 4, "indent");
    if (width > 10'000) fail(ErrorCode::kInvalidArgument, "indent: a width of {}", width);
    indention = heap.string(std::string(static_cast<size_t>(std::max<int64_t>(width, 0)), ' '));
  }
  // Jinja adds a line break before it splits, so that the text's own last one survives.
  TextBuilder closed(heap), out(heap);
  closed.append(value);
  closed.append("\n");
  const Value lines = splitlines(heap, *closed.finish().string, false);
  if (bool_argument(bound[1], false)) out.append(indention);
  for (size_t i = 0; i < lines.list->items.size(); ++i) {
    const Value& line = lines.list->items[i];
    if (i > 0) {
      out.append("\n");
      if (bool_argument(bound[2], false) || !line.text().empty()) out.append(indention);
    }
    out.append(line);
  }
  return out.finish();
}

Value format_filter(Interpreter& in, const Value& value, Args args) {
  if (!args.keywords.empty() && !args.positional.empty()) {
    fail(ErrorCode::kInvalidArgument, "format takes positional or named arguments, not both");
  }
  Heap& heap = in.heap();
  if (!args.keywords.empty()) {
    Dict* dict = heap.make<Dict>();
    for (const auto& [name, argument] : args.keywords) heap.set(*dict, heap.string(name), argument);
    return format_percent(heap, text_of(in, value), Value::of(dict));
  }
  List* tuple = heap.list(ListKind::kTuple);
  for (const Value& argument : args.positional) heap.append(*tuple, argument);
  return format_percent(heap, text_of(in, value), Value::of(tuple));
}

Value wordcount(Interpreter& in, const Value& value, Args args) {
  args.bind("wordcount", {});
  const String& string = text_of(in, value);
  in.heap().scan(8 * string.text.size());
  int64_t count = 0;
  bool in_word = false;
  for (size_t i = 0; i < string.text.size(); i = next_code_point(string.text, i)) {
    const char32_t c = decode(string.text, i);
    const bool is_word = is_alpha(c) || is_digit(c) || c == '_';
    count += is_word && !in_word;
    in_word = is_word;
  }
  return Value::of(count);
}

Value center(Interpreter& in, const Value& value, Args args) {
  const auto bound = args.bind("center", {"width"});
  Arguments width;
  width.positional.push_back(Value::of(integer_argument(bound[0], 80, "center")));
  return find_string_method("center")(in, to_string(in.heap(), value), width);
}

Value urlencode(Interpreter& in, const Value& value, Args args) {
  args.bind("urlencode", {});
  if (!value.is_string() && !value.is_number())
    fail(ErrorCode::kUnsupported, "urlencode of a '{}'", type_name(value));
  TextBuilder out(in.heap());
  for (char c : text_of(in, value).text) {
    if (std::isalnum(static_cast<unsigned char>(c)) ||
        std::string_view("_.-~/").find(c) != std::string_view::npos) {
      out.append(std::string_view(&c, 1));
    } else {
      out.append(fmt::format("%{:02X}", static_cast<unsigned char>(c)));
    }
  }
  return out.finish();
}

constexpr std::pair<std::string_view, Filter> kFilters[] = {
    {"abs", abs_filter},
    {"capitalize", case_filter<Case::kCapitalize>},
    {"center", center},
    {"count", length_filter},
    {"d", default_filter},
    {"default", default_filter},
    {"e", escape},
    {"escape", escape},
    {"float", float_filter},
    {"format", format_filter},
    {"indent", indent},
    {"int", int_filter},
    {"length", length_filter},
    {"lower", case_filter<Case::kLower>},
    {"replace", replace_filter},
    {"round", round_filter},
    {"safe", safe},
    {"string", string_filter},
    {"title", title},
    {"tojson", tojson},
    {"trim", trim},
    {"upper", case_filter<Case::kUpper>},
    {"urlencode", urlencode},
    {"wordcount", wordcount},
};

}  // namespace

Filter find_filter(std::string_view name) {
  for (const auto& [filter_name, filter] : kFilters) {
    if (filter_name == name) return filter;
  }
  return find_sequence_filter(name);
}

}  // namespace lowbit::jinja
