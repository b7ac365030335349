#include "lowbit/tokenizer.h"
#include "support.h"
#include "text/precompiled_charsmap.h"

#include <map>

namespace lowbit {
namespace {

#define EXPECT_CONTAINS(text, part) EXPECT_NE(std::string(text).find(part), std::string::npos) << (text)

using Ids = std::vector<int32_t>;

Tokenizer unigram(const std::string& vocab, const std::string& model_rest = "",
                  const std::string& rest = "") {
  return Tokenizer::from_json(
      R"({"model":{"type":"Unigram","vocab":)" + vocab + model_rest + "}" + rest + "}", "", "test.json");
}

const std::string kVocab =
    R"([["<unk>",0],["a",-2],["b",-2],["ab",-3.5],["abb",-5],["bb",-1],["\u00e9\u00e9",-9],["<0xC3>",-9],["<0xA9>",-9]])";
const std::string kUnk = R"(,"unk_id":0)";

TEST(Unigram, TheLargestSumOfScoresCounts) {
  const Tokenizer tokenizer = unigram(kVocab, kUnk);
  EXPECT_EQ(tokenizer.encode("ab"), (Ids{3}));       // -3.5 > -4
  EXPECT_EQ(tokenizer.encode("abb"), (Ids{1, 5}));   // -3 > -5 and -5.5
  EXPECT_EQ(tokenizer.encode("abab"), (Ids{3, 3}));  // -7
  EXPECT_EQ(tokenizer.encode("abbb"), (Ids{3, 5}));  // -4.5 > -5 of a, bb, b
  EXPECT_EQ(tokenizer.encode(""), Ids{});
}

TEST(Unigram, AmongEqualSumsTheFirstTokenThatBeganEarlierStays) {
  const Tokenizer tokenizer = unigram(R"([["a",-1],["b",-1],["ab",-2],["ba",-2],["aba",-3]])");
  EXPECT_EQ(tokenizer.encode("ab"), (Ids{2}));   // -2 both ways
  EXPECT_EQ(tokenizer.encode("aba"), (Ids{4}));  // -3 every way
}

TEST(Unigram, NeighbouringUnknownCharactersAreOneToken) {
  const Tokenizer tokenizer = unigram(kVocab, kUnk);
  EXPECT_EQ(tokenizer.encode("xyza\u4F60\u597Db"), (Ids{0, 1, 0, 2}));
  EXPECT_EQ(tokenizer.encode("x<unk>ya"), (Ids{0, 1}));  // as HF: the token's own spelling joins them
  EXPECT_EQ(tokenizer.unk_id(), 0);
}

TEST(Unigram, UnknownCharactersBecomeBytesWhereAllOfThemAreTokens) {
  const Tokenizer tokenizer = unigram(kVocab, kUnk + R"(,"byte_fallback":true)");
  EXPECT_EQ(tokenizer.encode("a\u00e9b"), (Ids{1, 7, 8, 2}));
  EXPECT_EQ(tokenizer.encode("a\u00e9xb"), (Ids{1, 0, 2}));  // no token for the byte of x
  EXPECT_EQ(tokenizer.encode("\u00e9\u00e9"), (Ids{6}));
}

TEST(Unigram, WithoutUnkIdAnUnknownCharacterIsAnError) {
  const Tokenizer tokenizer = unigram(kVocab);
  EXPECT_EQ(tokenizer.encode("ab"), (Ids{3}));
  EXPECT_CONTAINS(testing::error_of(ErrorCode::kInvalidArgument, [&] { tokenizer.encode("ab\u4F60"); }),
                  "\u4F60");
}

TEST(Unigram, OfTwoTokensAlikeTheLastOneIsFoundAndBothAreRead) {
  const Tokenizer tokenizer = unigram(R"([["<unk>",0],["a",-1],["a",-3],["",0]])", kUnk);
  EXPECT_EQ(tokenizer.encode("aa"), (Ids{2, 2}));
  EXPECT_EQ(tokenizer.token(1), "a");
  EXPECT_EQ(tokenizer.vocab_size(), 4);
}

TEST(Unigram, BadFilesAreNamed) {
  const auto corrupt = [](const std::string& vocab, const std::string& rest, const char* part) {
    const std::string message = testing::error_of(ErrorCode::kCorruptFile, [&] { unigram(vocab, rest); });
    EXPECT_CONTAINS(message, part);
    EXPECT_CONTAINS(message, "test.json");
  };
  corrupt("[]", "", "empty");
  corrupt("[]", kUnk, "empty");
  corrupt(kVocab, R"(,"unk_id":9)", "\"unk_id\" is 9, the vocabulary has 0 to 8");
  corrupt(kVocab, R"(,"unk_id":-1)", "-1");
  corrupt(kVocab, R"(,"unk_id":18446744073709551615)", "");
  corrupt(kVocab, R"(,"unk_id":"<unk>")", "string");
  corrupt(R"([["a"]])", "", "entry 0");
  corrupt(R"([["a",0],["b",0,0]])", "", "entry 1");
  corrupt(R"([["a",0],"b"])", "", "entry 1");
  corrupt(R"([["a","0"]])", "", "number");
  corrupt(R"([["a",NaN]])", "", "");
  corrupt(R"([["a",1e999]])", "", "");
  corrupt(R"({"a":0})", "", "array");
  testing::error_of(ErrorCode::kUnsupported, [] { unigram("[[\"" + std::string(1025, 'a') + "\",0]]"); });
}

TEST(Unigram, TimeGrowsWithTheLengthOfTheText) {
  std::string vocab = R"([["<unk>",0])";
  for (size_t i = 1; i <= 64; ++i) vocab += ",[\"" + std::string(i, 'a') + "\",-" + std::to_string(i) + "]";
  const Tokenizer tokenizer = unigram(vocab + "]", kUnk);
  const std::string text(200'000, 'a');
  Ids ids;
  EXPECT_LT(testing::processor_seconds([&] { ids = tokenizer.encode(text); }),
            5);  // 0.1 s in a release build
  EXPECT_EQ(ids.size(), text.size() / 64);
}

// --- precompiled_charsmap ---

std::string base64(const std::string& bytes) {
  static const char* const kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t bits = 0;
    for (size_t k = 0; k < 3; ++k)
      bits = bits << 8 | (i + k < bytes.size() ? static_cast<unsigned char>(bytes[i + k]) : 0u);
    for (size_t k = 0; k < 4; ++k) out += i + k > bytes.size() ? '=' : kDigits[bits >> (18 - 6 * k) & 63];
  }
  return out;
}

// A map of the same layout as SentencePiece's, though wasteful: every node has 256 units of its own.
struct Map {
  std::vector<uint32_t> units = std::vector<uint32_t>(256);
  std::string replacements;
  uint32_t trie_bytes = 0;  // 0: as many as there are

