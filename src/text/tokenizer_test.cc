#include "lowbit/tokenizer.h"

#include "base/files.h"
#include "support.h"
#include "text/unicode.h"

#include <algorithm>
#include <thread>

namespace lowbit {
namespace {

namespace fs = std::filesystem;
using Ids = std::vector<int32_t>;

constexpr const char* kByteAlphabetWord = "abcdefgh";

// A tokenizer.json around a model, with further members in `rest` (each begins with a comma).
std::string file_with(const std::string& model, const std::string& rest = "") {
  return "{\"version\":\"1.0\",\"model\":" + model + rest + "}";
}

const std::string kBpe =
    R"({"type":"BPE","vocab":{"a":0,"b":1,"c":2,"ab":3," ":4,"<":5,"x":6,">":7},"merges":["a b"]})";

std::string added(int id, const std::string& content, const std::string& flags = "") {
  return "{\"id\":" + std::to_string(id) + ",\"content\":\"" + content +
         "\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false," +
         "\"normalized\":false,\"special\":true" + flags + "}";
}

Tokenizer from(const std::string& json, const std::string& config = "") {
  return Tokenizer::from_json(json, config, "test.json");
}

std::string error_of_file(ErrorCode code, const std::string& json, const std::string& config = "") {
  return testing::error_of(code, [&] { from(json, config); });
}

Tokenizer small(const char* name) {
  return Tokenizer::load(fs::path(LOWBIT_SOURCE_DIR) / "tests/golden/tokenizers" / name);
}

// --- special tokens ---

TEST(Tokenizer, SpecialTokensInTextStayTextUnlessAsked) {
  const Tokenizer tokenizer = from(file_with(kBpe, ",\"added_tokens\":[" + added(8, "<x>") + "]"));
  EXPECT_EQ(tokenizer.encode("a<x>b"), (Ids{0, 5, 6, 7, 1}));
  EXPECT_EQ(tokenizer.encode("a<x>b", {.parse_special_tokens = true}), (Ids{0, 8, 1}));
  EXPECT_TRUE(tokenizer.is_special(8));
  EXPECT_FALSE(tokenizer.is_special(0));
}

TEST(Tokenizer, NothingIsSpecialInALiteralRange) {
  const Tokenizer tokenizer = from(file_with(kBpe, ",\"added_tokens\":[" + added(8, "<x>") + "]"));
  const std::string text = "<x>a<x><x>";
  const TextRange user[] = {{3, 7}};
  EXPECT_EQ(tokenizer.encode(text, {.parse_special_tokens = true, .literal = user}), (Ids{8, 0, 5, 6, 7, 8}));
  // A token that is half typed by the user and half written by the template is not special either.
  const TextRange half[] = {{8, 9}};
  EXPECT_EQ(tokenizer.encode(text, {.parse_special_tokens = true, .literal = half}), (Ids{8, 0, 8, 5, 6, 7}));
  const TextRange empty[] = {{4, 4}};
  EXPECT_EQ(tokenizer.encode(text, {.parse_special_tokens = true, .literal = empty}), (Ids{8, 0, 8, 8}));
}

TEST(Tokenizer, LiteralTextDoesNotHideTheTokenAfterIt) {
  const std::string model = R"({"type":"BPE","vocab":{"a":0,"<":1,"x":2,">":3},"merges":[]})";
  const Tokenizer tokenizer =
      from(file_with(model, ",\"added_tokens\":[" + added(4, "a<") + "," + added(5, "<x>") + "]"));
  const TextRange user[] = {{0, 1}};
  EXPECT_EQ(tokenizer.encode("a<x>", {.parse_special_tokens = true, .literal = user}), (Ids{0, 5}));
}

TEST(Tokenizer, LiteralRangesHoldInNormalizedText) {
  const Tokenizer tokenizer = small("o200k_added");  // <norm> is special and normalized; NFC
  const int32_t norm = *tokenizer.find_token("<norm>");
  const std::string text = "e\u0301e\u0301<norm>\u4F60<norm>";
  const size_t second = text.rfind("<norm>");
  const TextRange user[] = {{0, text.find("<norm>") + 6}};
  const Ids ids = tokenizer.encode(text, {.parse_special_tokens = true, .literal = user});
  EXPECT_EQ(std::count(ids.begin(), ids.end(), norm), 1);
  EXPECT_EQ(ids.back(), norm);
  const TextRange last[] = {{second, text.size()}};
  const Ids other = tokenizer.encode(text, {.parse_special_tokens = true, .literal = last});
  EXPECT_EQ(std::count(other.begin(), other.end(), norm), 1);
  EXPECT_NE(other.back(), norm);
}

TEST(Tokenizer, LiteralRangesMustBeSortedAndInside) {
  const Tokenizer tokenizer = from(file_with(kBpe));
  const TextRange outside[] = {{0, 9}}, unsorted[] = {{2, 3}, {0, 1}}, backwards[] = {{2, 1}};
  for (std::span<const TextRange> ranges : {std::span<const TextRange>(outside), {unsorted}, {backwards}}) {
    testing::error_of(ErrorCode::kInvalidArgument,
                      [&] { tokenizer.encode("abc", {.parse_special_tokens = true, .literal = ranges}); });
  }
}

TEST(Tokenizer, OtherAddedTokensAreAlwaysFound) {
  const Tokenizer tokenizer =
      from(file_with(kBpe, ",\"added_tokens\":[" + added(8, "<x>", "") + "," +
                               R"({"id":9,"content":"cc","special":false,"normalized":false})" + "]"));
  EXPECT_EQ(tokenizer.encode("accb"), (Ids{0, 9, 1}));
}

TEST(Tokenizer, ConfigNamesTheSpecialTokens) {
  const Tokenizer tokenizer =
      from(file_with(kBpe, ",\"added_tokens\":[" + added(8, "<x>") + "]"),
           R"({"eos_token":{"content":"<x>"},"bos_token":"a","pad_token":null,"unk_token":"nowhere"})");
  EXPECT_EQ(tokenizer.eos_id(), 8);
  EXPECT_EQ(tokenizer.bos_id(), 0);
  EXPECT_EQ(tokenizer.pad_id(), std::nullopt);
  EXPECT_EQ(tokenizer.unk_id(), std::nullopt);
  EXPECT_TRUE(tokenizer.is_special(0));  // as transformers: what the config names is special
  EXPECT_EQ(tokenizer.vocab_size(), 9);
  EXPECT_EQ(tokenizer.token(3), "ab");
  EXPECT_EQ(tokenizer.token(100), "");
  EXPECT_EQ(tokenizer.find_token("ab"), 3);
  EXPECT_EQ(tokenizer.find_token("zz"), std::nullopt);
}

TEST(Tokenizer, ConfigSwitchesDecideOnBosAndEos) {
  const std::string config = R"({"bos_token":"a","eos_token":"b","add_bos_token":true,"add_eos_token":true})";
  EXPECT_EQ(from(file_with(kBpe), config).encode("c", {.add_special_tokens = true}), (Ids{0, 2, 1}));
  EXPECT_EQ(from(file_with(kBpe), R"({"bos_token":"a","add_bos_token":false})")
                .encode("c", {.add_special_tokens = true}),
            (Ids{2}));
}

TEST(Tokenizer, SpecialTokensMapIsReadWhereTheConfigIsSilent) {
  const testing::TemporaryFolder folder;
  write_file_atomically(folder.path() / "tokenizer.json", file_with(kBpe));
  write_file_atomically(folder.path() / "special_tokens_map.json",
                        R"({"eos_token":{"content":"c"},"bos_token":"b"})");
  write_file_atomically(folder.path() / "tokenizer_config.json", R"({"bos_token":"a"})");
  const Tokenizer tokenizer = Tokenizer::load(folder.path());
  EXPECT_EQ(tokenizer.eos_id(), 2);
  EXPECT_EQ(tokenizer.bos_id(), 0);
}

// --- decoding ---

TEST(Tokenizer, IdsWithoutATokenAreRefused) {
  const Tokenizer tokenizer = from(file_with(R"({"type":"BPE","vocab":{"a":0,"b":5},"merges":[]})"));
  EXPECT_EQ(tokenizer.vocab_size(), 6);
  for (int32_t id : {-1, 3, 6, INT32_MAX, INT32_MIN}) {
    const Ids ids = {0, id};
    const std::string message =
        testing::error_of(ErrorCode::kInvalidArgument, [&] { tokenizer.decode(ids); });
    EXPECT_NE(message.find(std::to_string(id)), message.npos) << message;
    StreamDecoder stream(tokenizer);
    testing::error_of(ErrorCode::kInvalidArgument, [&] { stream.push(id); });
    EXPECT_EQ(tokenizer.decode(ids, {.skip_unknown_ids = true}), "a");
  }
}

TEST(StreamDecoder, NeverGivesHalfACharacterAndEqualsDecode) {
  const std::string text = "a\u4F60\U0001F600e\u0301 \u05D0 z";
  for (const char* name : {"digits_bpe", "llama3_ignore_merges", "byte_fallback", "o200k_added"}) {
    const Tokenizer tokenizer = small(name);
    Ids ids = tokenizer.encode(text);
    ids.insert(ids.begin(),
               tokenizer.encode("\U0001F468\u200D\U0001F469").front());  // a torn character before
    StreamDecoder stream(tokenizer);
    std::string all;
    for (int32_t id : ids) {
      const std::string part = stream.push(id);
      EXPECT_TRUE(is_utf8(part)) << name;
      all += part;
    }
    EXPECT_EQ(all + stream.finish(), tokenizer.decode(ids)) << name;
  }
}

TEST(StreamDecoder, ATornCharacterAtTheEndBecomesOneReplacement) {
  const Tokenizer tokenizer = small("digits_bpe");
  Ids ids;
  for (const char* token : {"a", "\u00F0", "\u0141", "\u013A"})
    ids.push_back(*tokenizer.find_token(token));  // F0 9F 98
  EXPECT_EQ(tokenizer.decode(ids), "a\uFFFD");
  StreamDecoder stream(tokenizer);
  std::string all;
  for (int32_t id : ids) all += stream.push(id);
  EXPECT_EQ(all, "a");
  EXPECT_EQ(stream.finish(), "\uFFFD");
}

TEST(Decoder, StripDropsAtBothEndsOfEachToken) {
  const std::string model = R"({"type":"BPE","vocab":{"xxaxx":0,"x":1,"b":2,"xx":3},"merges":[]})";
  const Tokenizer each =
      from(file_with(model, R"(,"decoder":{"type":"Strip","content":"x","start":1,"stop":1})"));
  EXPECT_EQ(each.decode(Ids{0, 1, 2, 3}), "xaxb");
  const Tokenizer fused = from(file_with(
      model,
      R"(,"decoder":{"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"Strip","content":"x","start":3,"stop":3}]})"));
  EXPECT_EQ(fused.decode(Ids{0, 1, 2, 3}), "axxxb");
  StreamDecoder stream(fused);
  std::string all;
  for (int32_t id : {0, 1, 2, 3}) all += stream.push(id);
  EXPECT_EQ(all + stream.finish(), "axxxb");
}

