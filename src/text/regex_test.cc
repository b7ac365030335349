#include "text/regex.h"

#include "support.h"
#include "text/tokenizer_pattern.h"
#include "text/unicode.h"

#include <chrono>

namespace lowbit {
namespace {

std::vector<std::string> matches_of(std::string_view pattern, std::string_view text) {
  std::vector<TextRange> ranges;
  Regex(pattern).find_all(text, ranges);
  std::vector<std::string> out;
  for (const TextRange& range : ranges) out.emplace_back(text.substr(range.begin, range.end - range.begin));
  return out;
}

using Strings = std::vector<std::string>;

TEST(Regex, ClassesMeanWhatTheyMeanInOniguruma) {
  EXPECT_EQ(matches_of("\\s", "a\u3000b\u180Ec\u0085d"), (Strings{"\u3000", "\u0085"}));
  EXPECT_EQ(matches_of("[\\sx]+", "a x\u00A0b"), (Strings{" x\u00A0"}));
  EXPECT_EQ(matches_of("\\h+", "xyzBEEFg"), (Strings{"BEEF"}));
  EXPECT_EQ(matches_of("^b$", "a\nb\nc"), (Strings{"b"}));
}

TEST(Regex, AClassInAClassIsTheirUnion) {
  EXPECT_EQ(matches_of("[a[bc]d]+", "xabcdy"), (Strings{"abcd"}));
  EXPECT_EQ(matches_of("[^a[bc]\\s]+", "xay zc"), (Strings{"x", "y", "z"}));
  // BLOOM's split: the parentheses and the bar belong to the class.
  EXPECT_EQ(matches_of(R"( ?[^(\s|[.,!?…。，、।۔،])]+)", "Ab (c|d), e…f"),
            (Strings{"Ab", "c", "d", " e", "f"}));
}

TEST(Regex, AnEmptyMatchAfterAMatchDoesNotCount) {
  EXPECT_EQ(matches_of("b*", "abba"), (Strings{"", "bb", ""}));
}

TEST(Regex, UnsupportedSyntaxIsNamed) {
  for (const char* bad : {"(", "[a&&b]", "[a[^b]]", "[a-[b]]", "[[a]-z]", "[a[]b]", "(?m:.)", "[\\W]",
                          "\\p{NoSuchScript}", "a{70000}"}) {
    const std::string message = testing::error_of(ErrorCode::kUnsupported, [&] { Regex{bad}; });
    EXPECT_NE(message.find(bad), message.npos) << message;
  }
}

TEST(Regex, CatastrophicBacktrackingIsAnError) {
  const std::string text = std::string(40, 'a') + "!";
  const auto start = std::chrono::steady_clock::now();
  testing::error_of(ErrorCode::kUnsupported, [&] { matches_of("(a+)+$", text); });
  testing::error_of(ErrorCode::kUnsupported, [&] { matches_of("(a|a)*$", text); });
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

// The hand-written splitters against the patterns that they stand for.
TEST(SplitRules, AreThePatternsTheyStandFor) {
  const char* const patterns[] = {
      R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
  };
  // All strings of up to five of these characters would be many; a walk through pairs of triples has every
  // transition.
  const std::string_view alphabet[] = {"a", "S",      "7",      " ",      "\n",     "\r", "\t", "'",
                                       "!", "\u3000", "\u4F60", "\u0301", "\u017F", "l",  "e",  "v"};
  uint32_t random = 12345;
  for (const char* pattern : patterns) {
    const auto rules = known_split_rules(pattern);
    ASSERT_TRUE(rules.has_value());
    const Regex regex(pattern);
    for (int round = 0; round < 4000; ++round) {
      std::string text;
      for (int i = 0; i < 14; ++i) {
        random = random * 1664525 + 1013904223;
        text += alphabet[random >> 16 & 15];
      }
      std::vector<TextRange> by_rules, by_regex;
      split_by_rules(*rules, text, by_rules);
      regex.find_all(text, by_regex);
      ASSERT_EQ(by_rules.size(), by_regex.size()) << text;
      for (size_t i = 0; i < by_rules.size(); ++i) {
        ASSERT_EQ(by_rules[i].begin, by_regex[i].begin) << text;
        ASSERT_EQ(by_rules[i].end, by_regex[i].end) << text;
      }
    }
  }
}

}  // namespace
}  // namespace lowbit
