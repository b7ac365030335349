// Python's arithmetic and comparisons. Integers have 64 bits here; what does not fit is an error, never a
// wrong number.
#include "base/fail.h"
#include "text/jinja_interpreter.h"

#include <cmath>

namespace lowbit::jinja {

namespace {

const char* symbol(Operator operation) {
  static const char* const kSymbols[] = {
      "+", "-", "*", "/", "//", "%", "**", "==", "!=", "<", "<=", ">", ">=", "in", "not in"};
  return kSymbols[static_cast<size_t>(operation)];
}

[[noreturn]] void fail_operands(Operator operation, const Value& left, const Value& right) {
  if (left.is_undefined()) fail_undefined(left);
  if (right.is_undefined()) fail_undefined(right);
  fail(ErrorCode::kInvalidArgument, "'{}' does not work between '{}' and '{}'", symbol(operation),
       type_name(left), type_name(right));
}

[[noreturn]] void fail_overflow() {
  fail(ErrorCode::kInvalidArgument, "an integer of more than 64 bits: lowbit does not compute with those");
}

[[noreturn]] void fail_zero() { fail(ErrorCode::kInvalidArgument, "division by zero"); }

Value integer_power(int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) fail_zero();
    return Value::of(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  int64_t result = 1;
  while (exponent > 0) {
    if ((exponent & 1) && __builtin_mul_overflow(result, base, &result)) fail_overflow();
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) fail_overflow();
  }
  return Value::of(result);
}

Value integer_operation(Operator operation, int64_t a, int64_t b) {
  int64_t result = 0;
  switch (operation) {
    case Operator::kAdd:
      if (__builtin_add_overflow(a, b, &result)) fail_overflow();
      return Value::of(result);
    case Operator::kSubtract:
      if (__builtin_sub_overflow(a, b, &result)) fail_overflow();
      return Value::of(result);
    case Operator::kMultiply:
      if (__builtin_mul_overflow(a, b, &result)) fail_overflow();
      return Value::of(result);
    case Operator::kDivide:
      if (b == 0) fail_zero();
      return Value::of(static_cast<double>(a) / static_cast<double>(b));
    case Operator::kFloorDivide:
    case Operator::kModulo: {
      if (b == 0) fail_zero();
      if (b == -1) {  // INT64_MIN / -1 does not fit
        if (operation == Operator::kModulo) return Value::of(int64_t{0});
        if (__builtin_sub_overflow(int64_t{0}, a, &result)) fail_overflow();
        return Value::of(result);
      }
      const bool rounds_down = a % b != 0 && ((a < 0) != (b < 0));  // towards minus infinity, as Python
      return Value::of(operation == Operator::kModulo ? a % b + (rounds_down ? b : 0)
                                                      : a / b - (rounds_down ? 1 : 0));
    }
    default:
      return integer_power(a, b);
  }
}

Value float_operation(Operator operation, double a, double b) {
  switch (operation) {
    case Operator::kAdd:
      return Value::of(a + b);
    case Operator::kSubtract:
      return Value::of(a - b);
    case Operator::kMultiply:
      return Value::of(a * b);
    case Operator::kDivide:
      if (b == 0) fail_zero();
      return Value::of(a / b);
    case Operator::kFloorDivide:
    case Operator::kModulo: {
      if (b == 0) fail_zero();
      double remainder = std::fmod(a, b);
      double quotient = (a - remainder) / b;
      if (remainder != 0 && ((b < 0) != (remainder < 0))) {
        remainder += b;
        quotient -= 1;
      } else if (remainder == 0) {
        remainder = std::copysign(0.0, b);
      }
      if (operation == Operator::kModulo) return Value::of(remainder);
      if (quotient == 0) return Value::of(std::copysign(0.0, a / b));
      const double floored = std::floor(quotient);
      return Value::of(quotient - floored > 0.5 ? floored + 1 : floored);
    }
    default: {
      if (a == 0 && b < 0) fail_zero();
      if (a < 0 && b != std::floor(b)) fail(ErrorCode::kUnsupported, "a complex number");
      const double result = std::pow(a, b);
      if (std::isinf(result) && !std::isinf(a) && !std::isinf(b))
        fail(ErrorCode::kInvalidArgument, "a power is too large");
      return Value::of(result);
    }
  }
}

Value repeat(Heap& heap, const Value& sequence, int64_t count) {
  count = std::max<int64_t>(count, 0);
  if (sequence.is_string()) {
    TextBuilder out(heap);
    if (sequence.text().empty()) return sequence;
    for (int64_t i = 0; i < count; ++i) {
      heap.step();
      out.append(*sequence.string);
    }
    return out.finish();
  }
  List* list = heap.list(sequence.list->list_kind);
  for (int64_t i = 0; i < count && !sequence.list->items.empty(); ++i) {
    for (const Value& element : sequence.list->items) {
      heap.step();
      heap.append(*list, element);
    }
  }
  return Value::of(list);
}

bool is_repeatable(const Value& value) {
  return value.is_string() || (value.is_list() && value.list->list_kind <= ListKind::kTuple);
}

Value add_strings(Heap& heap, const Value& left, const Value& right) {
  TextBuilder out(heap);
  const bool is_markup = left.string->is_markup || right.string->is_markup;
  out.append(is_markup ? escape_html(heap, *left.string) : left);
  out.append(is_markup ? escape_html(heap, *right.string) : right);
  Value result = out.finish();
  const_cast<String*>(result.string)->is_markup = is_markup;
  return result;
}

}  // namespace

