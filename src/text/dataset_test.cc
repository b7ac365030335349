#include "lowbit/dataset.h"

#include "base/files.h"
#include "support.h"

#include <gtest/gtest.h>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

Dataset parse(std::string_view bytes, const DatasetOptions& options = {}) {
  return parse_dataset(bytes, DatasetSyntax::kJson, "data.jsonl", options);
}

std::string refusal(ErrorCode code, const std::string& bytes) {
  return testing::error_of(code, [&] { parse(bytes); });
}

std::string shown(const Example& example) {
  std::string text;
  for (const Message& message : example.messages) text += "[" + message.role + "] " + message.content + "\n";
  return text;
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

const char* const kHi =
    R"({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]})";

TEST(Dataset, ReadsMessages) {
  const Dataset data = parse(
      std::string(kHi) + "\n" +
      R"({"id": "b", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, "c"]}]})");
  EXPECT_EQ(data.kind, DatasetKind::kChat);
  ASSERT_EQ(data.examples.size(), 2u);
  EXPECT_EQ(data.examples[0].id, "1");
  EXPECT_EQ(shown(data.examples[0]), "[user] Hi\n[assistant] Yes\n");
  EXPECT_EQ(data.examples[1].id, "b");
  EXPECT_EQ(shown(data.examples[1]), "[user] abc\n");
  EXPECT_TRUE(data.warnings.empty());
}

TEST(Dataset, ReadsShareGpt) {
  const Dataset data = parse(
      R"({"id": 7, "system": "S", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}, {"from": "observation", "value": "o"}]})"
      "\n"
      R"({"conversations": [{"role": "user", "content": "q"}]})");
  EXPECT_EQ(data.examples[0].id, "7");
  EXPECT_EQ(shown(data.examples[0]), "[system] S\n[user] q\n[assistant] a\n[tool] o\n");
  EXPECT_EQ(shown(data.examples[1]), "[user] q\n");
}

TEST(Dataset, ReadsAlpaca) {
  const Dataset data = parse(R"({"instruction": "Add", "input": "1 2", "output": "3"})"
                             "\n"
                             R"({"instruction": "Say", "input": "", "output": "x"})"
                             "\n"
                             R"({"instruction": "Say", "output": "x"})");
  EXPECT_EQ(shown(data.examples[0]), "[user] Add\n\n1 2\n[assistant] 3\n");
  EXPECT_EQ(shown(data.examples[1]), "[user] Say\n[assistant] x\n");
  EXPECT_EQ(shown(data.examples[2]), "[user] Say\n[assistant] x\n");
}

TEST(Dataset, ReadsPromptAndCompletion) {
  const Dataset data = parse(
      R"({"prompt": "p", "completion": "c"})"
      "\n"
      R"({"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}], "response": "r"})");
  EXPECT_EQ(shown(data.examples[0]), "[user] p\n[assistant] c\n");
  EXPECT_EQ(shown(data.examples[1]), "[system] s\n[user] p\n[assistant] r\n");
}

TEST(Dataset, ReadsTextAndArrays) {
  const Dataset data = parse("\n [{\"text\": \"a\"},\n {\"text\": \"b\"}]\n");
  EXPECT_EQ(data.kind, DatasetKind::kText);
  ASSERT_EQ(data.examples.size(), 2u);
  EXPECT_EQ(data.examples[1].text, "b");
  EXPECT_EQ(data.examples[1].id, "2");
}

TEST(Dataset, ByteOrderMarkLineEndsAndBlankLinesDoNotMatter) {
  const Dataset data = parse("\xef\xbb\xbf" + std::string(kHi) + "\r\n\r\n  \n" + kHi + "\r\n");
  ASSERT_EQ(data.examples.size(), 2u);
  EXPECT_EQ(data.examples[1].id, "4");
  EXPECT_EQ(shown(data.examples[1]), "[user] Hi\n[assistant] Yes\n");
}

