// The demo model under other neighbours: what the files beside the weights may say, and what generate()
// refuses.
#include "runtime/language_model.h"

#include "base/files.h"
#include "base/json.h"
#include "runtime/answer.h"
#include "support.h"

#include <gtest/gtest.h>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

const RuntimeOptions kTwoThreads{.device = "cpu", .threads = 2};

class LoadedModel : public ::testing::Test {
 protected:
  LoadedModel() {
    for (const auto& entry : fs::directory_iterator(LOWBIT_SOURCE_DIR "/demo/model"))
      fs::copy_file(entry.path(), folder_.path() / entry.path().filename());
  }
  void generation_config(std::string_view text) {
    write_file_atomically(folder_.path() / "generation_config.json", text);
  }
  LanguageModel load() { return LanguageModel::load(folder_.path(), kTwoThreads); }
  std::string refusal(ErrorCode code) {
    return testing::error_of(code, [&] { load(); });
  }

  testing::TemporaryFolder folder_;
};

TEST_F(LoadedModel, SamplesAsItsGenerationConfigSays) {
  generation_config(R"({"do_sample": true, "temperature": 0.5, "top_k": 1e300, "top_p": 0.9,
    "repetition_penalty": 1.5})");
  const GenerateOptions sampling = load().sampling_defaults();
  EXPECT_EQ(sampling.temperature, 0.5f);
  EXPECT_GT(sampling.top_k, 1'000'000);
  EXPECT_EQ(sampling.top_p, 0.9f);
  EXPECT_EQ(sampling.repetition_penalty, 1.5f);
  generation_config(R"({"do_sample": true})");
  EXPECT_EQ(load().sampling_defaults().top_k, 50);
  generation_config(R"({"temperature": 0.5})");  // without do_sample: greedy
  EXPECT_EQ(load().sampling_defaults().temperature, 0);
  fs::remove(folder_.path() / "generation_config.json");
  EXPECT_EQ(load().sampling_defaults().temperature, 0);
}

TEST_F(LoadedModel, SenselessSamplingIsRefusedWithItsFile) {
  for (const char* text :
       {R"({"do_sample": true, "temperature": -1})", R"({"top_k": -1e300})", R"({"top_p": 0})",
        R"({"top_p": 1e300})", R"({"repetition_penalty": 0})", "{", ""}) {
    generation_config(text);
    EXPECT_NE(refusal(ErrorCode::kCorruptFile).find("generation_config.json"), std::string::npos) << text;
  }
}

TEST_F(LoadedModel, IdsThatNoTokenHasEndNoAnswer) {
  generation_config(R"({"eos_token_id": [4295000000, -1, 9223372036854775807, 1e300, "4", 4094]})");
  const std::vector<int32_t> ids = load().state().eos_ids;
  EXPECT_NE(std::find(ids.begin(), ids.end(), 4094), ids.end());
  for (int32_t id : ids) EXPECT_TRUE(id >= 0 && id < 4096) << id;
  generation_config(R"({"eos_token_id": 4090})");
  EXPECT_EQ(load().state().eos_ids[0], 4090);
  generation_config("{}");  // then config.json's
  const std::vector<int32_t> of_config = load().state().eos_ids;
  EXPECT_NE(std::find(of_config.begin(), of_config.end(), 4095), of_config.end());
}

TEST_F(LoadedModel, WithoutTokenizerOrTemplateItStillGeneratesIds) {
  fs::remove(folder_.path() / "tokenizer.json");
  fs::remove(folder_.path() / "tokenizer_config.json");
  const LanguageModel model = load();
  testing::error_of(ErrorCode::kNotFound, [&] { model.tokenizer(); });
  testing::error_of(ErrorCode::kNotFound, [&] { model.chat_template(); });
  const auto results = model.generate({{1, 2, 3}}, {.max_new_tokens = 4, .ignore_eos = true});
  EXPECT_EQ(results[0].token_ids.size(), 4u);
  EXPECT_EQ(results[0].text, "");
  EXPECT_EQ(results[0].finish_reason, "length");
}

TEST_F(LoadedModel, ABrokenTokenizerIsNotTakenForNone) {
  write_file_atomically(folder_.path() / "tokenizer.json", "{\"model\": ");
  EXPECT_NE(refusal(ErrorCode::kCorruptFile).find("tokenizer.json"), std::string::npos);
}

