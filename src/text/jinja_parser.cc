#include "text/jinja_parser.h"

#include "base/fail.h"
#include "text/jinja_text.h"

#include <algorithm>

namespace lowbit::jinja {

namespace {

constexpr size_t kMaxSource = size_t{4} << 20;

}  // namespace

std::shared_ptr<const Template> parse_template(std::string_view source, std::string_view where,
                                               const Limits& limits) {
  if (source.size() > kMaxSource) {
    fail(ErrorCode::kInvalidArgument, "{}: the template has {} bytes; at most {} are read", where,
         source.size(), kMaxSource);
  }
  if (!is_valid_utf8(source)) fail(ErrorCode::kInvalidArgument, "{}: the template is not UTF-8", where);
  auto result = std::make_shared<Template>();
  result->source = normalize_source(source);
  result->where = std::string(where);
  Parser(*result, tokenize_template(result->source, where), limits).parse();
  return result;
}

Parser::Nesting::Nesting(Parser& parser) : parser_(parser) {
  if (++parser_.nesting_ > parser_.limits_.parse_nesting) {
    parser_.fail_here(
        fmt::format("the template is nested deeper than {} levels", parser_.limits_.parse_nesting));
  }
}

void Parser::parse() { template_.body = parse_block({}); }

void Parser::fail_at(size_t offset, const std::string& what, ErrorCode code) const {
  fail(code, "{}: {}", place_of(template_.source, offset, template_.where), what);
}

void Parser::fail_here(const std::string& what, ErrorCode code) const {
  fail_at(current().offset, what, code);
}

std::string Parser::describe(const Token& token) const {
  switch (token.kind) {
    case TokenKind::kData:
      return "text";
    case TokenKind::kBlockBegin:
      return "'{%'";
    case TokenKind::kBlockEnd:
      return "'%}'";
    case TokenKind::kVariableBegin:
      return "'{{'";
    case TokenKind::kVariableEnd:
      return "'}}'";
    case TokenKind::kString:
      return "a string";
    case TokenKind::kEnd:
      return "the end of the template";
    default:
      return fmt::format("'{}'", token.text.substr(0, 60));
  }
}

bool Parser::skip_operator(std::string_view operation) {
  if (!current().is(operation)) return false;
  advance();
  return true;
}

bool Parser::skip_name(std::string_view name) {
  if (!current().is_name(name)) return false;
  advance();
  return true;
}

void Parser::expect_operator(std::string_view operation) {
  if (!skip_operator(operation))
    fail_here(fmt::format("expected '{}', found {}", operation, describe(current())));
}

const String* Parser::expect_name() {
  if (current().kind != TokenKind::kName)
    fail_here(fmt::format("expected a name, found {}", describe(current())));
  const String* name = keep(current().text);
  advance();
  return name;
}

const String* Parser::keep(const std::string& text) {
  String& string = template_.strings.emplace_back();
  string.text = text;
  string.length = count_code_points(text);
  return &string;
}

void Parser::expect_block_end() {
  if (current().kind != TokenKind::kBlockEnd)
    fail_here(fmt::format("expected '%}}', found {}", describe(current())));
  advance();
}

void Parser::end_tag(std::string_view name) {
  if (!skip_name(name)) fail_here(fmt::format("expected '{}', found {}", name, describe(current())));
  expect_block_end();
}

// Stops behind "{%", at one of end_tags; with none given, at the end of the template.
Block Parser::parse_block(std::initializer_list<std::string_view> end_tags) {
  Nesting nesting(*this);
  Block block;
  while (true) {
    const Token& token = current();
    if (token.kind == TokenKind::kEnd) {
      if (end_tags.size() == 0) return block;
      fail_here(fmt::format("the template ends inside a block: '{}' is missing", *(end_tags.end() - 1)));
    } else if (token.kind == TokenKind::kData) {
      Statement& text = block.emplace_back();
      text.offset = token.offset;
      text.text = keep(token.text);
      advance();
    } else if (token.kind == TokenKind::kVariableBegin) {
      advance();
      block.push_back(parse_print(TokenKind::kVariableEnd));
    } else {  // the lexer puts nothing but "{%" here
      advance();
      for (std::string_view tag : end_tags) {
        if (current().is_name(tag)) return block;
      }
      block.push_back(parse_statement());
    }
  }
}

Statement Parser::parse_print(TokenKind end) {
  Statement statement;
  statement.kind = StatementKind::kPrint;
  statement.offset = current().offset;
  if (end == TokenKind::kVariableEnd) {
    statement.value = parse_tuple(Conditions::kAllowed, "", false);
  } else {  // {% print a, b %} prints one behind the other
    statement.value = make(ExpressionKind::kConcatenate, current().offset);
    do statement.value->children.push_back(parse_expression());
    while (skip_operator(","));
    statement.value = finish(std::move(statement.value));
  }
  if (current().kind != end) {
    fail_here(fmt::format("expected '{}', found {}", end == TokenKind::kBlockEnd ? "%}" : "}}",
                          describe(current())));
  }
  advance();
  return statement;
}

Statement Parser::parse_statement() {
  const Token tag = current();
  if (tag.kind != TokenKind::kName)
    fail_here(fmt::format("expected the name of a tag, found {}", describe(tag)));
  advance();
  Statement result;
  if (tag.text == "if") {
    result = parse_if();
  } else if (tag.text == "for") {
    result = parse_for();
  } else if (tag.text == "set") {
    result = parse_set();
  } else if (tag.text == "macro") {
    result = parse_macro();
  } else if (tag.text == "call") {
    result = parse_call_block();
  } else if (tag.text == "filter") {
    result = parse_filter_block();
  } else if (tag.text == "with") {
    result = parse_with();
  } else if (tag.text == "print") {
    result = parse_print(TokenKind::kBlockEnd);
  } else if (tag.text == "generation") {
    result.kind = StatementKind::kScope;
    expect_block_end();
    result.body = parse_block({"endgeneration"});
    end_tag("endgeneration");
  } else if (tag.text == "break" || tag.text == "continue") {
    if (loops_ == 0)
      fail_at(tag.offset, fmt::format("'{}' outside of a loop", tag.text), ErrorCode::kInvalidArgument);
    result.kind = tag.text == "break" ? StatementKind::kBreak : StatementKind::kContinue;
    expect_block_end();
  } else {
    fail_at(tag.offset, fmt::format("the tag '{}' is not known here", tag.text.substr(0, 60)),
            ErrorCode::kUnsupported);
  }
  result.offset = tag.offset;
  return result;
}

Statement Parser::parse_if() {
  Statement statement;
  statement.kind = StatementKind::kIf;
  while (true) {
    Branch& branch = statement.branches.emplace_back();
    branch.condition = parse_tuple(Conditions::kNotAllowed, "", false);
    expect_block_end();
    branch.body = parse_block({"elif", "else", "endif"});
    if (!skip_name("elif")) break;
  }
  if (skip_name("else")) {
    expect_block_end();
    Branch& branch = statement.branches.emplace_back();
    branch.body = parse_block({"endif"});
  }
  end_tag("endif");
  return statement;
}

Statement Parser::parse_for() {
  Statement statement;
  statement.kind = StatementKind::kFor;
  statement.targets.push_back(parse_target(false));
  if (!skip_name("in")) fail_here(fmt::format("expected 'in', found {}", describe(current())));
  statement.value = parse_tuple(Conditions::kNotAllowed, "recursive", false);
  if (skip_name("if")) statement.condition = parse_expression();
  if (current().is_name("recursive")) fail_here("recursive loops are not supported", ErrorCode::kUnsupported);
  expect_block_end();
  ++loops_;
  statement.body = parse_block({"else", "endfor"});
  --loops_;
  if (skip_name("else")) {
    expect_block_end();
    statement.else_body = parse_block({"endfor"});
  }
  end_tag("endfor");
  return statement;
}

Target Parser::parse_single_target(bool allows_attribute) {
  Nesting nesting(*this);
  Target target;
  target.offset = current().offset;
  if (skip_operator("(")) {
    target = parse_target(allows_attribute);
    expect_operator(")");
    return target;
  }
  target.name = expect_name();
  for (const char* reserved : {"true", "false", "none", "True", "False", "None"}) {
    if (target.name->text == reserved) {
      fail_at(target.offset, fmt::format("cannot assign to '{}'", reserved), ErrorCode::kInvalidArgument);
    }
  }
  if (allows_attribute && skip_operator(".")) target.attribute = expect_name();
  return target;
}

Target Parser::parse_target(bool allows_attribute) {
  Target first = parse_single_target(allows_attribute);
  if (!current().is(",")) return first;
  Target tuple;
  tuple.offset = first.offset;
  tuple.parts.push_back(std::move(first));
  while (skip_operator(",")) {
    if (current().kind != TokenKind::kName && !current().is("(")) break;
    if (current().is_name("in")) break;
    tuple.parts.push_back(parse_single_target(allows_attribute));
  }
  return tuple;
}

Statement Parser::parse_set() {
  Statement statement;
  statement.kind = StatementKind::kSet;
  statement.targets.push_back(parse_target(true));
  if (skip_operator("=")) {
    statement.value = parse_tuple(Conditions::kAllowed, "", false);
    expect_block_end();
    return statement;
  }
  statement.kind = StatementKind::kSetBlock;
  if (!statement.targets[0].name) fail_here("a set block has one name");
  if (current().is("|")) statement.value = parse_filters(nullptr, false);
  expect_block_end();
  statement.body = parse_block({"endset"});
  end_tag("endset");
  return statement;
}

void Parser::parse_parameters(Statement& statement) {
  expect_operator("(");
  while (!current().is(")")) {
    if (!statement.parameters.empty()) expect_operator(",");
    const uint32_t offset = current().offset;
    Parameter parameter{expect_name(), nullptr};
    for (const Parameter& other : statement.parameters) {
      if (other.name->text == parameter.name->text) {
        fail_at(offset, fmt::format("the parameter '{}' appears twice", parameter.name->text),
                ErrorCode::kInvalidArgument);
      }
    }
    if (skip_operator("=")) {
      parameter.default_value = parse_expression();
    } else if (!statement.parameters.empty() && statement.parameters.back().default_value) {
      fail_here("a parameter without a default follows one with a default");
    }
    statement.parameters.push_back(std::move(parameter));
  }
  advance();
}

void Parser::parse_macro_body(Statement& statement, std::string_view end) {
  expect_block_end();
  const int loops = std::exchange(loops_, 0);
  macros_.emplace_back();
  statement.body = parse_block({end});
  statement.takes_varargs = macros_.back().varargs;
  statement.takes_kwargs = macros_.back().kwargs;
  macros_.pop_back();
  loops_ = loops;
  end_tag(end);
}

Statement Parser::parse_macro() {
  Statement statement;
  statement.kind = StatementKind::kMacro;
  statement.name = expect_name();
  parse_parameters(statement);
  parse_macro_body(statement, "endmacro");
  return statement;
}

Statement Parser::parse_call_block() {
  Statement statement;
  statement.kind = StatementKind::kCallBlock;
  statement.name = keep("caller");
  if (current().is("(")) parse_parameters(statement);
  const uint32_t offset = current().offset;
  statement.value = parse_expression();
  if (statement.value->kind != ExpressionKind::kCall) {
    fail_at(offset, "a call block needs a call", ErrorCode::kInvalidArgument);
  }
  parse_macro_body(statement, "endcall");
  return statement;
}

Statement Parser::parse_filter_block() {
  Statement statement;
  statement.kind = StatementKind::kFilterBlock;
  statement.value = parse_filters(nullptr, true);
  expect_block_end();
  statement.body = parse_block({"endfilter"});
  end_tag("endfilter");
  return statement;
}

Statement Parser::parse_with() {
  Statement statement;
  statement.kind = StatementKind::kWith;
  while (current().kind != TokenKind::kBlockEnd) {
    if (!statement.targets.empty()) expect_operator(",");
    statement.targets.push_back(parse_single_target(false));
    expect_operator("=");
    statement.values.push_back(parse_expression());
  }
  expect_block_end();
  statement.body = parse_block({"endwith"});
  end_tag("endwith");
  return statement;
}

}  // namespace lowbit::jinja