  explicit Map(std::initializer_list<std::pair<const std::string, std::string>> list) {
    const std::map<std::string, std::string> rules = list;
    std::map<std::string, uint32_t> bases = {{"", 0}};
    for (const auto& [key, replacement] : rules) {
      for (size_t length = 1; length <= key.size(); ++length) {
        const auto [node, is_new] =
            bases.try_emplace(key.substr(0, length), static_cast<uint32_t>(units.size()));
        if (!is_new) continue;
        units.resize(units.size() + 256);
        const auto byte = static_cast<unsigned char>(key[length - 1]);
        const uint32_t position = bases[key.substr(0, length - 1)] ^ byte;
        units[position] = (position ^ node->second) << 10 | byte;
        if (rules.count(node->first) > 0) units[position] |= 1 << 8;
      }
      units[bases[key]] = static_cast<uint32_t>(replacements.size()) | 1u << 31;
      replacements += replacement + '\0';
    }
  }

  std::string encoded() const {
    std::string bytes;
    const auto put = [&](uint32_t value) {
      for (int shift = 0; shift < 32; shift += 8) bytes += static_cast<char>(value >> shift & 255);
    };
    put(trie_bytes > 0 ? trie_bytes : static_cast<uint32_t>(4 * units.size()));
    for (uint32_t unit : units) put(unit);
    return base64(bytes + replacements);
  }
};

TEST(PrecompiledCharsmap, TheShortestKeyCounts) {
  const PrecompiledCharsmap map =
      PrecompiledCharsmap::from_base64(Map({{"ab", "1"}, {"abc", "2"}, {"\u00e9", ""}}).encoded());
  EXPECT_EQ(map.find("abc"), "1");
  EXPECT_EQ(map.find("a"), std::nullopt);
  EXPECT_EQ(map.find("\u00e9x"), "");
  EXPECT_EQ(map.find("x"), std::nullopt);
  EXPECT_EQ(map.find(""), std::nullopt);
  EXPECT_EQ(map.find(std::string_view("\0", 1)), std::nullopt);
}

std::string normalized(const Map& map, const std::string& text) {
  const Tokenizer tokenizer =
      unigram(R"([["<unk>",0],["a",0],["b",0],["c",0],["\u0301",0],["1",0],["2",0]])", kUnk,
              R"(,"normalizer":{"type":"Precompiled","precompiled_charsmap":")" + map.encoded() +
                  R"("},"decoder":{"type":"Fuse"})");
  return tokenizer.decode(tokenizer.encode(text));
}

