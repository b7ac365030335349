// Against ids that other tools made: HF tokenizers for tests/golden/tokenizers/ (make_tokenizer_golden.py)
// and, where the material is there, llama.cpp's and HF's vectors for real tokenizers.
#include "base/files.h"
#include "base/json.h"
#include "lowbit/tokenizer.h"
#include "support.h"

#include <fstream>
#include <sstream>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

std::vector<int32_t> ids_of(const Json& json) {
  std::vector<int32_t> ids;
  for (const Json& id : json.as_array()) ids.push_back(static_cast<int32_t>(id.as_integer()));
  return ids;
}

std::string streamed(const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
                     const DecodeOptions& options) {
  StreamDecoder stream(tokenizer, options);
  std::string text;
  for (int32_t id : ids) text += stream.push(id);
  return text + stream.finish();
}

class SmallTokenizer : public ::testing::TestWithParam<const char*> {};

TEST_P(SmallTokenizer, AgreesWithHuggingFace) {
  const fs::path folder = fs::path(LOWBIT_SOURCE_DIR) / "tests/golden/tokenizers" / GetParam();
  const Tokenizer tokenizer = Tokenizer::load(folder);
  std::istringstream lines(read_file(folder / "cases.jsonl"));
  int cases = 0;
  for (std::string line; std::getline(lines, line); ++cases) {
    const Json expected = parse_json(line, "cases.jsonl");
    const std::string& text = expected.get("text").as_string();
    const std::vector<int32_t> ids = ids_of(expected.get("ids"));
    EXPECT_EQ(tokenizer.encode(text, {.parse_special_tokens = true}), ids) << text;
    EXPECT_EQ(tokenizer.encode(text), expected.find("as_text") ? ids_of(expected.get("as_text")) : ids)
        << text;
    EXPECT_EQ(tokenizer.encode(text, {.add_special_tokens = true, .parse_special_tokens = true}),
              expected.find("around") ? ids_of(expected.get("around")) : ids)
        << text;
    EXPECT_EQ(tokenizer.decode(ids), expected.get("decoded").as_string());
    EXPECT_EQ(streamed(tokenizer, ids, {}), expected.get("decoded").as_string());
    EXPECT_EQ(tokenizer.decode(ids, {.skip_special_tokens = true}), expected.get("skipped").as_string());
    EXPECT_EQ(streamed(tokenizer, ids, {.skip_special_tokens = true}), expected.get("skipped").as_string());
  }
  EXPECT_GE(cases, 60);
}

INSTANTIATE_TEST_SUITE_P(Golden, SmallTokenizer,
                         ::testing::Values("bert_template", "bloom_bpe", "byte_fallback",
                                           "contiguous_prefix_space", "digits_bpe", "llama3_ignore_merges",
                                           "metaspace_first_unk", "metaspace_old_fused", "neox_bpe",
                                           "o200k_added", "suffix_bpe", "unigram_bytes", "unigram_charsmap",
                                           "unigram_lowercase", "wordpiece_mixed", "wordpiece_untyped"),
                         [](const auto& info) { return std::string(info.param); });

class PairsOfTexts : public ::testing::TestWithParam<const char*> {};

TEST_P(PairsOfTexts, AgreeWithHuggingFaceWholeAndCut) {
  const fs::path folder = fs::path(LOWBIT_SOURCE_DIR) / "tests/golden/tokenizers" / GetParam();
  const Tokenizer tokenizer = Tokenizer::load(folder);
  std::istringstream lines(read_file(folder / "pairs.jsonl"));
  int cases = 0;
  for (std::string line; std::getline(lines, line); ++cases) {
    const Json expected = parse_json(line, "pairs.jsonl");
    const EncoderInput input =
        tokenizer.encode_input(expected.get("text").as_string(), expected.get("second").as_string(),
                               expected.get("max_length").as_integer(), {.parse_special_tokens = true});
    std::vector<int32_t> both = input.ids;
    both.insert(both.end(), input.types.begin(), input.types.end());
    EXPECT_EQ(both, ids_of(expected.get("expected"))) << line;
  }
  EXPECT_GE(cases, 40);
}

INSTANTIATE_TEST_SUITE_P(Golden, PairsOfTexts,
                         ::testing::Values("bert_template", "byte_fallback", "unigram_charsmap",
                                           "wordpiece_mixed", "wordpiece_untyped"),
                         [](const auto& info) { return std::string(info.param); });