Value binary(Heap& heap, Operator operation, const Value& left, const Value& right) {
  if (left.is_integral() && right.is_integral()) {
    return integer_operation(operation, left.as_integral(), right.as_integral());
  }
  if (left.is_number() && right.is_number())
    return float_operation(operation, left.as_double(), right.as_double());
  if (operation == Operator::kAdd) {
    if (left.is_string() && right.is_string()) return add_strings(heap, left, right);
    if (left.is_list() && right.is_list() && left.list->list_kind == right.list->list_kind &&
        left.list->list_kind <= ListKind::kTuple) {
      List* list = heap.list(left.list->list_kind);
      heap.step((left.list->items.size() + right.list->items.size()) / 16);
      for (const Value& element : left.list->items) heap.append(*list, element);
      for (const Value& element : right.list->items) heap.append(*list, element);
      return Value::of(list);
    }
  }
  if (operation == Operator::kMultiply) {
    if (is_repeatable(left) && right.is_integral()) return repeat(heap, left, right.as_integral());
    if (is_repeatable(right) && left.is_integral()) return repeat(heap, right, left.as_integral());
  }
  if (operation == Operator::kModulo && left.is_string()) return format_percent(heap, *left.string, right);
  fail_operands(operation, left, right);
}

bool holds(Heap& heap, Operator comparison, const Value& left, const Value& right) {
  switch (comparison) {
    case Operator::kEqual:
      return equal(heap, left, right);
    case Operator::kNotEqual:
      return !equal(heap, left, right);
    case Operator::kIn:
      return contains(heap, right, left);
    case Operator::kNotIn:
      return !contains(heap, right, left);
    default:
      break;
  }
  if (left.is_number() && right.is_number() &&
      (std::isnan(left.as_double()) || std::isnan(right.as_double()))) {
    return false;
  }
  const int order = compare(heap, left, right);
  switch (comparison) {
    case Operator::kLess:
      return order < 0;
    case Operator::kLessEqual:
      return order <= 0;
    case Operator::kGreater:
      return order > 0;
    default:
      return order >= 0;
  }
}

Value negate(const Value& value) {
  if (value.is_float()) return Value::of(-value.number);
  if (value.is_undefined()) fail_undefined(value);
  if (!value.is_integral()) fail(ErrorCode::kInvalidArgument, "a '{}' has no sign", type_name(value));
  int64_t result = 0;
  if (__builtin_sub_overflow(int64_t{0}, value.as_integral(), &result)) fail_overflow();
  return Value::of(result);
}

}  // namespace lowbit::jinja
