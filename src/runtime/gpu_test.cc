// The demo model on a GPU beside the CPU.
#include "base/gpu.h"

#include "lowbit/generate.h"
#include "support.h"

#include <gtest/gtest.h>

namespace lowbit {
namespace {

class GpuModel : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!gpu_support().problem.empty()) GTEST_SKIP() << gpu_support().problem;
  }
  static LanguageModel load(const std::string& device) {
    return LanguageModel::load(LOWBIT_SOURCE_DIR "/demo/model", {.device = device});
  }
  static std::vector<std::vector<int32_t>> prompts(const LanguageModel& model) {
    std::vector<std::vector<int32_t>> ids;
    for (const char* text :
         {"请问您的银行卡号", "The quick brown fox", "客服您好", "你", "The bank says that your account"})
      ids.push_back(model.tokenizer().encode(text));
    return ids;
  }
};

std::vector<std::vector<int32_t>> tokens_of(const std::vector<GenerateResult>& results) {
  std::vector<std::vector<int32_t>> tokens;
  for (const GenerateResult& result : results) tokens.push_back(result.token_ids);
  return tokens;
}

TEST_F(GpuModel, GreedyTokensAreTheSameAgainAndDoNotDependOnTheBatch) {
  const LanguageModel model = load("cuda");
  const GenerateOptions options{.max_new_tokens = 60, .ignore_eos = true};
  const auto ids = prompts(model);
  const auto together = tokens_of(model.generate(ids, options));
  EXPECT_EQ(tokens_of(model.generate(ids, options)), together);
  for (size_t i = 0; i < ids.size(); ++i)
    EXPECT_EQ(tokens_of(model.generate({ids[i]}, options))[0], together[i]) << i;
}

// Sequences of one batch that end at different times.
TEST_F(GpuModel, EndsEachAnswerWhereItsStopTextIs) {
  const LanguageModel model = load("cuda");
  const auto ids = prompts(model);
  const auto whole = model.generate(ids, {.max_new_tokens = 50, .ignore_eos = true});
  const auto stopped = model.generate(ids, {.max_new_tokens = 50, .stop = {"。", "\n"}, .ignore_eos = true});
  for (size_t i = 0; i < ids.size(); ++i) {
    EXPECT_EQ(whole[i].text.compare(0, stopped[i].text.size(), stopped[i].text), 0) << whole[i].text;
    EXPECT_EQ(stopped[i].text.find('\n'), std::string::npos);
  }
}

TEST_F(GpuModel, SamplesTheSameTokensForTheSameSeed) {
  const LanguageModel model = load("cuda");
  const GenerateOptions options{
      .max_new_tokens = 20, .temperature = 0.8f, .top_k = 20, .repetition_penalty = 1.1f, .seed = 7};
  const auto ids = prompts(model);
  EXPECT_EQ(tokens_of(model.generate(ids, options)), tokens_of(model.generate(ids, options)));
}

// BF16 is not F32: what may differ are near ties, so of the first tokens of each answer few do.
TEST_F(GpuModel, SaysWhatTheCpuSays) {
  const LanguageModel on_gpu = load("cuda"), on_cpu = load("cpu");
  const auto ids = prompts(on_gpu);
  const GenerateOptions options{.max_new_tokens = 8, .ignore_eos = true};
  const auto a = tokens_of(on_gpu.generate(ids, options)), b = tokens_of(on_cpu.generate(ids, options));
  int same = 0;
  for (size_t i = 0; i < ids.size(); ++i) same += a[i] == b[i];
  EXPECT_GE(same, 4) << "of " << ids.size();
}

TEST(Device, NamesAreChecked) {
  for (const char* device : {"gpu", "cuda:", "cuda:x", "cuda:-1", ""}) {
    const std::string message = testing::error_of(ErrorCode::kInvalidArgument, [&] {
      LanguageModel::load(LOWBIT_SOURCE_DIR "/demo/model", {.device = device});
    });
    EXPECT_NE(message.find("expected \"auto\", \"cpu\""), std::string::npos) << message;
  }
}

TEST(Device, AGpuThatIsNotThereIsRefused) {
  const std::string message = testing::error_of(ErrorCode::kDevice, [] {
    LanguageModel::load(LOWBIT_SOURCE_DIR "/demo/model", {.device = "cuda:99"});
  });
  EXPECT_NE(message.find("GPU"), std::string::npos) << message;
}

TEST(Device, WhatOnlyTheCpuHasIsRefusedOnAGpu) {
  for (const RuntimeOptions& options : {RuntimeOptions{.device = "cuda", .kernel = "ref"},
                                        RuntimeOptions{.device = "cuda", .kv_cache_dtype = "float32"}}) {
    const std::string message = testing::error_of(
        ErrorCode::kUnsupported, [&] { LanguageModel::load(LOWBIT_SOURCE_DIR "/demo/model", options); });
    EXPECT_NE(message.find("only the CPU"), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace lowbit
