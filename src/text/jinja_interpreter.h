// Walks the tree of a template. One Interpreter serves one render.
#pragma once

#include "text/jinja_ast.h"
#include "text/jinja_text.h"
#include "text/jinja_value.h"

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lowbit::jinja {

class Interpreter;

// The arguments of a call, a filter or a test.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string_view, Value>> keywords;

  // The argument for each parameter, null where it was not given. Throws for too many, unknown or doubled
  // ones.
  std::vector<const Value*> bind(std::string_view callee,
                                 std::initializer_list<std::string_view> parameters) const;
};

// A variable is looked up in its scope, then in the enclosing ones. `if` opens no scope, all other blocks do.
struct Scope : Object {
  Scope* parent = nullptr;
  std::vector<std::pair<std::string_view, Value>> variables;
};

struct Macro : Object {
  const Statement* definition = nullptr;
  Scope* scope = nullptr;  // where it was defined
};

// A built-in function, or a method bound to its object.
struct Function : Object {
  using Body = Value (*)(Interpreter&, const Value& self, const Arguments&);
  Body body = nullptr;
  Value self;
};

// The variable `loop`. Elements are drawn one ahead of need, because a filter in the loop's head may look at
// what the body changed.
struct Loop : Object {
  std::vector<Value> source;  // what the loop walks over
  size_t scanned = 0;         // of it
  std::vector<Value> items;   // those that passed the filter
  const Statement* statement = nullptr;
  Scope* scope = nullptr;
  int64_t index = -1;  // of the present one in items
  Value last_changed;
  bool has_changed = false;
};

class Interpreter {
 public:
  // now: what strftime_now sees, in seconds since 1970 UTC.
  Interpreter(const Template& source, const Limits& limits, int64_t now);

  Heap& heap() { return heap_; }
  int64_t now() const { return now_; }
  // Before render: what the template sees beside the built-in functions, which it may hide.
  void define(std::string_view name, Value value);
  // Errors carry the place of the node that was evaluated last.
  void render(TextBuilder& out);

  Value call(const Value& callee, const Arguments& arguments);
  Value apply_filter(std::string_view name, const Value& value, const Arguments& arguments);
  bool apply_test(std::string_view name, const Value& value, const Arguments& arguments);
  Value attribute(const Value& object, const String& name);
  Value item(const Value& object, const Value& index);
  bool fetch(Loop& loop, int64_t index);  // false when the loop has no such element

 private:
  enum class Flow { kNormal, kBreak, kContinue };
  class Depth;  // counts nested evaluations while it lives

  // jinja_interpreter.cc: statements
  Flow execute(const Block& block, Scope& scope);
  Flow execute(const Statement& statement, Scope& scope);
  Flow execute_for(const Statement& statement, Scope& scope);
  void execute_set(const Statement& statement, Scope& scope);
  void execute_with(const Statement& statement, Scope& scope);
  Value capture(const Block& block, Scope& scope);
  Value through_filters(const Expression& filter, const Value& value, Scope& scope);
  void assign(const Target& target, const Value& value, Scope& scope);
  Value make_macro(const Statement& statement, Scope& scope);
  Value call_macro(const Macro& macro, const Arguments& arguments);
  Scope* new_scope(Scope* parent);
  void set_variable(Scope& scope, std::string_view name, const Value& value);

  // jinja_evaluate.cc: expressions
  Value evaluate(const Expression& expression, Scope& scope);
  Value evaluate_name(const Expression& expression, Scope& scope);
  Value evaluate_item(const Expression& expression, Scope& scope);
  Value evaluate_comparison(const Expression& expression, Scope& scope);
  Value evaluate_dict(const Expression& expression, Scope& scope);
  Value evaluate_call(const Expression& expression, Scope& scope, const Value* caller);
  Arguments evaluate_arguments(const CallArguments& arguments, Scope& scope);
  Value slice(const Value& object, const Expression& slice, Scope& scope);

  const Template& template_;
  Heap heap_;
  int64_t now_;
  Scope globals_;
  TextBuilder* out_ = nullptr;
  uint32_t offset_ = 0;  // of the node at work
  int depth_ = 0, calls_ = 0;
};

// jinja_operators.cc
Value binary(Heap& heap, Operator operation, const Value& left, const Value& right);
bool holds(Heap& heap, Operator comparison, const Value& left, const Value& right);
Value negate(const Value& value);

// jinja_methods.cc, jinja_string_methods.cc: null when the type has no such method. Those that change a list
// or a dict throw when they are called, as in Jinja's immutable sandbox.
Function::Body find_method(const Value& object, std::string_view name);
Function::Body find_string_method(std::string_view name);
// jinja_functions.cc: range, namespace, dict, raise_exception, strftime_now, ...
void define_functions(Interpreter& interpreter);
Value loop_attribute(Interpreter& interpreter, Loop& loop, std::string_view name);
// jinja_filters*.cc, jinja_tests.cc: null when not known.
using Filter = Value (*)(Interpreter&, const Value&, const Arguments&);
using Test = bool (*)(Interpreter&, const Value&, const Arguments&);
Filter find_filter(std::string_view name);
Filter find_sequence_filter(std::string_view name);
Test find_test(std::string_view name);

// Arguments as C++ values; throw naming callee and parameter.
int64_t integer_argument(const Value* argument, int64_t default_value, std::string_view callee);
bool bool_argument(const Value* argument, bool default_value);
const String* string_argument(const Value* argument, std::string_view callee);  // null when not given or None

}  // namespace lowbit::jinja
