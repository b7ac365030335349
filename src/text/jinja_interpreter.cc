#include "text/jinja_interpreter.h"

#include "base/fail.h"
#include "text/jinja_lexer.h"

#include <algorithm>

namespace lowbit::jinja {

class Interpreter::Depth {
 public:
  Depth(Interpreter& interpreter, int& count, int limit, const char* what) : count_(count) {
    if (++count_ > limit) {
      --count_;
      fail(ErrorCode::kInvalidArgument, "{} are nested deeper than {}: does a macro call itself without end?",
           what, limit);
    }
    interpreter.heap_.step();
  }
  ~Depth() { --count_; }

 private:
  int& count_;
};

std::vector<const Value*> Arguments::bind(std::string_view callee,
                                          std::initializer_list<std::string_view> parameters) const {
  std::vector<const Value*> bound(parameters.size(), nullptr);
  if (positional.size() > parameters.size()) {
    fail(ErrorCode::kInvalidArgument, "{} takes at most {} arguments, found {}", callee, parameters.size(),
         positional.size());
  }
  for (size_t i = 0; i < positional.size(); ++i) bound[i] = &positional[i];
  for (const auto& [name, value] : keywords) {
    const auto* found = std::find(parameters.begin(), parameters.end(), name);
    if (found == parameters.end())
      fail(ErrorCode::kInvalidArgument, "{} has no parameter '{}'", callee, name);
    const Value*& slot = bound[static_cast<size_t>(found - parameters.begin())];
    if (slot) fail(ErrorCode::kInvalidArgument, "{} got the argument '{}' twice", callee, name);
    slot = &value;
  }
  return bound;
}

Interpreter::Interpreter(const Template& source, const Limits& limits, int64_t now)
    : template_(source), heap_(limits), now_(now) {
  define_functions(*this);
}

void Interpreter::define(std::string_view name, Value value) { set_variable(globals_, name, value); }

void Interpreter::render(TextBuilder& out) {
  out_ = &out;
  try {
    Scope* scope = new_scope(&globals_);
    execute(template_.body, *scope);
  } catch (const Error& error) {
    fail(error.code(), "{}: {}", place_of(template_.source, offset_, template_.where), error.what());
  }
}

Scope* Interpreter::new_scope(Scope* parent) {
  Scope* scope = heap_.make<Scope>();
  scope->parent = parent;
  return scope;
}

void Interpreter::set_variable(Scope& scope, std::string_view name, const Value& value) {
  heap_.step(scope.variables.size() / 32);
  for (auto& variable : scope.variables) {
    if (variable.first == name) {
      variable.second = value;
      return;
    }
  }
  heap_.charge(2 * sizeof(scope.variables[0]));
  scope.variables.emplace_back(name, value);
}

Interpreter::Flow Interpreter::execute(const Block& block, Scope& scope) {
  for (const Statement& statement : block) {
    const Flow flow = execute(statement, scope);
    if (flow != Flow::kNormal) return flow;
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::execute(const Statement& statement, Scope& scope) {
  Depth depth(*this, depth_, heap_.limits().evaluation, "statements and expressions");
  offset_ = statement.offset;
  switch (statement.kind) {
    case StatementKind::kText:
      out_->append(*statement.text);
      return Flow::kNormal;
    case StatementKind::kPrint: {
      const Value value = evaluate(*statement.value, scope);
      offset_ = statement.offset;
      out_->append(value);
      return Flow::kNormal;
    }
    case StatementKind::kIf:
      for (const Branch& branch : statement.branches) {
        if (!branch.condition || is_true(evaluate(*branch.condition, scope)))
          return execute(branch.body, scope);
      }
      return Flow::kNormal;
    case StatementKind::kFor:
      return execute_for(statement, scope);
    case StatementKind::kSet:
      execute_set(statement, scope);
      return Flow::kNormal;
    case StatementKind::kSetBlock: {
      Value value = capture(statement.body, *new_scope(&scope));
      if (statement.value) value = through_filters(*statement.value, value, scope);
      assign(statement.targets[0], value, scope);
      return Flow::kNormal;
    }
    case StatementKind::kMacro:
      set_variable(scope, statement.name->text, make_macro(statement, scope));
      return Flow::kNormal;
    case StatementKind::kCallBlock: {
      const Value caller = make_macro(statement, scope);
      out_->append(evaluate_call(*statement.value, scope, &caller));
      return Flow::kNormal;
    }
    case StatementKind::kFilterBlock: {
      const Value value = capture(statement.body, *new_scope(&scope));
      out_->append(through_filters(*statement.value, value, scope));
      return Flow::kNormal;
    }
    case StatementKind::kWith:
      execute_with(statement, scope);
      return Flow::kNormal;
    case StatementKind::kScope:
      return execute(statement.body, *new_scope(&scope));
    case StatementKind::kBreak:
      return Flow::kBreak;
    case StatementKind::kContinue:
      return Flow::kContinue;
  }
  fail(ErrorCode::kInternal, "a statement of unknown kind");
}

void Interpreter::execute_set(const Statement& statement, Scope& scope) {
  const Value value = evaluate(*statement.value, scope);
  offset_ = statement.offset;
  assign(statement.targets[0], value, scope);
}

void Interpreter::execute_with(const Statement& statement, Scope& scope) {
  Scope* inner = new_scope(&scope);
  std::vector<Value> values;
  for (const ExpressionPointer& value : statement.values) values.push_back(evaluate(*value, scope));
  for (size_t i = 0; i < values.size(); ++i) assign(statement.targets[i], values[i], *inner);
  execute(statement.body, *inner);
}

bool Interpreter::fetch(Loop& loop, int64_t index) {
  while (static_cast<int64_t>(loop.items.size()) <= index) {
    if (loop.scanned >= loop.source.size()) return false;
    heap_.step();
    const Value element = loop.source[loop.scanned++];
    if (loop.statement->condition) {
      Scope* scope = new_scope(loop.scope);
      assign(loop.statement->targets[0], element, *scope);
      if (!is_true(evaluate(*loop.statement->condition, *scope))) continue;
    }
    loop.items.push_back(element);
  }
  return true;
}

Interpreter::Flow Interpreter::execute_for(const Statement& statement, Scope& scope) {
  const Value source = evaluate(*statement.value, scope);
  offset_ = statement.offset;
  Loop* loop = heap_.make<Loop>();
  loop->source = elements(heap_, source);
  heap_.charge(loop->source.size() * sizeof(Value));
  loop->statement = &statement;
  loop->scope = &scope;
  while (fetch(*loop, loop->index + 1)) {
    ++loop->index;
    offset_ = statement.offset;
    Scope* inner = new_scope(&scope);
    set_variable(*inner, "loop", Value::of(loop));
    assign(statement.targets[0], loop->items[static_cast<size_t>(loop->index)], *inner);
    if (execute(statement.body, *inner) == Flow::kBreak) break;
  }
  if (loop->index < 0 && !statement.else_body.empty()) {
    // break and continue in here belong to the loop around this one
    return execute(statement.else_body, *new_scope(&scope));
  }
  return Flow::kNormal;
}

Value Interpreter::capture(const Block& block, Scope& scope) {
  TextBuilder captured(heap_, heap_.limits().output);
  struct Restore {
    TextBuilder*& slot;
    TextBuilder* saved;
    ~Restore() { slot = saved; }
  } restore{out_, out_};
  out_ = &captured;
  execute(block, scope);
  return captured.finish();
}

Value Interpreter::through_filters(const Expression& filter, const Value& value, Scope& scope) {
  const Value inner = filter.children[0] ? through_filters(*filter.children[0], value, scope) : value;
  const Arguments arguments = evaluate_arguments(filter.arguments, scope);
  offset_ = filter.offset;
  return apply_filter(filter.name->text, inner, arguments);
}

void Interpreter::assign(const Target& target, const Value& value, Scope& scope) {
  if (!target.parts.empty()) {
    const std::vector<Value> values = elements(heap_, value);
    if (values.size() != target.parts.size()) {
      fail(ErrorCode::kInvalidArgument, "cannot unpack {} values into {} names", values.size(),
           target.parts.size());
    }
    for (size_t i = 0; i < values.size(); ++i) assign(target.parts[i], values[i], scope);
  } else if (!target.attribute) {
    set_variable(scope, target.name->text, value);
  } else {
    Expression name;
    name.kind = ExpressionKind::kName;
    name.offset = target.offset;
    name.name = target.name;
    const Value object = evaluate(name, scope);
    if (object.kind != ValueKind::kNamespace) {
      fail(ErrorCode::kInvalidArgument, "'{}' is a '{}', not a namespace: its attributes cannot be set",
           target.name->text, type_name(object));
    }
    if (target.attribute->text[0] == '_') {
      fail(ErrorCode::kInvalidArgument, "'{}': names that begin with '_' cannot be set",
           target.attribute->text);
    }
    heap_.set(object.name_space->attributes, Value::of(target.attribute), value);
  }
}

Value Interpreter::make_macro(const Statement& statement, Scope& scope) {
  Macro* macro = heap_.make<Macro>();
  macro->definition = &statement;
  macro->scope = &scope;
  return Value::of(macro);
}

Value Interpreter::call_macro(const Macro& macro, const Arguments& arguments) {
  Depth depth(*this, calls_, heap_.limits().calls, "macro calls");
  const Statement& definition = *macro.definition;
  const std::string& name = definition.name->text;
  Scope* scope = new_scope(macro.scope);
  const size_t count = definition.parameters.size();
  if (arguments.positional.size() > count && !definition.takes_varargs) {
    fail(ErrorCode::kInvalidArgument, "the macro '{}' takes not more than {} arguments, found {}", name,
         count, arguments.positional.size());
  }
  std::vector<const Value*> bound(count, nullptr);
  for (size_t i = 0; i < std::min(count, arguments.positional.size()); ++i)
    bound[i] = &arguments.positional[i];
  Value caller = Value::undefined(nullptr);
  Dict* rest = heap_.make<Dict>();
  for (const auto& [keyword, value] : arguments.keywords) {
    const auto parameter =
        std::find_if(definition.parameters.begin(), definition.parameters.end(),
                     [&keyword = keyword](const Parameter& p) { return p.name->text == keyword; });
    if (parameter != definition.parameters.end() &&
        !bound[static_cast<size_t>(parameter - definition.parameters.begin())]) {
      bound[static_cast<size_t>(parameter - definition.parameters.begin())] = &value;
    } else if (keyword == "caller") {
      caller = value;
    } else if (definition.takes_kwargs) {
      heap_.set(*rest, heap_.string(keyword), value);
    } else {
      fail(ErrorCode::kInvalidArgument, "the macro '{}' takes no argument '{}'", name, keyword);
    }
  }
  set_variable(*scope, "caller", caller);
  if (definition.takes_kwargs) set_variable(*scope, "kwargs", Value::of(rest));
  if (definition.takes_varargs) {
    List* varargs = heap_.list(ListKind::kTuple);
    for (size_t i = count; i < arguments.positional.size(); ++i)
      heap_.append(*varargs, arguments.positional[i]);
    set_variable(*scope, "varargs", Value::of(varargs));
  }
  // A default may name the parameters before it; without one, a parameter that was not given is undefined.
  for (size_t i = 0; i < count; ++i) {
    const Parameter& parameter = definition.parameters[i];
    Value value = Value::undefined(parameter.name);
    if (bound[i]) {
      value = *bound[i];
    } else if (parameter.default_value) {
      value = evaluate(*parameter.default_value, *scope);
    }
    set_variable(*scope, parameter.name->text, value);
  }
  return capture(definition.body, *scope);
}

Value Interpreter::call(const Value& callee, const Arguments& arguments) {
  if (callee.kind == ValueKind::kMacro) return call_macro(*callee.macro, arguments);
  if (callee.kind == ValueKind::kFunction)
    return callee.function->body(*this, callee.function->self, arguments);
  if (callee.is_undefined()) fail_undefined(callee);
  if (callee.kind == ValueKind::kLoop) fail(ErrorCode::kUnsupported, "recursive loops are not supported");
  fail(ErrorCode::kInvalidArgument, "a '{}' cannot be called", type_name(callee));
}

Value Interpreter::apply_filter(std::string_view name, const Value& value, const Arguments& arguments) {
  const Filter filter = find_filter(name);
  if (!filter) fail(ErrorCode::kUnsupported, "the filter '{}' is not known here", name.substr(0, 60));
  return filter(*this, value, arguments);
}

bool Interpreter::apply_test(std::string_view name, const Value& value, const Arguments& arguments) {
  const Test test = find_test(name);
  if (!test) fail(ErrorCode::kUnsupported, "the test '{}' is not known here", name.substr(0, 60));
  return test(*this, value, arguments);
}

}  // namespace lowbit::jinja
