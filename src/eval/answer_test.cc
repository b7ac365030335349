#include "eval/answer.h"

#include <gtest/gtest.h>

namespace lowbit {
namespace {

int label(std::string_view answer) {
  const std::optional<bool> found = parse_answer(answer, "is_fraud");
  return found ? *found : -1;
}

TEST(Answer, JsonObjectsAreRead) {
  EXPECT_EQ(label(R"({"is_fraud": true})"), 1);
  EXPECT_EQ(label(R"({"is_fraud":false,"reason":"a } brace and \"is_fraud\": true"})"), 0);
  EXPECT_EQ(label(R"({"reason": "the text says \"is_fraud\": false", "is_fraud": true})"), 1);
  EXPECT_EQ(label(R"({"is_fraud": "true"})"), 1);
  EXPECT_EQ(label(R"({"is_fraud": "否"})"), 0);
  EXPECT_EQ(label(R"({"is_fraud": 1})"), 1);
  EXPECT_EQ(label(R"({"result": {"is_fraud": true}})"), 1);
}

TEST(Answer, JsonInsideTextAndFencesIsFound) {
  EXPECT_EQ(label("Here {is} my answer:\n{\"is_fraud\": false}\nI hope it helps."), 0);
  EXPECT_EQ(label("```json\n{\"is_fraud\": true}\n```"), 1);
  EXPECT_EQ(label("Sure.\n```\n{\"is_fraud\": false}\n```\n{\"is_fraud\": true}"), 0);
  EXPECT_EQ(label("```json\n{\"is_fraud\": true"), 1);
  EXPECT_EQ(label("```true```"), 1);
  EXPECT_EQ(label("```\nno\n```"), 0);
}

TEST(Answer, TheFirstObjectWithTheKeyCounts) {
  EXPECT_EQ(label(R"({"reason": "x"} {"is_fraud": false} {"is_fraud": true})"), 0);
}

TEST(Answer, CutAndNearlyJsonAnswersAreRead) {
  EXPECT_EQ(label(R"({"is_fraud": true, "reason": "the caller asks for)"), 1);
  EXPECT_EQ(label("{'is_fraud': False}"), 0);
  EXPECT_EQ(label("is_fraud: true"), 1);
  EXPECT_EQ(label("is_fraud：是。"), 1);
  EXPECT_EQ(label(R"({"is_fraud": tr)"), -1);
  EXPECT_EQ(label(R"({"not_is_fraud": true)"), -1);
}

TEST(Answer, BareLabelsAreRead) {
  for (const char* text : {"true", " True.", "**Yes**", "fraud", "是。", "有诈骗风险", "\"true\"", "1",
                           "Yes\nBecause the caller lies."}) {
    EXPECT_EQ(label(text), 1) << text;
  }
  for (const char* text : {"false", "No!", "not fraud", "Not_Fraud", "否", "无", "没有。", "0", "`false`"}) {
    EXPECT_EQ(label(text), 0) << text;
  }
}

TEST(Answer, NothingElseBecomesAClass) {
  for (const char* text :
       {"", "maybe", "I think this is fraud", "true or false", "{\"is_fraud\": null}", "{\"is_fraud\": 2}",
        "{\"is_fraud\": []}", "{\"fraud\": true}", "falsehood", "```", "{{{{", "\xff\xfe", "无法判断"}) {
    EXPECT_EQ(label(text), -1) << text;
  }
}

TEST(Answer, ManyBracesEndSoon) {
  const std::string braces(200000, '{');
  EXPECT_EQ(label(braces), -1);
}

}  // namespace
}  // namespace lowbit
