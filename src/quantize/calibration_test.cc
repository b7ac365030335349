// The user's file as token sequences, with the demo model's tokenizer and template.
#include "quantize/calibration.h"

#include "lowbit/chat.h"
#include "lowbit/dataset.h"
#include "support.h"

#include <algorithm>
#include <fmt/format.h>
#include <fstream>
#include <gtest/gtest.h>
#include <set>

namespace lowbit {
namespace {

namespace fs = std::filesystem;
using testing::error_of;
using Ids = std::vector<int32_t>;

constexpr int64_t kPositions = 2048;

fs::path model() { return fs::path(LOWBIT_SOURCE_DIR) / "demo" / "model"; }

class CalibrationData : public ::testing::Test {
 protected:
  fs::path write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_.path() / name, std::ios::binary) << text;
    return folder_.path() / name;
  }

  // Lines {"text": "Sentence number 7."}, longer ones for higher numbers when asked.
  fs::path write_lines(int count, int repeats = 1) const {
    std::string lines;
    for (int i = 0; i < count; ++i) {
      std::string text;
      for (int k = 0; k < repeats; ++k) text += fmt::format("Sentence number {}. ", i);
      lines += fmt::format("{{\"text\": \"{}\"}}\n", text);
    }
    return write("lines.jsonl", lines);
  }

  static Calibration load(const fs::path& data, int64_t samples, int64_t max_length, uint64_t seed = 0,
                          int64_t positions = kPositions) {
    return load_calibration(
        model(), {.data = data, .samples = samples, .max_length = max_length, .seed = seed}, positions);
  }

  const Tokenizer tokenizer_ = Tokenizer::load(model());
  const testing::TemporaryFolder folder_;
};

bool has(const std::vector<std::string>& warnings, std::string_view part) {
  return std::any_of(warnings.begin(), warnings.end(),
                     [&](const std::string& warning) { return warning.find(part) != std::string::npos; });
}

int64_t token_count(const std::vector<Ids>& sequences) {
  int64_t count = 0;
  for (const Ids& ids : sequences) count += static_cast<int64_t>(ids.size());
  return count;
}

TEST_F(CalibrationData, PlainTextIsCutIntoConsecutiveWindows) {
  std::string text;
  for (int i = 0; i < 60; ++i) text += fmt::format("Sentence number {} of a plain text.\n", i);
  const Ids ids = tokenizer_.encode(text);
  constexpr int64_t kLength = 16;
  const Calibration all = load(write("text.txt", text), 1000, kLength);
  EXPECT_EQ(all.kind, "plain text");
  EXPECT_EQ(all.examples, static_cast<int64_t>(ids.size()) / kLength) << "the rest is no window";
  EXPECT_EQ(all.truncated, 0);
  std::set<int64_t> places;
  int64_t last = -1;
  for (const auto* part : {&all.samples, &all.held_back}) {
    for (const Ids& window : *part) {
      ASSERT_EQ(static_cast<int64_t>(window.size()), kLength);
      const int64_t place = std::search(ids.begin(), ids.end(), window.begin(), window.end()) - ids.begin();
      EXPECT_EQ(place % kLength, 0);
      EXPECT_TRUE(places.insert(place).second) << "window " << place << " twice";
      if (part == &all.samples) {
        EXPECT_GT(place, last) << "samples stand in the order of the file";
      }
      last = place;
    }
  }
  EXPECT_EQ(static_cast<int64_t>(places.size()) + all.dropped, all.examples);
}

TEST_F(CalibrationData, ATextShorterThanAWindowIsOneSample) {
  const Calibration one = load(write("text.txt", "Only a few words."), 128, 512);
  ASSERT_EQ(one.samples.size(), 1u);
  EXPECT_EQ(one.samples[0], tokenizer_.encode("Only a few words."));
  EXPECT_TRUE(one.held_back.empty()) << "the only sample is not held back";
}

TEST_F(CalibrationData, LongSamplesKeepTheirHeadAndAreCounted) {
  const Calibration cut = load(write_lines(6, 10), 128, 12);
  EXPECT_EQ(cut.truncated, static_cast<int64_t>(cut.samples.size()));
  EXPECT_TRUE(has(cut.warnings, "were cut to 12 tokens"));
  EncodeOptions with_special;
  with_special.add_special_tokens = true;
  std::string text;
  for (int k = 0; k < 10; ++k) text += "Sentence number 3. ";
  Ids head = tokenizer_.encode(text, with_special);
  head.resize(12);
  const bool is_sample = std::count(cut.samples.begin(), cut.samples.end(), head) == 1;
  EXPECT_NE(is_sample, std::count(cut.held_back.begin(), cut.held_back.end(), head) == 1);
}

