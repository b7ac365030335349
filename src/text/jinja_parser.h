// Recursive descent over the tokens of a template, in the grammar (and with the precedences) of Python's
// jinja2.
#pragma once

#include "lowbit/error.h"
#include "text/jinja_ast.h"
#include "text/jinja_lexer.h"

#include <initializer_list>
#include <string>
#include <vector>

namespace lowbit::jinja {

class Parser {
 public:
  Parser(Template& result, std::vector<Token> tokens, const Limits& limits)
      : template_(result), tokens_(std::move(tokens)), limits_(limits) {}
  void parse();

 private:
  // Counts how deep brackets and blocks are nested while it lives.
  class Nesting {
   public:
    explicit Nesting(Parser& parser);
    ~Nesting() { --parser_.nesting_; }

   private:
    Parser& parser_;
  };
  enum class Conditions { kAllowed, kNotAllowed };  // "a if b else c" inside a tuple

  // jinja_parser.cc: statements
  Block parse_block(std::initializer_list<std::string_view> end_tags);
  Statement parse_statement();
  Statement parse_if();
  Statement parse_for();
  Statement parse_set();
  Statement parse_macro();
  Statement parse_call_block();
  Statement parse_filter_block();
  Statement parse_with();
  Statement parse_print(TokenKind end);
  void parse_parameters(Statement& statement);
  void parse_macro_body(Statement& statement, std::string_view end_tag);
  Target parse_target(bool allows_attribute);
  Target parse_single_target(bool allows_attribute);
  void end_tag(std::string_view name);
  void expect_block_end();

  // jinja_parse_expression.cc
  ExpressionPointer parse_expression();
  ExpressionPointer parse_or();
  ExpressionPointer parse_and();
  ExpressionPointer parse_not();
  ExpressionPointer parse_comparison();
  ExpressionPointer parse_sum();
  ExpressionPointer parse_concatenation();
  ExpressionPointer parse_product();
  ExpressionPointer parse_power();
  ExpressionPointer parse_unary(bool with_filters);
  ExpressionPointer parse_primary();
  ExpressionPointer parse_name_or_constant();
  ExpressionPointer parse_list();
  ExpressionPointer parse_dict();
  ExpressionPointer parse_tuple(Conditions conditions, std::string_view end_name, bool in_parentheses);
  ExpressionPointer parse_postfix(ExpressionPointer value);
  ExpressionPointer parse_subscript(ExpressionPointer value);
  ExpressionPointer parse_subscript_index();
  ExpressionPointer parse_filters_and_tests(ExpressionPointer value);
  ExpressionPointer parse_filters(ExpressionPointer value, bool starts_inline);
  ExpressionPointer parse_test(ExpressionPointer value);
  void parse_arguments(CallArguments& arguments);
  bool at_tuple_end(std::string_view end_name) const;

  // Shared
  const Token& current() const { return tokens_[position_]; }
  const Token& ahead() const { return tokens_[std::min(position_ + 1, tokens_.size() - 1)]; }
  void advance() {
    if (position_ + 1 < tokens_.size()) ++position_;
  }
  bool skip_operator(std::string_view operation);
  bool skip_name(std::string_view name);
  void expect_operator(std::string_view operation);
  const String* expect_name();
  const String* keep(const std::string& text);
  ExpressionPointer make(ExpressionKind kind, uint32_t offset) const;
  ExpressionPointer make_constant(Value value, uint32_t offset) const;
  ExpressionPointer join(ExpressionKind kind, uint32_t offset, ExpressionPointer left,
                         ExpressionPointer right);
  ExpressionPointer finish(ExpressionPointer expression) const;  // sets and checks the height
  [[noreturn]] void fail_here(const std::string& what, ErrorCode code = ErrorCode::kInvalidArgument) const;
  [[noreturn]] void fail_at(size_t offset, const std::string& what, ErrorCode code) const;
  std::string describe(const Token& token) const;

  struct MacroUses {
    bool varargs = false, kwargs = false;
  };

  Template& template_;
  std::vector<Token> tokens_;
  Limits limits_;
  size_t position_ = 0;
  int nesting_ = 0;
  int loops_ = 0;                  // around the present statement, within its macro
  std::vector<MacroUses> macros_;  // around the present token
};

}  // namespace lowbit::jinja