TEST(PrecompiledCharsmap, ShortClustersAreReplacedAsAWholeAndLongOnesByCharacters) {
  EXPECT_EQ(normalized(Map({{"a\u0301", "1"}}), "aa\u0301b"), "a1b");
  EXPECT_EQ(normalized(Map({{"ab", "1"}}), "ab"), "ab");       // two clusters
  EXPECT_EQ(normalized(Map({{"a", "1"}}), "a\u0301b"), "1b");  // its shortest key takes the mark along
  EXPECT_EQ(normalized(Map({{"a", "1"}}), "a\u0301\u0301\u0301b"), "1\u0301\u0301\u0301b");  // 7 bytes
  EXPECT_EQ(normalized(Map({{"a", ""}, {"c", "222"}}), "abc"), "b222");
}

TEST(PrecompiledCharsmap, BadMapsAreNamed) {
  const auto corrupt = [](const std::string& text, const char* part) {
    EXPECT_CONTAINS(
        testing::error_of(ErrorCode::kCorruptFile, [&] { PrecompiledCharsmap::from_base64(text); }), part);
  };
  const Map good({{"ab", "1"}, {"ac", "\u00e9"}});
  const std::string text = good.encoded();
  corrupt("", "at least 4");
  corrupt("AAAAAA==", "0 bytes");
  corrupt(text.substr(0, text.size() - 2), "multiple of 4");
  corrupt(text.substr(0, text.size() / 8 * 4), "truncated");
  corrupt(text.substr(0, 8) + "?" + text.substr(9), "character 8");
  corrupt(text.substr(0, 8) + "=" + text.substr(9), "character 8");
  const auto changed = [&](auto change) {
    Map map = good;
    change(map);
    return map.encoded();
  };
  corrupt(changed([](Map& map) { map.trie_bytes = 0xFFFFFFFC; }), "4294967292");
  corrupt(changed([](Map& map) { map.trie_bytes = 1023; }), "multiple of 4");
  const uint32_t a = 'a', b = 256 ^ 'b';  // units of the root's child, and of its first child
  corrupt(changed([&](Map& map) { map.units[b] = b << 10 | 'b'; }), "loops at unit 0");
  corrupt(changed([&](Map& map) { map.units[b] = (b ^ 256) << 10 | 'b'; }), "loops at unit 256");
  corrupt(changed([&](Map& map) { map.units[a] = 0x1FFFFF << 10 | 0x200 | 'a'; }), "points to unit");
  corrupt(changed([&](Map& map) { map.units[0] = 0x100000 << 10; }), "points to unit");
  corrupt(changed([&](Map& map) { map.units[512] = 0x7FFFFFFF; }), "points to byte 2147483647");
  corrupt(changed([&](Map& map) { map.units[512] = 3; }), "into a character");
  corrupt(changed([](Map& map) { map.replacements[2] = '\xFF'; }), "UTF-8");
  testing::error_of(ErrorCode::kUnsupported,
                    [] { PrecompiledCharsmap::from_base64(std::string(8 << 20, 'A')); });
}

}  // namespace
}  // namespace lowbit