TEST(Dataset, LabelIsKeptAsJson) {
  DatasetOptions options;
  options.label_key = "is_fraud";
  const Dataset data = parse(R"({"is_fraud": true, "text": "a"})"
                             "\n"
                             R"({"is_fraud": {"x": [1]}, "text": "a"})"
                             "\n"
                             R"({"text": "a"})",
                             options);
  EXPECT_EQ(data.examples[0].label_json, "true");
  EXPECT_EQ(data.examples[1].label_json, "{\"x\": [1]}");
  EXPECT_FALSE(data.examples[2].label_json.has_value());
  ASSERT_EQ(data.warnings.size(), 1u);
  EXPECT_EQ(data.warnings[0], "line 3: no label \"is_fraud\"");
}

TEST(Dataset, EmptyAssistantTurnIsWarnedAbout) {
  std::string lines;
  for (int i = 0; i < 30; ++i)
    lines += R"({"prompt": "p", "completion": " "})"
             "\n";
  const Dataset data = parse(lines);
  EXPECT_EQ(data.examples.size(), 30u);
  ASSERT_EQ(data.warnings.size(), 21u);
  EXPECT_EQ(data.warnings[6], "line 7: empty assistant turn");
  EXPECT_EQ(data.warnings[20], "and 10 more warnings");
}

TEST(Dataset, NullContentIsWarnedAbout) {
  const Dataset data = parse(R"({"messages": [{"role": "assistant", "content": null, "tool_calls": []}]})");
  EXPECT_EQ(data.warnings.at(0), "line 1: the content of message 1 is null (tool calls are not read)");
}

TEST(Dataset, TruncatedLastLineSaysSo) {
  const std::string message =
      refusal(ErrorCode::kCorruptFile, std::string(kHi) + "\n" + R"({"messages": [{"role": "us)");
  EXPECT_TRUE(has(message, "data.jsonl: line 2")) << message;
  EXPECT_TRUE(has(message, "truncated")) << message;
}

TEST(Dataset, BrokenLineIsNamed) {
  EXPECT_TRUE(has(refusal(ErrorCode::kCorruptFile, "{\"text\": \"a\"}\n{oops}\n{\"text\": \"b\"}\n"),
                  "data.jsonl: line 2: not valid JSON"));
  EXPECT_TRUE(has(refusal(ErrorCode::kCorruptFile, "{\"text\": \"a\", \"text\": \"b\"}"),
                  "line 1: the key \"text\" appears twice"));
  EXPECT_TRUE(has(refusal(ErrorCode::kCorruptFile, "{\"text\": \"a\"}\n{\"text\": \"\xff\"}\n"),
                  "line 2 is not UTF-8"));
  EXPECT_TRUE(has(refusal(ErrorCode::kCorruptFile, "[{\"text\": \"a\"},\n{\"text\": \"\xff\"}]\n"),
                  "line 2 is not UTF-8"));
  EXPECT_TRUE(has(refusal(ErrorCode::kCorruptFile, "{\"text\": \"\\ud800\"}"), "line 1"));
}

TEST(Dataset, OverlongLineIsRefused) {
  const std::string line = "{\"text\": \"" + std::string(size_t{100} << 20, 'a') + "\"}";
  EXPECT_TRUE(
      has(refusal(ErrorCode::kCorruptFile, line), "line 1 has 104857612 bytes, at most 67108864 are read"));
}

TEST(Dataset, UnknownLayoutSaysWhatWasFound) {
  EXPECT_TRUE(has(refusal(ErrorCode::kUnsupported, R"({"question": "q", "answer": "a"})"),
                  "found the keys: question, answer"));
  EXPECT_TRUE(has(refusal(ErrorCode::kUnsupported, "{}"), "found the keys: none"));
  EXPECT_TRUE(has(refusal(ErrorCode::kUnsupported, "5"), "expected an object, found an integer"));
  EXPECT_TRUE(has(refusal(ErrorCode::kUnsupported, std::string(kHi) + "\n{\"text\": \"a\"}"),
                  "line 2: a plain text among conversations"));
  EXPECT_TRUE(has(refusal(ErrorCode::kUnsupported, R"({"conversations": [{"from": "alien", "value": ""}]})"),
                  "is from \"alien\""));
  EXPECT_TRUE(has(
      refusal(ErrorCode::kUnsupported, R"({"messages": [{"role": "user", "content": [{"type": "image"}]}]})"),
      "\"image\""));
}

