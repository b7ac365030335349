#include "base/files.h"
#include "base/json.h"
#include "lowbit/chat.h"
#include "support.h"
#include "text/jinja_interpreter.h"

#include <cstdlib>
#include <ctime>
#include <gtest/gtest.h>
#include <thread>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kNow = 1735732800;  // 2025-01-01 12:00 UTC, the clock of the golden results

std::string render(const std::string& source, const std::string& extra = "") {
  ChatOptions options;
  options.extra_json = extra;
  options.now = kNow;
  return ChatTemplate::from_source(source, "", "template").render({{"user", "Hello"}}, options).text;
}

std::string refusal(const std::string& source, ErrorCode code = ErrorCode::kInvalidArgument) {
  return testing::error_of(code, [&] { render(source); });
}

// tests/golden/jinja_cases.jsonl was written by Python's jinja2 (tests/golden/make_template_golden.py).
TEST(Jinja, EveryGoldenCaseEqualsPython) {
  setenv("TZ", "UTC", 1);
  tzset();
  const fs::path golden = fs::path(LOWBIT_SOURCE_DIR) / "tests/golden";
  const std::string context = read_file(golden / "jinja_context.json");
  const std::string lines = read_file(golden / "jinja_cases.jsonl");
  size_t rendered = 0, refused = 0;
  for (size_t begin = 0; begin < lines.size();) {
    const size_t end = lines.find('\n', begin);
    const Json line = parse_json(std::string_view(lines).substr(begin, end - begin), "jinja_cases.jsonl");
    begin = end + 1;
    const std::string& source = line.get("template").as_string();
    if (line.get("expected").is_null()) {
      EXPECT_THROW(render(source, context), Error) << source << "\n" << line.get("error").as_string();
      ++refused;
    } else {
      try {
        EXPECT_EQ(render(source, context), line.get("expected").as_string()) << source;
      } catch (const Error& error) {
        ADD_FAILURE() << source << "\n" << error.what();
      }
      ++rendered;
    }
  }
  EXPECT_GT(rendered, 150u);
  EXPECT_GT(refused, 50u);
}

TEST(Jinja, ErrorsNameLineAndColumn) {
  EXPECT_EQ(refusal("a\n  {{ 1 + }}"), "template: line 2 column 10: expected a value, found '}}'");
  EXPECT_EQ(refusal("{{ x|nope }}", ErrorCode::kUnsupported),
            "template: line 1 column 6: the filter 'nope' is not known here");
  EXPECT_EQ(refusal("\n{% include 'x' %}", ErrorCode::kUnsupported),
            "template: line 2 column 4: the tag 'include' is not known here");
  EXPECT_EQ(refusal("é {{ messages.x.y }}"), "template: line 1 column 16: 'x' is undefined");
}

TEST(Jinja, FileAccessAndOtherTagsAreUnsupportedByName) {
  for (const char* tag : {"include 'a'", "import 'a' as b", "from 'a' import b", "extends 'a'", "block b",
                          "do f()", "autoescape true"}) {
    EXPECT_NE(refusal("{% " + std::string(tag) + " %}", ErrorCode::kUnsupported).find("is not known here"),
              std::string::npos);
  }
}

// research/ecosystem.md 6.2, items 35 and 36.
TEST(Jinja, EscapesFromTheSandboxAreErrors) {
  for (const char* attack :
       {"{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.__class__ }}",
        "{{ messages['__class__'].__base__ }}", "{{ raise_exception.__globals__ }}",
        "{{ range.__globals__['os'] }}", "{{ namespace.__init__.__globals__ }}", "{{ (1).__class__ }}",
        "{{ none.__class__ }}", "{{ {}.__class__ }}", "{{ messages|map(attribute='__class__')|list }}",
        "{% set ns = namespace(__class__=1) %}", "{% set ns = namespace() %}{% set ns.__init__ = 1 %}"}) {
    EXPECT_THROW(render(attack), Error) << attack;
  }
  for (const char* attack :
       {"{{ ''|attr('__class__') }}", "{{ '{0.__class__}'.format(1) }}", "{{ '{0[x]}'.format(1) }}"}) {
    refusal(attack, ErrorCode::kUnsupported);
  }
}

TEST(Jinja, NothingOfTheProgramIsVisible) {
  for (const char* name :
       {"self", "config", "request", "os", "open", "eval", "exec", "environ", "getenv", "print", "loop"}) {
    EXPECT_EQ(render("{{ " + std::string(name) + " is defined }}"), "False") << name;
  }
}

