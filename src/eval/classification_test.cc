#include "eval/classification.h"

#include "support.h"

#include <gtest/gtest.h>

namespace lowbit {
namespace {

using testing::error_of;

Dataset dialogues(std::vector<Example> examples) { return {DatasetKind::kChat, std::move(examples), {}}; }

TEST(Questions, TheLastAssistantTurnIsTheTruthAndIsNotAsked) {
  const Dataset data =
      dialogues({{"1", {{"system", "s"}, {"user", "u"}, {"assistant", "{\"is_fraud\": true}"}}, "", {}},
                 {"2", {{"user", "u"}, {"assistant", "否"}}, "", {}}});
  const auto questions = read_questions(data, {}, "d.jsonl");
  ASSERT_EQ(questions.size(), 2u);
  EXPECT_TRUE(questions[0].truth);
  ASSERT_EQ(questions[0].messages.size(), 2u);
  EXPECT_EQ(questions[0].messages.back().role, "user");
  EXPECT_FALSE(questions[1].truth);
}

TEST(Questions, TheTopLevelLabelWinsAndNeedsNoAssistantTurn) {
  const Dataset data =
      dialogues({{"1", {{"user", "u"}}, "", "false"},
                 {"2", {{"user", "u"}, {"assistant", "{\"is_fraud\": false}"}}, "", "\"yes\""}});
  const auto questions = read_questions(data, {}, "d.jsonl");
  EXPECT_FALSE(questions[0].truth);
  EXPECT_EQ(questions[0].messages.size(), 1u);
  EXPECT_TRUE(questions[1].truth);
  EXPECT_EQ(questions[1].messages.size(), 1u);
}

TEST(Questions, LabelsOutsideTheSetAreErrorsThatNameTheExample) {
  const Dataset top =
      dialogues({{"1", {{"user", "u"}}, "", "true"}, {"call-7", {{"user", "u"}}, "", "\"perhaps\""}});
  std::string message = error_of(ErrorCode::kInvalidArgument, [&] { read_questions(top, {}, "d.jsonl"); });
  EXPECT_NE(message.find("d.jsonl: example 2 (id call-7)"), std::string::npos) << message;
  EXPECT_NE(message.find("perhaps"), std::string::npos) << message;

  const Dataset answer = dialogues({{"1", {{"user", "u"}, {"assistant", "who knows"}}, "", {}}});
  message = error_of(ErrorCode::kInvalidArgument, [&] { read_questions(answer, {}, "d.jsonl"); });
  EXPECT_NE(message.find("who knows"), std::string::npos) << message;

  const Dataset none = dialogues({{"1", {{"user", "u"}}, "", {}}});
  message = error_of(ErrorCode::kInvalidArgument, [&] { read_questions(none, {}, "d.jsonl"); });
  EXPECT_NE(message.find("--label-key"), std::string::npos) << message;
}

TEST(Questions, TextAndEmptyDialoguesAreErrors) {
  error_of(ErrorCode::kInvalidArgument, [] {
    read_questions({DatasetKind::kText, {{"1", {}, "t", {}}}, {}}, {}, "d");
  });
  error_of(ErrorCode::kInvalidArgument, [] { read_questions(dialogues({{"1", {}, "", {}}}), {}, "d"); });
  error_of(ErrorCode::kInvalidArgument, [] {
    read_questions(dialogues({{"1", {{"assistant", "true"}}, "", {}}}), {}, "d");
  });
  error_of(ErrorCode::kInvalidArgument, [] { read_questions(dialogues({}), {}, "d"); });
}

TEST(Questions, LimitTakesTheFirst) {
  const Dataset data = dialogues({{"a", {{"user", "u"}}, "", "true"}, {"b", {{"user", "u"}}, "", "true"}});
  const auto questions = read_questions(data, {.limit = 1}, "d");
  ASSERT_EQ(questions.size(), 1u);
  EXPECT_EQ(questions[0].id, "a");
}

TEST(Batches, AreSortedByLengthAndHoldEveryIndexOnce) {
  const auto batches = length_sorted_batches({3, 9, 1, 9, 5}, 2);
  const std::vector<std::vector<size_t>> expected = {{1, 3}, {4, 0}, {2}};
  EXPECT_EQ(batches, expected);
  EXPECT_TRUE(length_sorted_batches({}, 4).empty());
}

}  // namespace
}  // namespace lowbit
