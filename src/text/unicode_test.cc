#include "text/unicode.h"

#include "support.h"

namespace lowbit {
namespace {

std::string normalized(std::string_view text, NormalForm form) {
  std::string out;
  append_normalized(out, text, form);
  return out;
}

TEST(Utf8, EveryCharacterReadsBack) {
  for (uint32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    const std::string text = to_utf8(c);
    const CodePoint back = decode_utf8(text, 0);
    ASSERT_EQ(back.value, c);
    ASSERT_EQ(back.length, text.size());
    ASSERT_EQ(decode_utf8_before(text, text.size()).value, c);
    const Utf8Unit unit = next_utf8_unit(text, 0);
    ASSERT_TRUE(unit.is_valid && unit.length == text.size());
  }
}

TEST(Utf8, OverlongFormsSurrogatesAndTooLargeValuesAreInvalid) {
  for (std::string_view bad :
       {"\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xF0\x8F\xBF\xBF", "\xED\xA0\x80", "\xED\xBF\xBF",
        "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\x80", "\xFF", "\xE4\xBD", "a\xF0\x9F\x98"}) {
    EXPECT_FALSE(is_utf8(bad)) << ::testing::PrintToString(std::string(bad));
  }
  EXPECT_TRUE(is_utf8("\xF4\x8F\xBF\xBF"));
  EXPECT_TRUE(is_utf8(std::string_view("a\0b", 3)));
}

TEST(Utf8, OnlyAPrefixOfACharacterAtTheEndIsTruncated) {
  EXPECT_TRUE(next_utf8_unit("\xE4\xBD", 0).is_truncated);
  EXPECT_EQ(next_utf8_unit("\xE4\xBD", 0).length, 2u);
  EXPECT_FALSE(next_utf8_unit("\xE4\xBDz", 0).is_truncated);
  EXPECT_FALSE(next_utf8_unit("\xED\xA0", 0).is_truncated);
}

TEST(NormalForm, ComposesAndDecomposes) {
  EXPECT_EQ(normalized("e\u0301", NormalForm::kNfc), "\u00E9");
  EXPECT_EQ(normalized("\u00E9", NormalForm::kNfd), "e\u0301");
  EXPECT_EQ(normalized("\uFB01\u2460", NormalForm::kNfkc), "fi1");
  EXPECT_EQ(normalized("\u1100\u1161\u11A8", NormalForm::kNfc), "\uAC01");
  EXPECT_EQ(normalized("a\u0301\u0323", NormalForm::kNfd), "a\u0323\u0301");
  EXPECT_EQ(normalized("", NormalForm::kNfc), "");
}

// HF tokenizers' normal forms know the marks of Unicode 11 at most: newer ones neither move nor let others
// compose.
TEST(NormalForm, NewerMarksDoNotCombine) {
  EXPECT_EQ(normalized("a\u0301\u1DFA", NormalForm::kNfd), "a\u0301\u1DFA");
  EXPECT_EQ(normalized("a\u1DFA\u0301", NormalForm::kNfc), "a\u1DFA\u0301");
  EXPECT_EQ(normalized("a\u1DFAe\u0301", NormalForm::kNfc), "a\u1DFA\u00E9");
}

TEST(Grapheme, ClustersEndWhereAnnex29SaysSo) {
  const auto end_of_first = [](std::string_view text) { return grapheme_end(text, 0); };
  EXPECT_EQ(end_of_first("ab"), 1u);
  EXPECT_EQ(end_of_first("\r\n\n"), 2u);
  EXPECT_EQ(end_of_first("e\u0301\u0323x"), 5u);
  EXPECT_EQ(end_of_first("\u1100\u1161\u11A8\u1100"), 9u);
  EXPECT_EQ(end_of_first("\U0001F468\u200D\U0001F469a"), 11u);
  EXPECT_EQ(grapheme_end("ae\u0301", 1), 4u);
}

// Marks in descending order make a naive canonical sort quadratic: half a million of them would take minutes.
TEST(NormalForm, ManyMarksTakeLinearTime) {
  std::string marks = "a";
  for (int i = 0; i < 250'000; ++i) marks += "\u0301";
  for (int i = 0; i < 250'000; ++i) marks += "\u0323";
  std::string out;
  EXPECT_LT(testing::processor_seconds([&] { out = normalized(marks, NormalForm::kNfd); }), 10);
  EXPECT_EQ(out.size(), marks.size());
  EXPECT_EQ(out.substr(0, 3), "a\u0323");
}

TEST(UnicodeClass, IsThatOfTheReference) {
  EXPECT_TRUE(is_letter(0x4F60) && is_letter('z') && is_letter(0x13C86) && !is_letter('1') &&
              !is_letter(0x301));
  EXPECT_TRUE(is_number('7') && is_number(0xB2) && is_number(0x2167) && is_number(0x3007) &&
              !is_number(0x4E00));
  EXPECT_TRUE(is_space(0x3000) && is_space(0x85) && !is_space(0x200B) && !is_space(0x180E) &&
              !is_space(0x1C));
  EXPECT_TRUE(is_word('_') && is_word(0x301) && is_word(0x24B6) && !is_word(0xB2) && !is_word('-'));
  EXPECT_TRUE(is_punctuation('$') && is_punctuation(0xFF0C) && !is_punctuation(0x20AC));
}

}  // namespace
}  // namespace lowbit