// Item 37.
TEST(Jinja, EndlessAndExponentialTemplatesEndInAnError) {
  const std::string steps = "steps", memory = "memory", depth = "deeper";
  EXPECT_NE(
      refusal("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}").find(steps),
      std::string::npos);
  EXPECT_NE(
      refusal("{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}")
          .find(memory),
      std::string::npos);
  EXPECT_NE(
      refusal("{% set n = namespace(l=[1]) %}{% for i in range(99) %}{% set n.l = n.l + n.l %}{% endfor %}")
          .find("the template"),
      std::string::npos);
  EXPECT_NE(refusal("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").find(depth), std::string::npos);
  EXPECT_NE(refusal("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}").find(depth),
            std::string::npos);
  EXPECT_NE(refusal("{{ 'a' * 99999999999 }}").find("the template"), std::string::npos);
  EXPECT_NE(refusal("{{ ('abcdefgh' * 9999) * 9999 }}").find("the template"), std::string::npos);
  EXPECT_NE(refusal("{{ [0] * 99999999999 }}").find("the template"), std::string::npos);
  EXPECT_NE(refusal("{% set x = 'x' * 1000 %}{% for i in range(99999) %}{{ x }}{% endfor %}")
                .find("longer than 16 MiB"),
            std::string::npos);
  EXPECT_NE(refusal("{{ 'x'.ljust(9999999999) }}").find(steps), std::string::npos);
  EXPECT_NE(refusal("{{ '%9999999999d' % 1 }}").find("too large"), std::string::npos);
  EXPECT_NE(refusal("{{ 10 ** 99 }}").find("64 bits"), std::string::npos);
  EXPECT_NE(refusal("{{ 9223372036854775807 + 1 }}").find("64 bits"), std::string::npos);
  EXPECT_NE(refusal("{{ -9223372036854775807 - 2 }}").find("64 bits"), std::string::npos);
  refusal("{{ 9223372036854775808 }}", ErrorCode::kUnsupported);
  refusal("{% set n = namespace(l=[]) %}{% for i in range(500) %}{% set n.l = [n.l] %}{% endfor %}{{ n.l }}");
  refusal(
      "{% set n = namespace(l=[]) %}{% for i in range(500) %}{% set n.l = [n.l] %}{% endfor %}{{ n.l|tojson "
      "}}");
  refusal(
      "{% set n = namespace(l=[], m=[]) %}{% for i in range(500) %}{% set n.l = [n.l] %}{% set n.m = [n.m] "
      "%}{% endfor %}"
      "{{ n.l == n.m }}");
  refusal("{% set n = namespace() %}{% set n.n = n %}{{ n }}");
}

TEST(Jinja, DeepSourcesAreRefusedNotOverflowed) {
  const auto repeat = [](const std::string& text, int count) {
    std::string result;
    for (int i = 0; i < count; ++i) result += text;
    return result;
  };
  const int many = 100'000;
  refusal("{{ " + repeat("(", many) + "1" + repeat(")", many) + " }}");
  refusal("{{ " + repeat("[", many) + repeat("]", many) + " }}");
  refusal("{{ " + repeat("-", many) + "1 }}");
  refusal("{{ " + repeat("not ", many) + "1 }}");
  refusal("{{ 1" + repeat(" + 1", many) + " }}");
  refusal("{{ x" + repeat(".a", many) + " }}");
  refusal("{{ x" + repeat("|upper", many) + " }}");
  refusal("{{ " + repeat("1 if 1 else ", many) + "1 }}");
  refusal(repeat("{% if 1 %}", many) + repeat("{% endif %}", many));
  refusal("{% set " + repeat("(", many) + "a" + repeat(")", many) + " = 1 %}");
  EXPECT_EQ(render("{{ 1" + repeat(" + 1", 99) + " }}"), "100");
  EXPECT_EQ(render("{{ ''" + repeat(" ~ 'a'", 1000) + " }}"), repeat("a", 1000));
}

TEST(Jinja, DeepestAllowedRecursionFitsTheStackOfAThread) {
  // The limit on nested evaluation has to end this, not the stack, also with the large frames of a sanitizer
  // build.
  std::string source = "{% macro f() %}{% if 1 %}{{ ";
  for (int i = 0; i < 40; ++i) source += "'a' + (";
  source += "f()";
  for (int i = 0; i < 40; ++i) source += ")";
  source += " }}{% endif %}{% endmacro %}{{ f() }}";
  std::string message;
  std::thread([&] { message = refusal(source); }).join();
  EXPECT_NE(message.find("expressions are nested deeper"), std::string::npos) << message;
}

TEST(Jinja, BrokenSourcesAreErrors) {
  for (const char* source : {"{{",
                             "{%",
                             "{#",
                             "{{ 'a }}",
                             "{% if %}",
                             "{% if 1 %}",
                             "{% raw %}",
                             "{{ ] }}",
                             "{{ (1] }}",
                             "{{ '\\x1' }}",
                             "{{ '\\ud800' }}",
                             "{{ a b }}",
                             "{% for in x %}",
                             "{% macro %}",
                             "{% call x %}{% endcall %}",
                             "{% macro f(a, a) %}{% endmacro %}",
                             "{{ f(a=1, a=2) }}",
                             "{{ \xff }}",
                             "{% else %}",
                             "{{ $ }}"}) {
    EXPECT_THROW(render(source), Error) << source;
  }
}

TEST(Jinja, EmptySourceRendersNothing) {
  EXPECT_EQ(render(""), "");
  EXPECT_EQ(render("\n"), "");
  EXPECT_EQ(render("x\n\n"), "x\n");
}

TEST(Jinja, LoopFilterSeesWhatTheBodyChanged) {
  EXPECT_EQ(render("{% set n = namespace(go=true) %}{% for i in range(9) if n.go %}{{ i }}{% if i == 2 %}{% "
                   "set n.go = false %}"
                   "{% endif %}{% endfor %}"),
            "012");
}

}  // namespace
}  // namespace lowbit
