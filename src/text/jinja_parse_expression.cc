#include "base/fail.h"
#include "text/jinja_parser.h"

#include <algorithm>

namespace lowbit::jinja {

ExpressionPointer Parser::make(ExpressionKind kind, uint32_t offset) const {
  auto expression = std::make_unique<Expression>();
  expression->kind = kind;
  expression->offset = offset;
  return expression;
}

ExpressionPointer Parser::make_constant(Value value, uint32_t offset) const {
  ExpressionPointer expression = make(ExpressionKind::kConstant, offset);
  expression->constant = value;
  return expression;
}

ExpressionPointer Parser::finish(ExpressionPointer expression) const {
  int height = 0;
  const auto include = [&height](const ExpressionPointer& child) {
    if (child) height = std::max(height, child->height);
  };
  for (const ExpressionPointer& child : expression->children) include(child);
  for (const ExpressionPointer& child : expression->arguments.positional) include(child);
  for (const auto& keyword : expression->arguments.keywords) include(keyword.second);
  include(expression->arguments.more_positional);
  include(expression->arguments.more_keywords);
  expression->height = height + 1;
  if (expression->height > limits_.parse_height) {
    fail_at(expression->offset, fmt::format("an expression is deeper than {} levels", limits_.parse_height),
            ErrorCode::kInvalidArgument);
  }
  return expression;
}

ExpressionPointer Parser::join(ExpressionKind kind, uint32_t offset, ExpressionPointer left,
                               ExpressionPointer right) {
  ExpressionPointer expression = make(kind, offset);
  expression->children.push_back(std::move(left));
  if (right) expression->children.push_back(std::move(right));
  return finish(std::move(expression));
}

ExpressionPointer Parser::parse_expression() {
  Nesting nesting(*this);
  ExpressionPointer value = parse_or();
  while (current().is_name("if")) {
    ExpressionPointer condition = make(ExpressionKind::kCondition, current().offset);
    advance();
    condition->children.push_back(parse_or());
    condition->children.push_back(std::move(value));
    condition->children.push_back(skip_name("else") ? parse_expression() : nullptr);
    value = finish(std::move(condition));
  }
  return value;
}

ExpressionPointer Parser::parse_or() {
  ExpressionPointer left = parse_and();
  while (current().is_name("or")) {
    const uint32_t offset = current().offset;
    advance();
    left = join(ExpressionKind::kOr, offset, std::move(left), parse_and());
  }
  return left;
}

ExpressionPointer Parser::parse_and() {
  ExpressionPointer left = parse_not();
  while (current().is_name("and")) {
    const uint32_t offset = current().offset;
    advance();
    left = join(ExpressionKind::kAnd, offset, std::move(left), parse_not());
  }
  return left;
}

ExpressionPointer Parser::parse_not() {
  if (!current().is_name("not")) return parse_comparison();
  Nesting nesting(*this);
  const uint32_t offset = current().offset;
  advance();
  return join(ExpressionKind::kNot, offset, parse_not(), nullptr);
}

ExpressionPointer Parser::parse_comparison() {
  static const std::pair<std::string_view, Operator> kComparisons[] = {
      {"==", Operator::kEqual},     {"!=", Operator::kNotEqual}, {"<", Operator::kLess},
      {"<=", Operator::kLessEqual}, {">", Operator::kGreater},   {">=", Operator::kGreaterEqual}};
  ExpressionPointer comparison = make(ExpressionKind::kComparison, current().offset);
  comparison->children.push_back(parse_sum());
  while (true) {
    const size_t before = comparison->operators.size();
    for (const auto& [text, operation] : kComparisons) {
      if (current().is(text)) comparison->operators.push_back(operation);
    }
    if (comparison->operators.size() > before) {
      comparison->offset = current().offset;
      advance();
    } else if (skip_name("in")) {
      comparison->operators.push_back(Operator::kIn);
    } else if (current().is_name("not") && ahead().is_name("in")) {
      advance();
      advance();
      comparison->operators.push_back(Operator::kNotIn);
    } else {
      break;
    }
    comparison->children.push_back(parse_sum());
  }
  if (comparison->operators.empty()) return std::move(comparison->children[0]);
  return finish(std::move(comparison));
}

ExpressionPointer Parser::parse_sum() {
  ExpressionPointer left = parse_concatenation();
  while (current().is("+") || current().is("-")) {
    const Operator operation = current().is("+") ? Operator::kAdd : Operator::kSubtract;
    const uint32_t offset = current().offset;
    advance();
    left = join(ExpressionKind::kBinary, offset, std::move(left), parse_concatenation());
    left->operators.push_back(operation);
  }
  return left;
}

ExpressionPointer Parser::parse_concatenation() {
  ExpressionPointer first = parse_product();
  if (!current().is("~")) return first;
  ExpressionPointer all = make(ExpressionKind::kConcatenate, current().offset);
  all->children.push_back(std::move(first));
  while (skip_operator("~")) all->children.push_back(parse_product());
  return finish(std::move(all));
}

ExpressionPointer Parser::parse_product() {
  static const std::pair<std::string_view, Operator> kProducts[] = {{"*", Operator::kMultiply},
                                                                    {"/", Operator::kDivide},
                                                                    {"//", Operator::kFloorDivide},
                                                                    {"%", Operator::kModulo}};
  ExpressionPointer left = parse_power();
  while (true) {
    const auto* found = std::find_if(std::begin(kProducts), std::end(kProducts),
                                     [this](const auto& product) { return current().is(product.first); });
    if (found == std::end(kProducts)) return left;
    const uint32_t offset = current().offset;
    advance();
    left = join(ExpressionKind::kBinary, offset, std::move(left), parse_power());
    left->operators.push_back(found->second);
  }
}

ExpressionPointer Parser::parse_power() {
  ExpressionPointer left = parse_unary(true);
  while (current().is("**")) {  // to the left, unlike Python: Jinja's way
    const uint32_t offset = current().offset;
    advance();
    left = join(ExpressionKind::kBinary, offset, std::move(left), parse_unary(true));
    left->operators.push_back(Operator::kPower);
  }
  return left;
}

ExpressionPointer Parser::parse_unary(bool with_filters) {
  ExpressionPointer value;
  if (current().is("-") || current().is("+")) {
    Nesting nesting(*this);
    const ExpressionKind kind = current().is("-") ? ExpressionKind::kNegative : ExpressionKind::kPositive;
    const uint32_t offset = current().offset;
    advance();
    value = join(kind, offset, parse_unary(false), nullptr);
  } else {
    value = parse_primary();
  }
  value = parse_postfix(std::move(value));
  return with_filters ? parse_filters_and_tests(std::move(value)) : std::move(value);
}

ExpressionPointer Parser::parse_name_or_constant() {
  const Token& token = current();
  const uint32_t offset = token.offset;
  if (token.text == "true" || token.text == "True" || token.text == "false" || token.text == "False") {
    const bool value = token.text[0] == 't' || token.text[0] == 'T';
    advance();
    return make_constant(Value::of(value), offset);
  }
  if (token.text == "none" || token.text == "None") {
    advance();
    return make_constant(Value::none(), offset);
  }
  if (!macros_.empty()) {
    macros_.back().varargs |= token.text == "varargs";
    macros_.back().kwargs |= token.text == "kwargs";
  }
  ExpressionPointer name = make(ExpressionKind::kName, offset);
  name->name = expect_name();
  return name;
}

ExpressionPointer Parser::parse_primary() {
  const Token& token = current();
  const uint32_t offset = token.offset;
  switch (token.kind) {
    case TokenKind::kName:
      return parse_name_or_constant();
    case TokenKind::kString: {
      std::string text;
      for (; current().kind == TokenKind::kString; advance()) text += current().text;
      return make_constant(Value::of(keep(text)), offset);
    }
    case TokenKind::kInteger: {
      const Value value = Value::of(token.integer);
      advance();
      return make_constant(value, offset);
    }
    case TokenKind::kFloat: {
      const Value value = Value::of(token.number);
      advance();
      return make_constant(value, offset);
    }
    default:
      break;
  }
  if (token.is("[")) return parse_list();
  if (token.is("{")) return parse_dict();
  if (skip_operator("(")) {
    ExpressionPointer value = parse_tuple(Conditions::kAllowed, "", true);
    expect_operator(")");
    return value;
  }
  fail_here(fmt::format("expected a value, found {}", describe(token)));
}

ExpressionPointer Parser::parse_list() {
  ExpressionPointer list = make(ExpressionKind::kList, current().offset);
  expect_operator("[");
  while (!current().is("]")) {
    if (!list->children.empty()) expect_operator(",");
    if (current().is("]")) break;
    list->children.push_back(parse_expression());
  }
  expect_operator("]");
  return finish(std::move(list));
}

ExpressionPointer Parser::parse_dict() {
  ExpressionPointer dict = make(ExpressionKind::kDict, current().offset);
  expect_operator("{");
  while (!current().is("}")) {
    if (!dict->children.empty()) expect_operator(",");
    if (current().is("}")) break;
    dict->children.push_back(parse_expression());
    expect_operator(":");
    dict->children.push_back(parse_expression());
  }
  expect_operator("}");
  return finish(std::move(dict));
}

bool Parser::at_tuple_end(std::string_view end_name) const {
  return current().kind == TokenKind::kVariableEnd || current().kind == TokenKind::kBlockEnd ||
         current().is(")") || (!end_name.empty() && current().is_name(end_name));
}

ExpressionPointer Parser::parse_tuple(Conditions conditions, std::string_view end_name, bool in_parentheses) {
  Nesting nesting(*this);
  ExpressionPointer tuple = make(ExpressionKind::kTuple, current().offset);
  bool has_comma = false;
  while (!at_tuple_end(end_name)) {
    tuple->children.push_back(conditions == Conditions::kAllowed ? parse_expression() : parse_or());
    if (!skip_operator(",")) break;
    has_comma = true;
  }
  if (!has_comma) {
    if (!tuple->children.empty()) return std::move(tuple->children[0]);
    if (!in_parentheses) fail_here(fmt::format("expected an expression, found {}", describe(current())));
  }
  return finish(std::move(tuple));
}

ExpressionPointer Parser::parse_postfix(ExpressionPointer value) {
  while (true) {
    if (current().is(".") || current().is("[")) {
      value = parse_subscript(std::move(value));
    } else if (current().is("(")) {
      ExpressionPointer call = make(ExpressionKind::kCall, current().offset);
      call->children.push_back(std::move(value));
      parse_arguments(call->arguments);
      value = finish(std::move(call));
    } else {
      return value;
    }
  }
}

ExpressionPointer Parser::parse_subscript(ExpressionPointer value) {
  const uint32_t offset = current().offset;
  if (skip_operator(".")) {
    if (current().kind == TokenKind::kInteger) {
      ExpressionPointer index = make_constant(Value::of(current().integer), current().offset);
      advance();
      return join(ExpressionKind::kItem, offset, std::move(value), std::move(index));
    }
    ExpressionPointer attribute = make(ExpressionKind::kAttribute, offset);
    attribute->name = expect_name();
    attribute->children.push_back(std::move(value));
    return finish(std::move(attribute));
  }
  expect_operator("[");
  ExpressionPointer index = parse_subscript_index();
  if (current().is(",")) {
    ExpressionPointer tuple = make(ExpressionKind::kTuple, offset);
    tuple->children.push_back(std::move(index));
    while (skip_operator(",")) {
      if (current().is("]")) break;
      tuple->children.push_back(parse_subscript_index());
    }
    index = finish(std::move(tuple));
  }
  expect_operator("]");
  return join(ExpressionKind::kItem, offset, std::move(value), std::move(index));
}

ExpressionPointer Parser::parse_subscript_index() {
  const uint32_t offset = current().offset;
  ExpressionPointer begin;
  if (!current().is(":")) {
    begin = parse_expression();
    if (!current().is(":")) return begin;
  }
  ExpressionPointer slice = make(ExpressionKind::kSlice, offset);
  slice->children.resize(3);
  slice->children[0] = std::move(begin);
  for (size_t part = 1; part < 3 && skip_operator(":"); ++part) {
    if (!current().is(":") && !current().is("]") && !current().is(","))
      slice->children[part] = parse_expression();
  }
  return finish(std::move(slice));
}

void Parser::parse_arguments(CallArguments& arguments) {
  expect_operator("(");
  bool needs_comma = false;
  while (!current().is(")")) {
    if (needs_comma) {
      expect_operator(",");
      if (current().is(")")) break;
    }
    needs_comma = true;
    if (skip_operator("*")) {
      if (arguments.more_positional || arguments.more_keywords) fail_here("more than one *argument");
      arguments.more_positional = parse_expression();
    } else if (skip_operator("**")) {
      if (arguments.more_keywords) fail_here("more than one **argument");
      arguments.more_keywords = parse_expression();
    } else if (current().kind == TokenKind::kName && ahead().is("=")) {
      if (arguments.more_keywords) fail_here("an argument follows **");
      const String* name = expect_name();
      advance();
      for (const auto& keyword : arguments.keywords) {
        if (keyword.first == name->text)
          fail_here(fmt::format("the argument '{}' is given twice", name->text));
      }
      arguments.keywords.emplace_back(name->text, parse_expression());
    } else {
      if (arguments.more_positional || arguments.more_keywords || !arguments.keywords.empty()) {
        fail_here("a plain argument follows a named one");
      }
      arguments.positional.push_back(parse_expression());
    }
  }
  advance();
}

ExpressionPointer Parser::parse_filters_and_tests(ExpressionPointer value) {
  while (true) {
    if (current().is("|")) {
      value = parse_filters(std::move(value), false);
    } else if (current().is_name("is")) {
      value = parse_test(std::move(value));
    } else if (current().is("(")) {
      ExpressionPointer call = make(ExpressionKind::kCall, current().offset);
      call->children.push_back(std::move(value));
      parse_arguments(call->arguments);
      value = finish(std::move(call));
    } else {
      return value;
    }
  }
}

ExpressionPointer Parser::parse_filters(ExpressionPointer value, bool starts_inline) {
  while (starts_inline || skip_operator("|")) {
    starts_inline = false;
    ExpressionPointer filter = make(ExpressionKind::kFilter, current().offset);
    filter->name = expect_name();
    while (skip_operator(".")) filter->name = keep(filter->name->text + "." + expect_name()->text);
    filter->children.push_back(std::move(value));
    if (current().is("(")) parse_arguments(filter->arguments);
    value = finish(std::move(filter));
  }
  return value;
}

ExpressionPointer Parser::parse_test(ExpressionPointer value) {
  const uint32_t offset = current().offset;
  advance();  // is
  const bool is_negated = skip_name("not");
  ExpressionPointer test = make(ExpressionKind::kTest, offset);
  test->name = expect_name();
  test->children.push_back(std::move(value));
  const Token& next = current();
  if (next.is("(")) {
    parse_arguments(test->arguments);
  } else if ((next.kind == TokenKind::kName || next.kind == TokenKind::kString ||
              next.kind == TokenKind::kInteger || next.kind == TokenKind::kFloat || next.is("[") ||
              next.is("{")) &&
             !next.is_name("else") && !next.is_name("or") && !next.is_name("and")) {
    if (next.is_name("is")) fail_here("tests cannot be chained with 'is'");
    test->arguments.positional.push_back(parse_postfix(parse_primary()));
  }
  test = finish(std::move(test));
  return is_negated ? join(ExpressionKind::kNot, offset, std::move(test), nullptr) : std::move(test);
}

}  // namespace lowbit::jinja
