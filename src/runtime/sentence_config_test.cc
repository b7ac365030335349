#include "runtime/sentence_config.h"

#include "support.h"

#include <gtest/gtest.h>

namespace lowbit {
namespace {

using Reader = void (*)(const Json&, std::string_view, SentenceConfig&);

SentenceConfig read(Reader reader, std::string_view text) {
  SentenceConfig config;
  reader(parse_json(text, "f"), "f", config);
  return config;
}
std::string refusal(Reader reader, std::string_view text, ErrorCode code) {
  return testing::error_of(code, [&] { read(reader, text); });
}

TEST(SentenceConfig, SaysLengthPoolingAndNorm) {
  EXPECT_EQ(read(read_lengths, R"({"max_seq_length": 256, "do_lower_case": false})").max_length, 256);
  EXPECT_EQ(read(read_lengths, R"({"max_seq_length": null})").max_length, 0);
  EXPECT_EQ(
      read(read_pooling, R"({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false})").pooling,
      "cls");
  EXPECT_EQ(read(read_pooling, R"({"pooling_mode": "mean"})").pooling, "mean");
  EXPECT_TRUE(read(read_modules, R"([{"type": "a.Transformer"}, {"type": "a.Normalize"}])").is_normalized);
  EXPECT_FALSE(read(read_modules, R"([{"type": "Pooling"}])").is_normalized);
}

TEST(SentenceConfig, WhatIsOfAnotherTypeIsACorruptFile) {
  for (const char* text :
       {R"({"max_seq_length": 0})", R"({"max_seq_length": -5})", R"({"max_seq_length": "8"})"})
    EXPECT_NE(refusal(read_lengths, text, ErrorCode::kCorruptFile).find("max_seq_length"), std::string::npos);
  EXPECT_NE(refusal(read_pooling, "[]", ErrorCode::kCorruptFile).find("an object"), std::string::npos);
  EXPECT_NE(refusal(read_modules, "{}", ErrorCode::kCorruptFile).find("an array"), std::string::npos);
  for (const char* text : {"[5]", R"([{"type": 5}])", "[{}]"})
    EXPECT_NE(refusal(read_modules, text, ErrorCode::kCorruptFile).find("with a type"), std::string::npos);
}

TEST(SentenceConfig, OtherStepsAreUnsupported) {
  refusal(read_lengths, R"({"do_lower_case": true})", ErrorCode::kUnsupported);
  refusal(read_pooling, R"({"pooling_mode_max_tokens": true})", ErrorCode::kUnsupported);
  refusal(read_pooling, "{}", ErrorCode::kUnsupported);
  refusal(read_modules, R"([{"type": "x.Dense"}])", ErrorCode::kUnsupported);
}

}  // namespace
}  // namespace lowbit
