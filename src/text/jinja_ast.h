// The tree of a parsed template. Strings live in it, so values of a render may point at them.
#pragma once

#include "text/jinja_value.h"

#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit::jinja {

enum class ExpressionKind : uint8_t {
  kConstant,   // constant
  kName,       // name
  kList,       // children
  kTuple,      // children
  kDict,       // children: key, value, key, value, ...
  kAttribute,  // children[0].name
  kItem,       // children[0][children[1]]
  kSlice,      // only below kItem: children begin, end, step; a null child was left out
  kCall,       // children[0](arguments)
  kFilter,     // children[0] | name(arguments); children[0] is null at the head of a filter block
  kTest,       // children[0] is name(arguments)
  kNot,
  kNegative,
  kPositive,
  kAnd,
  kOr,
  kBinary,       // children[0] operators[0] children[1]
  kConcatenate,  // children, joined with ~
  kComparison,   // children[0] operators[0] children[1] operators[1] children[2] ...
  kCondition,    // children[1] if children[0] else children[2] (may be null)
};

enum class Operator : uint8_t {
  kAdd,
  kSubtract,
  kMultiply,
  kDivide,
  kFloorDivide,
  kModulo,
  kPower,
  kEqual,
  kNotEqual,
  kLess,
  kLessEqual,
  kGreater,
  kGreaterEqual,
  kIn,
  kNotIn,
};

struct Expression;
using ExpressionPointer = std::unique_ptr<Expression>;

struct CallArguments {
  std::vector<ExpressionPointer> positional;
  std::vector<std::pair<std::string_view, ExpressionPointer>> keywords;
  ExpressionPointer more_positional, more_keywords;  // *x, **x
};

struct Expression {
  ExpressionKind kind;
  uint32_t offset = 0;
  int height = 1;  // of the tree below; the parser bounds it, so that walking it cannot exhaust the stack
  Value constant;
  const String* name = nullptr;
  std::vector<Operator> operators;
  std::vector<ExpressionPointer> children;
  CallArguments arguments;
};

enum class StatementKind : uint8_t {
  kText,         // text
  kPrint,        // value
  kIf,           // branches
  kFor,          // targets in value if condition: body, else_body
  kSet,          // targets = value
  kSetBlock,     // targets[0] = body, through filter `value` when given
  kMacro,        // name(parameters): body
  kCallBlock,    // call `value` with body as its caller(parameters)
  kFilterBlock,  // body through filter `value`
  kWith,         // targets = values: body
  kScope,        // body in a scope of its own (generation blocks)
  kBreak,
  kContinue,
};

// What `set`, `for` and `with` assign to: a name, an attribute of a namespace, or a tuple of targets.
struct Target {
  const String* name = nullptr;
  const String* attribute = nullptr;
  std::vector<Target> parts;  // of a tuple; name is null then
  uint32_t offset = 0;
};

struct Parameter {
  const String* name;
  ExpressionPointer default_value;  // may be null
};

struct Statement;
using Block = std::vector<Statement>;

struct Branch {
  ExpressionPointer condition;  // null: else
  Block body;
};

struct Statement {
  StatementKind kind = StatementKind::kText;
  uint32_t offset = 0;
  const String* text = nullptr;
  const String* name = nullptr;
  std::vector<Target> targets;
  ExpressionPointer value, condition;
  std::vector<ExpressionPointer> values;
  std::vector<Branch> branches;
  std::vector<Parameter> parameters;
  bool takes_varargs = false, takes_kwargs = false;
  Block body, else_body;
};

struct Template {
  std::string source;  // normalized; offsets count in it
  std::string where;
  std::deque<String> strings;
  Block body;
};

// Throws kInvalidArgument for what is not Jinja and kUnsupported for what is not known, with line and column.
std::shared_ptr<const Template> parse_template(std::string_view source, std::string_view where,
                                               const Limits& limits);

}  // namespace lowbit::jinja