// llama.cpp: strings between lines "__ggml_vocab_test__", ids one line per string.
void check_llama_cpp_vectors(const fs::path& material, const char* vectors, const Tokenizer& tokenizer,
                             size_t expected_count) {
  const std::string strings =
      read_file(material / "tokenizers/vectors" / (std::string("ggml-vocab-") + vectors + ".gguf.inp"));
  std::istringstream lines(
      read_file(material / "tokenizers/vectors" / (std::string("ggml-vocab-") + vectors + ".gguf.out")));
  constexpr std::string_view kSeparator = "\n__ggml_vocab_test__\n";
  size_t at = 0, count = 0;
  for (std::string line; at <= strings.size() && std::getline(lines, line); ++count) {
    size_t end = strings.find(kSeparator, at);
    if (end == strings.npos) end = strings.size();
    const std::string text = strings.substr(at, end - at);
    at = end + kSeparator.size();
    std::vector<int32_t> ids;
    std::istringstream numbers(line);
    for (int32_t id; numbers >> id;) ids.push_back(id);
    EXPECT_EQ(tokenizer.encode(text), ids) << vectors << " case " << count << ": " << text;
  }
  EXPECT_EQ(count, expected_count);
}

TEST(TokenizerVectors, Gpt2AgreesWithLlamaCpp) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  check_llama_cpp_vectors(material, "gpt-2", Tokenizer::load(material / "tokenizers/gpt2"), 46);
}

TEST(TokenizerVectors, Qwen2AgreesWithLlamaCpp) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  check_llama_cpp_vectors(material, "qwen2", Tokenizer::load(material / "tokenizers/qwen2.5-derived"), 46);
}

TEST(TokenizerVectors, Llama2AgreesWithLlamaCpp) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  check_llama_cpp_vectors(material, "llama-spm", Tokenizer::load(material / "tokenizers/ort-llama2"), 46);
}

void check_strings(const fs::path& vectors, const fs::path& folder) {
  if (!fs::exists(folder / "tokenizer.json"))
    GTEST_SKIP() << "no " << folder << " (models/fetch.sh brings it)";
  const Tokenizer tokenizer = Tokenizer::load(folder);
  const Json cases = parse_json(read_file(vectors), vectors.string());
  EXPECT_GT(cases.size(), 200u);
  for (const Json& expected : cases.as_array()) {
    const std::string& text = expected.get("text").as_string();
    EXPECT_EQ(tokenizer.encode(text, {.parse_special_tokens = true}), ids_of(expected.get("ids"))) << text;
  }
}

// LOWBIT_MODELS: a folder that holds what models/fetch.sh brought, as smollm2 and qwen.
TEST(TokenizerVectors, Qwen2AgreesWithHuggingFace) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  check_strings(material / "models/qwen2.5-coder-0.5b-instruct/tokenizer_vectors.json",
                material / "tokenizers/qwen2.5-derived");
}

TEST(TokenizerVectors, SmolLm2AgreesWithHuggingFace) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const char* models = std::getenv("LOWBIT_MODELS");
  if (models == nullptr) GTEST_SKIP() << "LOWBIT_MODELS is not set";
  check_strings(material / "models/smollm2-135m-instruct/tokenizer_vectors.json",
                fs::path(models) / "smollm2");
}

TEST(TokenizerVectors, EveryTokenizerInTheMaterialReadsBackWhatItWrote) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const std::string text = "The quick brown fox, 123 456! It's 你好，世界 and naïve café.";
  struct Case {
    const char* folder;
    std::string decoded;
  };
  const Case cases[] = {
      {"tokenizers/gpt2", text},
      {"tokenizers/qwen2.5-derived", text},
      {"tokenizers/ort-llama2", text},
      {"model-stories260k-llama2c/hf", text},
      {"model-tinystories-656k-llama", "The quick brown fox, 123 456! It's <unk> and na<unk>ve caf<unk>."},
  };
  for (const Case& c : cases) {
    const Tokenizer tokenizer = Tokenizer::load(material / c.folder);
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), c.decoded) << c.folder;
    EXPECT_TRUE(tokenizer.eos_id().has_value()) << c.folder;
  }
}

}  // namespace
}  // namespace lowbit
