#include "base/fail.h"
#include "text/jinja_interpreter.h"

#include <algorithm>

namespace lowbit::jinja {

namespace {

// An index into a sequence of that length, counted from its end when negative; -1 when outside.
int64_t element_index(const Value& index, int64_t length) {
  const int64_t position = index.as_integral();
  if (position >= length || position < -length) return -1;
  return position < 0 ? position + length : position;
}

}  // namespace

Value Interpreter::evaluate(const Expression& expression, Scope& scope) {
  struct Leave {
    int& depth;
    ~Leave() { --depth; }
  } leave{depth_};
  if (++depth_ > heap_.limits().evaluation) {
    fail(ErrorCode::kInvalidArgument, "statements and expressions are nested deeper than {}",
         heap_.limits().evaluation);
  }
  heap_.step();
  offset_ = expression.offset;
  const auto child = [&](size_t i) { return evaluate(*expression.children[i], scope); };
  switch (expression.kind) {
    case ExpressionKind::kConstant:
      return expression.constant;
    case ExpressionKind::kName:
      return evaluate_name(expression, scope);
    case ExpressionKind::kList:
    case ExpressionKind::kTuple: {
      List* list = heap_.list(expression.kind == ExpressionKind::kList ? ListKind::kList : ListKind::kTuple);
      for (size_t i = 0; i < expression.children.size(); ++i) heap_.append(*list, child(i));
      return Value::of(list);
    }
    case ExpressionKind::kDict:
      return evaluate_dict(expression, scope);
    case ExpressionKind::kAttribute: {
      const Value object = child(0);
      offset_ = expression.offset;
      return attribute(object, *expression.name);
    }
    case ExpressionKind::kItem:
      return evaluate_item(expression, scope);
    case ExpressionKind::kSlice:
      fail(ErrorCode::kUnsupported, "a slice inside a tuple index");
    case ExpressionKind::kCall:
      return evaluate_call(expression, scope, nullptr);
    case ExpressionKind::kFilter: {
      const Value value = child(0);
      const Arguments arguments = evaluate_arguments(expression.arguments, scope);
      offset_ = expression.offset;
      return apply_filter(expression.name->text, value, arguments);
    }
    case ExpressionKind::kTest: {
      const Value value = child(0);
      const Arguments arguments = evaluate_arguments(expression.arguments, scope);
      offset_ = expression.offset;
      return Value::of(apply_test(expression.name->text, value, arguments));
    }
    case ExpressionKind::kNot:
      return Value::of(!is_true(child(0)));
    case ExpressionKind::kNegative:
      return negate(child(0));
    case ExpressionKind::kPositive: {
      const Value value = child(0);
      return value.is_float() ? value : Value::of(negate(negate(value)).integer);
    }
    case ExpressionKind::kAnd: {
      const Value left = child(0);
      return is_true(left) ? child(1) : left;
    }
    case ExpressionKind::kOr: {
      const Value left = child(0);
      return is_true(left) ? left : child(1);
    }
    case ExpressionKind::kBinary: {
      const Value left = child(0), right = child(1);
      offset_ = expression.offset;
      return binary(heap_, expression.operators[0], left, right);
    }
    case ExpressionKind::kConcatenate: {
      TextBuilder out(heap_);
      for (size_t i = 0; i < expression.children.size(); ++i) out.append(child(i));
      return out.finish();
    }
    case ExpressionKind::kComparison:
      return evaluate_comparison(expression, scope);
    case ExpressionKind::kCondition:
      if (is_true(child(0))) return child(1);
      return expression.children[2] ? child(2) : Value();
  }
  fail(ErrorCode::kInternal, "an expression of unknown kind");
}

Value Interpreter::evaluate_name(const Expression& expression, Scope& scope) {
  for (const Scope* at = &scope; at; at = at->parent) {
    heap_.step(at->variables.size() / 32);
    for (const auto& [name, value] : at->variables) {
      if (name == expression.name->text) return value;
    }
  }
  return Value::undefined(expression.name);
}

Value Interpreter::evaluate_dict(const Expression& expression, Scope& scope) {
  Dict* dict = heap_.make<Dict>();
  for (size_t i = 0; i < expression.children.size(); i += 2) {
    const Value key = evaluate(*expression.children[i], scope);
    heap_.set(*dict, key, evaluate(*expression.children[i + 1], scope));
  }
  return Value::of(dict);
}

Value Interpreter::evaluate_comparison(const Expression& expression, Scope& scope) {
  Value left = evaluate(*expression.children[0], scope);
  for (size_t i = 0; i < expression.operators.size(); ++i) {
    const Value right = evaluate(*expression.children[i + 1], scope);
    offset_ = expression.offset;
    if (!holds(heap_, expression.operators[i], left, right)) return Value::of(false);
    left = right;
  }
  return Value::of(true);
}

Value Interpreter::evaluate_item(const Expression& expression, Scope& scope) {
  const Value object = evaluate(*expression.children[0], scope);
  const Expression& index = *expression.children[1];
  if (index.kind == ExpressionKind::kSlice) return slice(object, index, scope);
  const Value key = evaluate(index, scope);
  offset_ = expression.offset;
  return item(object, key);
}

Value Interpreter::slice(const Value& object, const Expression& slice, Scope& scope) {
  Value bounds[3];
  for (size_t i = 0; i < 3; ++i) {
    bounds[i] = slice.children[i] ? evaluate(*slice.children[i], scope) : Value::none();
    if (bounds[i].is_undefined()) fail_undefined(bounds[i]);
  }
  offset_ = slice.offset;
  if (object.is_undefined()) fail_undefined(object);
  const bool is_sequence = object.is_string() || (object.is_list() && object.list->has_index());
  for (const Value& bound : bounds) {
    if (!is_sequence || (!bound.is_none() && !bound.is_integral()))
      return Value();  // a TypeError, which Jinja hides
  }
  const int64_t count = length(object);
  const int64_t step = bounds[2].is_none() ? 1 : bounds[2].as_integral();
  if (step == 0) fail(ErrorCode::kInvalidArgument, "the step of a slice is zero");
  const auto clamp = [&](const Value& bound, int64_t otherwise) {
    if (bound.is_none()) return otherwise;
    int64_t position = bound.as_integral();
    if (position < 0) position = std::max(position + count, step < 0 ? int64_t{-1} : int64_t{0});
    return std::min(position, step < 0 ? count - 1 : count);
  };
  const int64_t begin = clamp(bounds[0], step < 0 ? count - 1 : 0),
                end = clamp(bounds[1], step < 0 ? -1 : count);
  if (object.is_string() && step == 1) {
    if (begin >= end) return heap_.string("");
    heap_.scan(object.text().size());
    return slice_text(heap_, *object.string, byte_offset(*object.string, begin),
                      byte_offset(*object.string, end));
  }
  const std::vector<Value> all = elements(heap_, object);
  List* chosen = heap_.list(object.is_list() ? object.list->list_kind : ListKind::kList);
  for (int64_t i = begin; step < 0 ? i > end : i < end;) {
    heap_.step();
    heap_.append(*chosen, all[static_cast<size_t>(i)]);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  if (!object.is_string()) return Value::of(chosen);
  TextBuilder out(heap_);
  for (const Value& character : chosen->items) out.append(character);
  return out.finish();
}

Arguments Interpreter::evaluate_arguments(const CallArguments& arguments, Scope& scope) {
  Arguments result;
  for (const ExpressionPointer& argument : arguments.positional) {
    result.positional.push_back(evaluate(*argument, scope));
  }
  if (arguments.more_positional) {
    for (const Value& value : elements(heap_, evaluate(*arguments.more_positional, scope))) {
      result.positional.push_back(value);
    }
  }
  for (const auto& [name, argument] : arguments.keywords)
    result.keywords.emplace_back(name, evaluate(*argument, scope));
  if (arguments.more_keywords) {
    const Value more = evaluate(*arguments.more_keywords, scope);
    if (!more.is_dict()) fail(ErrorCode::kInvalidArgument, "** needs a dict, found '{}'", type_name(more));
    heap_.charge(more.dict->entries.size() * sizeof(result.keywords[0]));
    heap_.step(more.dict->entries.size());
    for (const auto& [name, value] : more.dict->entries) {
      if (!name.is_string())
        fail(ErrorCode::kInvalidArgument, "** needs names as keys, found '{}'", type_name(name));
      result.keywords.emplace_back(name.text(), value);
    }
  }
  return result;
}

Value Interpreter::evaluate_call(const Expression& expression, Scope& scope, const Value* caller) {
  const Value callee = evaluate(*expression.children[0], scope);
  Arguments arguments = evaluate_arguments(expression.arguments, scope);
  if (caller) arguments.keywords.emplace_back("caller", *caller);
  offset_ = expression.offset;
  return call(callee, arguments);
}

// object.name: a method first, then a key, as Jinja does it.
Value Interpreter::attribute(const Value& object, const String& name) {
  if (object.is_undefined()) fail_undefined(object);
  if (object.kind == ValueKind::kNamespace) {
    const Value* value = find(heap_, object.name_space->attributes, name.text);
    return value ? *value : Value::undefined(&name);
  }
  if (object.kind == ValueKind::kLoop) return loop_attribute(*this, *object.loop, name.text);
  if (const Function::Body body = find_method(object, name.text)) {
    Function* method = heap_.make<Function>();
    method->body = body;
    method->self = object;
    return Value::of(method);
  }
  if (object.is_dict()) {
    if (const Value* value = find(heap_, *object.dict, name.text)) return *value;
  }
  if (name.text.size() > 2 && name.text.compare(0, 2, "__") == 0) {
    fail(ErrorCode::kInvalidArgument, "access to the attribute '{}' is not safe and not allowed",
         name.text.substr(0, 60));
  }
  return Value::undefined(&name);
}

// object[index]: a key or an element first, then an attribute.
Value Interpreter::item(const Value& object, const Value& index) {
  if (object.is_undefined()) fail_undefined(object);
  if (object.is_dict()) {
    if (const Value* value = find(heap_, *object.dict, index)) return *value;
  } else if (index.is_integral() && (object.is_string() || (object.is_list() && object.list->has_index()))) {
    const int64_t at = element_index(index, length(object));
    if (at < 0) return Value();
    if (object.is_list()) return object.list->items[static_cast<size_t>(at)];
    heap_.scan(object.is_string() && !object.string->is_ascii() ? object.text().size() : 0);
    const size_t begin = byte_offset(*object.string, at);
    return slice_text(heap_, *object.string, begin, next_code_point(object.text(), begin));
  }
  if (!index.is_string()) return Value();
  // A key that is not there may still name a method, as x['items'] does.
  return attribute(object, *index.string);
}

int64_t integer_argument(const Value* argument, int64_t default_value, std::string_view callee) {
  if (!argument) return default_value;
  if (argument->is_undefined()) fail_undefined(*argument);
  if (!argument->is_integral()) {
    fail(ErrorCode::kInvalidArgument, "{} needs an integer, found '{}'", callee, type_name(*argument));
  }
  return argument->as_integral();
}

bool bool_argument(const Value* argument, bool default_value) {
  return argument ? is_true(*argument) : default_value;
}

const String* string_argument(const Value* argument, std::string_view callee) {
  if (!argument || argument->is_none()) return nullptr;
  if (argument->is_undefined()) fail_undefined(*argument);
  if (!argument->is_string()) {
    fail(ErrorCode::kInvalidArgument, "{} needs a string, found '{}'", callee, type_name(*argument));
  }
  return argument->string;
}

}  // namespace lowbit::jinja
