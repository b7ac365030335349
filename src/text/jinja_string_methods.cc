// Methods of str.
#include "base/fail.h"
#include "text/jinja_interpreter.h"

#include <algorithm>

namespace lowbit::jinja {

namespace {

using Self = const Value&;
using Args = const Arguments&;

const String& need(const Value* argument, std::string_view callee) {
  const String* string = string_argument(argument, callee);
  if (!string) fail(ErrorCode::kInvalidArgument, "{} needs a string", callee);
  return *string;
}

template <Side side>
Value strip_method(Interpreter& in, Self self, Args args) {
  return strip(in.heap(), *self.string, side, string_argument(args.bind("strip", {"chars"})[0], "strip"));
}

template <Case to>
Value case_method(Interpreter& in, Self self, Args args) {
  args.bind("a change of case", {});
  return change_case(in.heap(), *self.string, to);
}

Value split_method(Interpreter& in, Self self, Args args) {
  const auto bound = args.bind("split", {"sep", "maxsplit"});
  return split(in.heap(), *self.string, string_argument(bound[0], "split"),
               integer_argument(bound[1], -1, "split"));
}

Value rsplit_method(Interpreter& in, Self self, Args args) {
  const auto bound = args.bind("rsplit", {"sep", "maxsplit"});
  return rsplit(in.heap(), *self.string, string_argument(bound[0], "rsplit"),
                integer_argument(bound[1], -1, "rsplit"));
}

Value splitlines_method(Interpreter& in, Self self, Args args) {
  return splitlines(in.heap(), *self.string, bool_argument(args.bind("splitlines", {"keepends"})[0], false));
}

Value replace_method(Interpreter& in, Self self, Args args) {
  const auto bound = args.bind("replace", {"old", "new", "count"});
  return replace(in.heap(), *self.string, need(bound[0], "replace"), need(bound[1], "replace"),
                 integer_argument(bound[2], -1, "replace"));
}

// The window [start, end) of a method's optional arguments, in bytes.
std::pair<size_t, size_t> window(Heap& heap, const String& string, const Value* start, const Value* end) {
  const auto position = [&](const Value* argument, int64_t otherwise) {
    if (!argument || argument->is_none()) return otherwise;
    int64_t at = integer_argument(argument, 0, "a position");
    if (at < 0) at = std::max<int64_t>(at + string.length, 0);
    return std::min(at, string.length);
  };
  heap.scan(string.text.size());
  return {byte_offset(string, position(start, 0)), byte_offset(string, position(end, string.length))};
}

template <Side side>
Value affix_method(Interpreter& in, Self self, Args args) {
  const char* name = side == Side::kLeft ? "startswith" : "endswith";
  const auto bound = args.bind(name, {"affix", "start", "end"});
  const auto [begin, end] = window(in.heap(), *self.string, bound[1], bound[2]);
  if (begin > end) return Value::of(false);
  const std::string_view text = self.text().substr(begin, end - begin);
  const auto matches = [&](const Value& affix) {
    const std::string_view what = need(&affix, name).text;
    in.heap().scan(what.size());
    if (what.size() > text.size()) return false;
    return (side == Side::kLeft ? text.substr(0, what.size()) : text.substr(text.size() - what.size())) ==
           what;
  };
  if (!bound[0]) fail(ErrorCode::kInvalidArgument, "{} needs a string", name);
  if (!bound[0]->is_list() || bound[0]->list->list_kind != ListKind::kTuple)
    return Value::of(matches(*bound[0]));
  return Value::of(std::any_of(bound[0]->list->items.begin(), bound[0]->list->items.end(), matches));
}

enum class Search { kFind, kFindLast, kIndex, kIndexLast, kCount };

template <Search search>
Value search_method(Interpreter& in, Self self, Args args) {
  const auto bound = args.bind("find", {"sub", "start", "end"});
  const std::string_view what = need(bound[0], "find").text;
  const auto [begin, end] = window(in.heap(), *self.string, bound[1], bound[2]);
  const bool is_index = search == Search::kIndex || search == Search::kIndexLast;
  const std::string_view text = begin <= end ? self.text().substr(begin, end - begin) : std::string_view();
  if (search == Search::kCount) {
    if (begin > end) return Value::of(int64_t{0});
    if (what.empty()) return Value::of(count_code_points(text) + 1);
    int64_t count = 0;
    for (size_t at = 0; (at = find_text(in.heap(), text, what, at)) != text.npos; at += what.size()) ++count;
    return Value::of(count);
  }
  const bool is_last = search == Search::kFindLast || search == Search::kIndexLast;
  const size_t at = begin > end ? text.npos
                    : is_last   ? rfind_text(in.heap(), text, what)
                                : find_text(in.heap(), text, what, 0);
  if (at == text.npos && is_index) fail(ErrorCode::kInvalidArgument, "index: the text was not found");
  return Value::of(at == text.npos ? int64_t{-1} : count_code_points(self.text().substr(0, begin + at)));
}

Value join_method(Interpreter& in, Self self, Args args) {
  const auto bound = args.bind("join", {"iterable"});
  if (!bound[0]) fail(ErrorCode::kInvalidArgument, "join needs a list of strings");
  TextBuilder out(in.heap());
  bool is_first = true;
  for (const Value& part : elements(in.heap(), *bound[0])) {
    if (!is_first) out.append(*self.string);
    is_first = false;
    out.append(need(&part, "join"));
  }
  return out.finish();
}

Value format_method(Interpreter& in, Self self, Args args) {
  return format_braces(in.heap(), *self.string, args);
}

template <bool (*is_member)(char32_t)>
Value all_method(Interpreter& in, Self self, Args args) {
  args.bind("a test of characters", {});
  in.heap().scan(8 * self.text().size());
  return Value::of(all_of(*self.string, is_member));
}

bool is_alphanumeric(char32_t c) { return is_alpha(c) || is_digit(c); }

template <Case which>
Value has_case_method(Interpreter& in, Self self, Args args) {
  args.bind("a test of case", {});
  in.heap().scan(8 * self.text().size());
  return Value::of(has_case(*self.string, which));
}

template <Side side>
Value remove_affix_method(Interpreter& in, Self self, Args args) {
  const std::string& affix = need(args.bind("removeprefix", {"affix"})[0], "removeprefix").text;
  const std::string_view text = self.text();
  if (affix.empty() || affix.size() > text.size()) return self;
  if (side == Side::kLeft && text.substr(0, affix.size()) == affix) {
    return slice_text(in.heap(), *self.string, affix.size(), text.size());
  }
  if (side == Side::kRight && text.substr(text.size() - affix.size()) == affix) {
    return slice_text(in.heap(), *self.string, 0, text.size() - affix.size());
  }
  return self;
}

template <Side side>
Value partition_method(Interpreter& in, Self self, Args args) {
  const String& separator = need(args.bind("partition", {"sep"})[0], "partition");
  if (separator.text.empty()) fail(ErrorCode::kInvalidArgument, "partition: the separator is empty");
  Heap& heap = in.heap();
  const std::string_view text = self.text();
  const size_t at =
      side == Side::kLeft ? find_text(heap, text, separator.text, 0) : rfind_text(heap, text, separator.text);
  const Value empty = heap.string("");
  if (at == text.npos)
    return side == Side::kLeft ? heap.tuple({self, empty, empty}) : heap.tuple({empty, empty, self});
  const size_t after = at + separator.text.size();
  return heap.tuple({slice_text(heap, *self.string, 0, at), slice_text(heap, *self.string, at, after),
                     slice_text(heap, *self.string, after, text.size())});
}

template <Side filled>  // where the filling goes
Value justify_method(Interpreter& in, Self self, Args args) {
  const auto bound = args.bind("justify", {"width", "fillchar"});
  const int64_t missing = integer_argument(bound[0], 0, "justify") - self.string->length;
  const Value fill = bound[1] ? *bound[1] : in.heap().string(" ");
  if (need(&fill, "justify").length != 1)
    fail(ErrorCode::kInvalidArgument, "the fill character must be one character");
  // Python's center puts the odd blank to the left when the width is odd.
  const int64_t width = missing + self.string->length;
  int64_t left = filled == Side::kLeft ? missing : 0;
  if (filled == Side::kBoth) left = missing / 2 + (missing & width & 1);
  TextBuilder out(in.heap());
  for (int64_t i = 0; i < missing; ++i) {
    in.heap().step();
    if (i == left) out.append(*self.string);
    out.append(*fill.string);
  }
  if (left >= missing || missing <= 0) out.append(*self.string);
  return out.finish();
}

Value zfill_method(Interpreter& in, Self self, Args args) {
  const int64_t width = integer_argument(args.bind("zfill", {"width"})[0], 0, "zfill");
  const std::string_view text = self.text();
  const size_t sign = !text.empty() && (text[0] == '-' || text[0] == '+') ? 1 : 0;
  TextBuilder out(in.heap());
  out.append(*self.string, 0, sign);
  for (int64_t i = self.string->length; i < width; ++i) {
    in.heap().step();
    out.append("0");
  }
  out.append(*self.string, sign, text.size());
  return out.finish();
}

struct Method {
  std::string_view name;
  Function::Body body;
};

constexpr Method kMethods[] = {
    {"strip", strip_method<Side::kBoth>},
    {"lstrip", strip_method<Side::kLeft>},
    {"rstrip", strip_method<Side::kRight>},
    {"split", split_method},
    {"rsplit", rsplit_method},
    {"splitlines", splitlines_method},
    {"replace", replace_method},
    {"startswith", affix_method<Side::kLeft>},
    {"endswith", affix_method<Side::kRight>},
    {"upper", case_method<Case::kUpper>},
    {"lower", case_method<Case::kLower>},
    {"title", case_method<Case::kTitle>},
    {"capitalize", case_method<Case::kCapitalize>},
    {"swapcase", case_method<Case::kSwap>},
    {"join", join_method},
    {"format", format_method},
    {"find", search_method<Search::kFind>},
    {"rfind", search_method<Search::kFindLast>},
    {"index", search_method<Search::kIndex>},
    {"rindex", search_method<Search::kIndexLast>},
    {"count", search_method<Search::kCount>},
    {"isdigit", all_method<is_digit>},
    {"isnumeric", all_method<is_digit>},
    {"isdecimal", all_method<is_digit>},
    {"isalpha", all_method<is_alpha>},
    {"isalnum", all_method<is_alphanumeric>},
    {"isspace", all_method<is_space>},
    {"isupper", has_case_method<Case::kUpper>},
    {"islower", has_case_method<Case::kLower>},
    {"removeprefix", remove_affix_method<Side::kLeft>},
    {"removesuffix", remove_affix_method<Side::kRight>},
    {"partition", partition_method<Side::kLeft>},
    {"rpartition", partition_method<Side::kRight>},
    {"ljust", justify_method<Side::kRight>},
    {"rjust", justify_method<Side::kLeft>},
    {"center", justify_method<Side::kBoth>},
    {"zfill", zfill_method},
};

Value unsupported_method(Interpreter&, Self, Args) {
  fail(ErrorCode::kUnsupported, "this method of str is not known here");
}

}  // namespace

Function::Body find_string_method(std::string_view name) {
  for (const Method& method : kMethods) {
    if (method.name == name) return method.body;
  }
  for (std::string_view other : {"casefold", "encode", "expandtabs", "format_map", "isascii", "isidentifier",
                                 "isprintable", "istitle", "translate"}) {
    if (name == other) return unsupported_method;
  }
  return nullptr;
}

}  // namespace lowbit::jinja