TEST_F(CalibrationData, NoMoreSamplesThanAskedForAndOthersAreHeldBack) {
  const fs::path data = write_lines(100);
  const Calibration some = load(data, 40, 64);
  EXPECT_EQ(some.samples.size(), 40u);
  EXPECT_EQ(some.held_back.size(), 2u) << "5 % more, at least two";
  EXPECT_EQ(some.examples, 100);
  EXPECT_EQ(some.tokens, token_count(some.samples)) << "what is held back does not count";
  for (const Ids& ids : some.held_back)
    EXPECT_EQ(std::count(some.samples.begin(), some.samples.end(), ids), 0);
  EXPECT_EQ(load(data, 40, 64).samples, some.samples);
  EXPECT_NE(load(data, 40, 64, 1).samples, some.samples) << "another seed, another choice";
  const Calibration most = load(data, 98, 64);
  EXPECT_EQ(most.held_back.size(), 5u) << "the check comes before the last samples";
  EXPECT_TRUE(has(most.warnings, "98 were asked for, 95 calibrate and 5 are held back"));
  const Calibration all = load(data, 128, 64);
  EXPECT_EQ(all.samples.size() + all.held_back.size(), 100u);
  EXPECT_TRUE(has(all.warnings, "holds 100 usable examples; 128 were asked for"));
}

TEST_F(CalibrationData, ChatsAreRenderedOnceWithTheirAnswerAndNothingBehind) {
  const fs::path file = fs::path(LOWBIT_SOURCE_DIR) / "demo" / "data" / "calibration.jsonl";
  const Calibration chats = load(file, 300, kPositions);
  EXPECT_EQ(chats.kind, "chat");
  ASSERT_EQ(chats.dialogue_hashes.size(), chats.samples.size());
  const Dataset data = load_dataset(file);
  const ChatTemplate chat_template = ChatTemplate::load(model());
  ChatOptions options;
  options.add_generation_prompt = false;
  size_t next = 0, shortest = SIZE_MAX, longest = 0;
  for (const Example& example : data.examples) {  // samples stand in the order of the file
    if (next == chats.samples.size()) break;
    const Ids ids = encode_chat(tokenizer_, chat_template, example.messages, options);
    if (ids != chats.samples[next]) continue;
    EXPECT_EQ(chats.dialogue_hashes[next++], dialogue_hash(example.messages));
    shortest = std::min(shortest, ids.size());
    longest = std::max(longest, ids.size());
  }
  EXPECT_EQ(next, chats.samples.size()) << "a sample that is no rendering of the file";
  // Lengths differ and add up: nothing was padded.
  EXPECT_LT(shortest, longest);
  EXPECT_EQ(chats.tokens, token_count(chats.samples));
  EXPECT_EQ(chats.longest(), static_cast<int64_t>(std::max(longest, [&] {
              size_t most = 0;
              for (const Ids& ids : chats.held_back) most = std::max(most, ids.size());
              return most;
            }())));
}

TEST_F(CalibrationData, RepeatedAndOneTokenExamplesAreDropped) {
  std::string lines;
  for (int i = 0; i < 5; ++i) lines += "{\"text\": \"The same words.\"}\n{\"text\": \"a\"}\n";
  lines += "{\"text\": \"Other words.\"}\n";
  const Calibration kept = load(write("lines.jsonl", lines), 128, 64);
  EXPECT_EQ(kept.samples.size(), 2u);
  EXPECT_EQ(kept.dropped, 9);
}

TEST_F(CalibrationData, NothingUsableIsAnErrorThatNamesTheFile) {
  const fs::path data = write("lines.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
  const std::string message = error_of(ErrorCode::kInvalidArgument, [&] { load(data, 8, 64); });
  EXPECT_NE(message.find(data.string()), std::string::npos) << message;
  EXPECT_NE(message.find("none of its 2 examples"), std::string::npos) << message;
}

TEST_F(CalibrationData, SamplesAreNeverLongerThanTheModelsPositions) {
  const Calibration cut = load(write_lines(6, 10), 128, 1000, 0, 20);
  EXPECT_EQ(cut.longest(), 20);
  EXPECT_TRUE(has(cut.warnings, "max_length 1000 is more than the model's 20 positions"));
}

}  // namespace
}  // namespace lowbit