// --- bad input (each a result or a named error) ---

TEST(TokenizerBadInput, InvalidUtf8BecomesOneReplacementPerByte) {
  const Tokenizer tokenizer = small("digits_bpe");
  for (std::string bad :
       {"\xFF", "\xC0\x80", "\xED\xA0\x80\xED\xB0\x80", "ab\xE4\xBD", "\xF4\x90\x80\x80z", "\x80\x80"}) {
    std::string repaired;
    for (char c : bad)
      repaired += static_cast<signed char>(c) < 0 ? std::string("\uFFFD") : std::string(1, c);
    EXPECT_EQ(tokenizer.encode(bad), tokenizer.encode(repaired));
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(bad)), repaired);
  }
}

TEST(TokenizerBadInput, LiteralRangesMoveWithRepairedBytes) {
  const Tokenizer tokenizer =
      from(file_with(R"({"type":"BPE","vocab":{"a":0,"<":1,"x":2,">":3},"merges":[]})",
                     ",\"added_tokens\":[" + added(4, "<x>") + "]"));
  const TextRange user[] = {{2, 5}};
  EXPECT_EQ(tokenizer.encode("\xFF\xFF<x><x>", {.parse_special_tokens = true, .literal = user}),
            (Ids{1, 2, 3, 4}));
}

