// What stands behind `is`.
#include "base/fail.h"
#include "text/jinja_interpreter.h"

namespace lowbit::jinja {

namespace {

using Args = const Arguments&;

template <bool (*predicate)(const Value&)>
bool plain(Interpreter&, const Value& value, Args args) {
  args.bind("the test", {});
  return predicate(value);
}

const Value& other(Args args) {
  const auto bound = args.bind("the test", {"other"});
  if (!bound[0]) fail(ErrorCode::kInvalidArgument, "the test needs an argument");
  return *bound[0];
}

template <Operator operation>
bool comparison(Interpreter& in, const Value& value, Args args) {
  return holds(in.heap(), operation, value, other(args));
}

bool is_same(Interpreter& in, const Value& value, Args args) {
  const Value& with = other(args);
  if (value.kind != with.kind) return false;
  if (value.is_list()) return value.list == with.list;
  if (value.is_dict()) return value.dict == with.dict;
  return equal(in.heap(), value, with);
}

int64_t whole(const Value& value) {
  if (value.is_undefined()) fail_undefined(value);
  if (!value.is_integral())
    fail(ErrorCode::kInvalidArgument, "the test needs an integer, found '{}'", type_name(value));
  return value.as_integral();
}

bool is_divisible(Interpreter&, const Value& value, Args args) {
  const int64_t divisor = whole(other(args));
  if (divisor == 0) fail(ErrorCode::kInvalidArgument, "division by zero");
  return divisor == -1 || whole(value) % divisor == 0;
}

template <Case which>
bool has_letter_case(Interpreter& in, const Value& value, Args args) {
  args.bind("the test", {});
  const Value text = to_string(in.heap(), value);
  in.heap().scan(8 * text.text().size());
  return has_case(*text.string, which);
}

bool is_filter(Interpreter&, const Value& value, Args) {
  return value.is_string() && find_filter(value.text());
}
bool is_test(Interpreter&, const Value& value, Args) { return value.is_string() && find_test(value.text()); }

bool is_sequence(const Value& value) {
  return value.is_undefined() || value.is_string() || value.is_dict() ||
         (value.is_list() && value.list->has_index());
}

constexpr std::pair<std::string_view, Test> kTests[] = {
    {"defined", plain<[](const Value& v) { return !v.is_undefined(); }>},
    {"undefined", plain<[](const Value& v) { return v.is_undefined(); }>},
    {"none", plain<[](const Value& v) { return v.is_none(); }>},
    {"boolean", plain<[](const Value& v) { return v.kind == ValueKind::kBool; }>},
    {"true", plain<[](const Value& v) { return v.kind == ValueKind::kBool && v.boolean; }>},
    {"false", plain<[](const Value& v) { return v.kind == ValueKind::kBool && !v.boolean; }>},
    {"integer", plain<[](const Value& v) { return v.kind == ValueKind::kInteger; }>},
    {"float", plain<[](const Value& v) { return v.is_float(); }>},
    {"number", plain<[](const Value& v) { return v.is_number(); }>},
    {"string", plain<[](const Value& v) { return v.is_string(); }>},
    {"mapping", plain<[](const Value& v) { return v.is_dict(); }>},
    {"iterable", plain<is_iterable>},
    {"sequence", plain<is_sequence>},
    {"callable", plain<[](const Value& v) {
       return v.kind == ValueKind::kMacro || v.kind == ValueKind::kFunction || v.is_undefined();
     }>},
    {"escaped", plain<[](const Value& v) { return v.is_string() && v.string->is_markup; }>},
    {"odd", plain<[](const Value& v) { return whole(v) % 2 != 0; }>},
    {"even", plain<[](const Value& v) { return whole(v) % 2 == 0; }>},
    {"divisibleby", is_divisible},
    {"sameas", is_same},
    {"lower", has_letter_case<Case::kLower>},
    {"upper", has_letter_case<Case::kUpper>},
    {"filter", is_filter},
    {"test", is_test},
    {"in", comparison<Operator::kIn>},
    {"==", comparison<Operator::kEqual>},
    {"eq", comparison<Operator::kEqual>},
    {"equalto", comparison<Operator::kEqual>},
    {"!=", comparison<Operator::kNotEqual>},
    {"ne", comparison<Operator::kNotEqual>},
    {"<", comparison<Operator::kLess>},
    {"lt", comparison<Operator::kLess>},
    {"lessthan", comparison<Operator::kLess>},
    {"<=", comparison<Operator::kLessEqual>},
    {"le", comparison<Operator::kLessEqual>},
    {">", comparison<Operator::kGreater>},
    {"gt", comparison<Operator::kGreater>},
    {"greaterthan", comparison<Operator::kGreater>},
    {">=", comparison<Operator::kGreaterEqual>},
    {"ge", comparison<Operator::kGreaterEqual>},
};

}  // namespace

Test find_test(std::string_view name) {
  for (const auto& [test_name, test] : kTests) {
    if (test_name == name) return test;
  }
  return nullptr;
}

}  // namespace lowbit::jinja