TEST(Dataset, WrongTypesAreNamed) {
  for (const char* line :
       {R"({"messages": "x"})", R"({"messages": []})", R"({"messages": [5]})",
        R"({"messages": [{"role": "user"}]})", R"({"messages": [{"content": "x"}]})",
        R"({"messages": [{"role": 1, "content": "x"}]})", R"({"messages": [{"role": "", "content": "x"}]})",
        R"({"messages": [{"role": "user", "content": 5}]})",
        R"({"messages": [{"role": "user", "content": [{"type": "text"}]}]})",
        R"({"messages": [{"role": "user", "content": [5]}]})", R"({"conversations": {}})",
        R"({"conversations": []})", R"({"conversations": [{"from": "human"}]})", R"({"text": 5})",
        R"({"instruction": 5, "output": "x"})", R"({"instruction": "x", "input": [], "output": "x"})",
        R"({"prompt": 1, "completion": "x"})", R"({"prompt": [], "completion": "x"})"}) {
    EXPECT_TRUE(has(refusal(ErrorCode::kCorruptFile, line), "data.jsonl: line 1: ")) << line;
  }
}

TEST(Dataset, WithoutExamplesIsAnError) {
  for (const char* bytes : {"", "\n\n", "[]", "\xef\xbb\xbf"}) refusal(ErrorCode::kInvalidArgument, bytes);
  testing::error_of(ErrorCode::kInvalidArgument,
                    [] { parse_dataset("", DatasetSyntax::kPlainText, "a.txt"); });
}

TEST(Dataset, FilesAreReadByExtension) {
  const testing::TemporaryFolder folder;
  write_file_atomically(folder.path() / "a.JSONL", std::string(kHi) + "\n");
  write_file_atomically(folder.path() / "wiki.raw", "\xef\xbb\xbfline\r\n{not json\n");
  write_file_atomically(folder.path() / "bad.txt", "one\ntwo \xc3\n");
  EXPECT_EQ(load_dataset(folder.path() / "a.JSONL").kind, DatasetKind::kChat);
  const Dataset text = load_dataset(folder.path() / "wiki.raw");
  EXPECT_EQ(text.kind, DatasetKind::kPlainText);
  EXPECT_EQ(text.examples.at(0).text, "line\r\n{not json\n");
  EXPECT_TRUE(
      has(testing::error_of(ErrorCode::kCorruptFile, [&] { load_dataset(folder.path() / "bad.txt"); }),
          "bad.txt: line 2 is not UTF-8"));
  testing::error_of(ErrorCode::kNotFound, [&] { load_dataset(folder.path() / "none.jsonl"); });
}

TEST(Dataset, RealDialoguesAreRead) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const Dataset data = load_dataset(material / "fraud-teleantifraud-zh/test_chat.jsonl");
  EXPECT_EQ(data.examples.size(), 1200u);
  EXPECT_EQ(data.examples[0].id, "test-00000");
  EXPECT_EQ(data.examples[0].messages.size(), 3u);
  EXPECT_EQ(data.examples[0].messages[2].content, "{\"is_fraud\": false}");
}

// Expected: Python's hashlib over b"user\\0Hi\\0".
TEST(DialogueHash, IsOfTheQuestionAlone) {
  const Message hi{"user", "Hi"};
  EXPECT_EQ(dialogue_hash({hi}), "31c19b7f68f14920");
  EXPECT_EQ(dialogue_hash({hi, {"assistant", "Yes"}}), dialogue_hash({hi}));
  EXPECT_NE(dialogue_hash({hi, {"assistant", "Yes"}, hi}), dialogue_hash({hi}));
  EXPECT_NE(dialogue_hash({{"user", "H"}, {"i", ""}}), dialogue_hash({hi}));
  EXPECT_EQ(dialogue_hash({}).size(), 16u);
}

}  // namespace
}  // namespace lowbit