TEST(TokenizerBadInput, OddCharactersReadBack) {
  for (const char* name : {"digits_bpe", "llama3_ignore_merges", "byte_fallback"}) {
    const Tokenizer tokenizer = small(name);
    for (std::string_view text :
         {std::string_view("\0", 1), std::string_view("a\0b", 3), std::string_view("\U0010FFFF"),
          std::string_view("\u202Egnp.exe\u202C"), std::string_view("\uFFFF\uFDD0"), std::string_view("")}) {
      EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text) << name;
    }
  }
}

// One word of a megabyte: quadratic work would take hours, so the bound may be generous to a busy machine.
TEST(TokenizerBadInput, LongWordsTakeLinearTime) {
  for (const char* name : {"digits_bpe", "byte_fallback", "llama3_ignore_merges", "o200k_added",
                           "wordpiece_untyped", "suffix_bpe"}) {
    const bool is_main = std::string_view(name) == "digits_bpe" || std::string_view(name) == "byte_fallback";
    const size_t size = is_main ? 1 << 20 : 1 << 16;
    const Tokenizer tokenizer = small(name);
    for (std::string_view unit : {"\u0301", " ", "e", kByteAlphabetWord}) {
      std::string text;
      while (text.size() < size) text += unit;
      Ids ids;
      EXPECT_LT(testing::processor_seconds([&] { ids = tokenizer.encode(text); }), 10) << name;
      EXPECT_LE(ids.size(), text.size() * 3 + 16);
    }
  }
}