TEST_F(LoadedModel, GenerateRefusesPromptsThatDoNotFit) {
  const LanguageModel model = load();
  auto refused = [&](const std::vector<std::vector<int32_t>>& prompts) {
    return testing::error_of(ErrorCode::kInvalidArgument, [&] { model.generate(prompts, {}); });
  };
  EXPECT_NE(refused({{1}, {}}).find("prompt 1"), std::string::npos);
  EXPECT_NE(refused({{1, -1}}).find("-1"), std::string::npos);
  EXPECT_NE(refused({{1, 4096}}).find("4096"), std::string::npos);
  EXPECT_NE(
      refused({std::vector<int32_t>(static_cast<size_t>(model.context_length()) + 1, 1)}).find("shorten"),
      std::string::npos);
  EXPECT_TRUE(model.generate({}, {}).empty());
  testing::error_of(ErrorCode::kInvalidArgument, [&] { model.generate({{1}}, {.max_new_tokens = 0}); });
  for (const RuntimeOptions& options :
       {RuntimeOptions{.threads = -1}, RuntimeOptions{.kernel = "none"},
        RuntimeOptions{.kernel = "attention=none"}, RuntimeOptions{.kv_cache_dtype = "int3"}}) {
    testing::error_of(ErrorCode::kInvalidArgument, [&] { LanguageModel::load(folder_.path(), options); });
  }
}

TEST_F(LoadedModel, TheContextEndsAnAnswer) {
  Json config = parse_json(read_file(folder_.path() / "config.json"), "config.json");
  config.set("max_position_embeddings", 8);
  write_file_atomically(folder_.path() / "config.json", config.dump());
  const LanguageModel model = load();
  GenerateSpeed speed;
  const auto results = model.generate({{5, 6, 7}, {5, 6, 7, 8, 9, 10, 11, 12}},
                                      {.max_new_tokens = 100, .ignore_eos = true}, {}, &speed);
  // The token after the last cached position is still chosen.
  EXPECT_EQ(results[0].token_ids.size(), 6u);
  EXPECT_EQ(results[1].token_ids.size(), 1u);
  for (const GenerateResult& result : results) EXPECT_EQ(result.finish_reason, "context");
  EXPECT_EQ(speed.prefill_tokens, 11);
}

TEST_F(LoadedModel, ASinkStopsItsOwnAnswerOnly) {
  const LanguageModel model = load();
  const std::vector<int32_t> prompt = model.tokenizer().encode("Hello, this is your bank. Please", {});
  const GenerateOptions options{.max_new_tokens = 12, .ignore_eos = true};
  std::vector<std::string> streamed(2);
  const auto results = model.generate({prompt, prompt}, options, [&](size_t index, std::string_view text) {
    streamed[index] += text;
    return index == 1;
  });
  EXPECT_EQ(results[0].finish_reason, "interrupted");
  EXPECT_LT(results[0].token_ids.size(), 12u);
  EXPECT_EQ(results[1].finish_reason, "length");
  for (size_t i = 0; i < 2; ++i) EXPECT_EQ(streamed[i], results[i].text);
  EXPECT_EQ(results[1].text, model.generate({prompt}, options)[0].text);
}

TEST_F(LoadedModel, AStopTextEndsTheAnswerAndIsNotPartOfIt) {
  const LanguageModel model = load();
  const std::vector<int32_t> prompt = model.tokenizer().encode("Hello, this is your bank. Please", {});
  GenerateOptions options{.max_new_tokens = 12, .ignore_eos = true};
  const std::string whole = model.generate({prompt}, options)[0].text;
  ASSERT_GT(whole.size(), 8u);
  options.stop = {"never said", whole.substr(4, 3)};
  const size_t cut = whole.find(options.stop[1]);
  std::string streamed;
  const auto result = model.generate({prompt}, options, [&](size_t, std::string_view text) {
    streamed += text;
    return true;
  })[0];
  EXPECT_EQ(result.text, whole.substr(0, cut));
  EXPECT_EQ(streamed, result.text);
  EXPECT_EQ(result.finish_reason, "stop");
}

TEST_F(LoadedModel, AnIdOfAPaddedVocabularyGivesNoText) {
  const LanguageModel model = load();
  const GenerateOptions options;
  const StreamSink no_sink;
  Answer answer(&model.tokenizer(), options, 0, no_sink);
  const std::vector<int32_t> ids = model.tokenizer().encode("bank", {});
  answer.push(model.tokenizer().vocab_size() + 7);
  for (int32_t id : ids) answer.push(id);
  answer.end("eos");
  EXPECT_EQ(answer.result().text, "bank");
  EXPECT_EQ(answer.result().token_ids.size(), ids.size() + 1);
}

}  // namespace
}  // namespace lowbit