TEST(TokenizerBadInput, BrokenMergesAreNamed) {
  const auto bpe = [](const std::string& merges) {
    return file_with(R"({"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":)" + merges + "}");
  };
  EXPECT_NE(error_of_file(ErrorCode::kCorruptFile, bpe(R"(["a z"])")).find("\"z\""), std::string::npos);
  EXPECT_NE(error_of_file(ErrorCode::kCorruptFile, bpe(R"(["b a"])")).find("\"ba\""),
            std::string::npos);  // the joined token
  error_of_file(ErrorCode::kCorruptFile, bpe(R"(["ab"])"));
  error_of_file(ErrorCode::kCorruptFile, bpe(R"(["a b c"])"));
  error_of_file(ErrorCode::kCorruptFile, bpe(R"([["a"]])"));
  error_of_file(ErrorCode::kCorruptFile, bpe(R"([7])"));
  error_of_file(ErrorCode::kCorruptFile, bpe(R"({"a":"b"})"));
  EXPECT_EQ(from(bpe(R"([["a","b"]])")).encode("ab"), (Ids{2}));
}

TEST(TokenizerBadInput, CyclicAndRepeatedMergesEnd) {
  // "aa" joins to itself again and again, and the same pair has several ranks: the last one counts.
  const std::string model =
      R"({"type":"BPE","vocab":{"a":0,"b":1,"aa":2,"aaa":3,"ab":4,"aaaa":5},"merges":["a a","a aa","aa a","a a","aa aa","a b","a a"]})";
  const Tokenizer tokenizer = from(file_with(model));
  const Ids ids = tokenizer.encode(std::string(1000, 'a') + "b");
  EXPECT_LT(ids.size(), 600u);
  EXPECT_EQ(tokenizer.decode(ids).find('b') != std::string::npos, true);
}

TEST(TokenizerBadInput, IdsThatCannotBeRightAreNamed) {
  const auto vocab = [](const std::string& members) {
    return file_with(R"({"type":"BPE","vocab":{)" + members + R"(},"merges":[]})");
  };
  error_of_file(ErrorCode::kCorruptFile, vocab(R"("a":-1)"));
  error_of_file(ErrorCode::kCorruptFile, vocab(R"("a":2147483648)"));
  error_of_file(ErrorCode::kCorruptFile, vocab(R"("a":4294967296)"));
  error_of_file(ErrorCode::kCorruptFile, vocab(R"("a":1e30)"));
  error_of_file(ErrorCode::kCorruptFile, vocab(R"("a":"0")"));
  error_of_file(ErrorCode::kCorruptFile, vocab(R"("a":0,"b":0)"));
  error_of_file(ErrorCode::kCorruptFile, vocab(R"("a":0,"a":1)"));
  EXPECT_EQ(from(vocab(R"("":0,"a":1)")).encode("a"), (Ids{1}));  // an empty token matches nothing
}

TEST(TokenizerBadInput, AddedTokensThatContradictTheVocabularyAreNamed) {
  const auto with = [](const std::string& tokens) {
    return file_with(kBpe, ",\"added_tokens\":[" + tokens + "]");
  };
  EXPECT_NE(error_of_file(ErrorCode::kCorruptFile, with(added(1, "a"))).find("\"a\""),
            std::string::npos);  // swapped ids
  error_of_file(ErrorCode::kCorruptFile, with(added(20, "<x>")));
  error_of_file(ErrorCode::kCorruptFile, with(added(8, "<x>") + "," + added(8, "<y>")));
  error_of_file(ErrorCode::kCorruptFile,
                with(added(8, "<x>") + "," + added(9, "<x>", ",\"extra\":0") + "," + added(10, "<y>")));
  error_of_file(ErrorCode::kUnsupported, with(added(8, std::string(5000, 'x'))));
  EXPECT_EQ(from(with(added(8, "<x>") + "," + added(8, "<x>"))).vocab_size(), 9);  // the same twice: no harm
  EXPECT_EQ(from(with(added(8, ""))).vocab_size(), 8);  // empty: as HF, without effect
  error_of_file(ErrorCode::kCorruptFile, with(added(8, "<x>")),
                R"({"added_tokens_decoder":{"12":{"content":"<y>","special":true}}})");
  error_of_file(ErrorCode::kCorruptFile, file_with(kBpe),
                R"({"added_tokens_decoder":{"-1":{"content":"<y>"}}})");
}

TEST(TokenizerBadInput, UnknownComponentsAreNamed) {
  const auto name_in = [](const std::string& json, const char* name) {
    const std::string message = error_of_file(ErrorCode::kUnsupported, json);
    EXPECT_NE(message.find(name), message.npos) << message;
    EXPECT_NE(message.find("test.json"), message.npos) << message;
  };
  name_in(file_with(R"({"type":"Trigram","vocab":{"a":0}})"), "Trigram");
  name_in(file_with(R"({"vocab":{"a":0},"unk_token":"a"})"), "WordLevel");
  name_in(file_with(R"({"type":"BPE","dropout":0.1,"vocab":{"a":0},"merges":[]})"), "dropout");
  name_in(file_with(kBpe, R"(,"normalizer":{"type":"Mystery"})"), "Mystery");
  name_in(file_with(kBpe, R"(,"pre_tokenizer":{"type":"UnicodeScripts"})"), "UnicodeScripts");
  name_in(file_with(kBpe, R"(,"post_processor":{"type":"Mystery"})"), "Mystery");
  name_in(file_with(kBpe, R"(,"decoder":{"type":"CTC"})"), "CTC");
  name_in(
      file_with(kBpe, R"(,"pre_tokenizer":{"type":"Split","pattern":{"String":" "},"behavior":"Sometimes"})"),
      "Sometimes");
}

TEST(TokenizerBadInput, MalformedFilesAreNamed) {
  for (const char* bad :
       {"", "{", "[]", "null", "{}", R"({"model":null})", R"({"model":{"type":"BPE"}})",
        R"({"model":{"type":"BPE","vocab":{"a":0}}})", R"({"model":{"type":"BPE","vocab":[],"merges":[]}})",
        R"({"model":{"type":"WordPiece","vocab":{"a":0},"unk_token":"[UNK]"}})",
        R"({"model":{"type":"BPE","vocab":{"a":0},"merges":[],"unk_token":"<unk>"}})"}) {
    EXPECT_NE(error_of_file(ErrorCode::kCorruptFile, bad).find("test.json"), std::string::npos) << bad;
  }
  for (
      const char* rest :
      {R"(,"normalizer":7)", R"(,"normalizer":{})",
       R"(,"pre_tokenizer":{"type":"Metaspace","replacement":"ab"})",
       R"(,"pre_tokenizer":{"type":"Metaspace","replacement":"_","add_prefix_space":false,"prepend_scheme":"first"})",
       R"(,"decoder":{"type":"Strip","content":"","start":0,"stop":0})",
       R"(,"decoder":{"type":"Strip","content":"x","start":-1,"stop":0})", R"(,"added_tokens":{})",
       R"(,"post_processor":{"type":"BertProcessing","sep":["a",99],"cls":["b",1]})"}) {
    error_of_file(ErrorCode::kCorruptFile, file_with(kBpe, rest));
  }
  testing::error_of(ErrorCode::kNotFound, [] { Tokenizer::load("/nonexistent-folder"); });
}

TEST(TokenizerBadInput, GrowthIsBounded) {
  std::string doubling;
  for (int i = 0; i < 40; ++i) {
    doubling += std::string(i ? "," : "") + R"({"type":"Replace","pattern":{"String":"a"},"content":"aa"})";
  }
  const Tokenizer grows =
      from(file_with(kBpe, R"(,"normalizer":{"type":"Sequence","normalizers":[)" + doubling + "]}"));
  testing::error_of(ErrorCode::kUnsupported, [&] { grows.encode(std::string(1000, 'a')); });
  const Tokenizer decodes =
      from(file_with(kBpe, R"(,"decoder":{"type":"Sequence","decoders":[)" + doubling + "]}"));
  testing::error_of(ErrorCode::kUnsupported, [&] { decodes.decode(Ids(10, 0)); });
}

TEST(Tokenizer, IsSafeToUseFromManyThreads) {
  const Tokenizer tokenizer = small("llama3_ignore_merges");
  const std::string text = "The quick brown fox isn't 12345 \u4F60\u597D\n\n  you'll see";
  const Ids expected = tokenizer.encode(text);
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        if (tokenizer.encode(text) != expected || tokenizer.decode(expected) != text)
          ++wrong[static_cast<size_t>(t)];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

TEST(Tokenizer, LargeVocabularyLoadsQuickly) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const double seconds =
      testing::processor_seconds([&] { Tokenizer::load(material / "tokenizers/qwen2.5-derived"); });
  EXPECT_LT(seconds, 5);  // 0.3 s in a release build
}

}  // namespace
}  // namespace lowbit
