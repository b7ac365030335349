// The demo model on a GPU beside the CPU.
#include "base/gpu.h"

#include "checkpoint/checkpoint.h"
#include "lowbit/generate.h"
#include "runtime/forward.h"
#include "runtime/gpu_decoder.h"
#include "runtime/gpu_model_test_support.h"
#include "runtime/gpu_placement.h"
#include "runtime/language_model.h"
#include "support.h"

#include <algorithm>
#include <gtest/gtest.h>
#include <numeric>
#include <optional>

namespace lowbit {
namespace {

using testing::sampled_on_host;
using testing::tokens_of;

class GpuModel : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!gpu_support().problem.empty()) GTEST_SKIP() << gpu_support().problem;
  }
  static LanguageModel load(const std::string& device, bool in_4bit = false) {
    return LanguageModel::load(LOWBIT_SOURCE_DIR "/demo/model", {.device = device, .load_in_4bit = in_4bit});
  }
  static std::vector<std::vector<int32_t>> prompts(const LanguageModel& model) {
    std::vector<std::vector<int32_t>> ids;
    for (const char* text :
         {"请问您的银行卡号", "The quick brown fox", "客服您好", "你", "The bank says that your account"})
      ids.push_back(model.tokenizer().encode(text));
    return ids;
  }
};

TEST_F(GpuModel, GreedyTokensAreTheSameAgainAndDoNotDependOnTheBatch) {
  for (bool in_4bit : {false, true}) {
    const LanguageModel model = load("cuda", in_4bit);
    const GenerateOptions options{.max_new_tokens = 60, .ignore_eos = true};
    const auto ids = prompts(model);
    const auto together = tokens_of(model.generate(ids, options));
    EXPECT_EQ(tokens_of(model.generate(ids, options)), together);
    for (size_t i = 0; i < ids.size(); ++i)
      EXPECT_EQ(tokens_of(model.generate({ids[i]}, options))[0], together[i])
          << i << (in_4bit ? " in 4 bits" : "");
  }
}

// Where long prompts are expected, whether they come at once or never.
TEST_F(GpuModel, WarmingUpChangesNoTokens) {
  const LanguageModel model = load("cuda");
  auto ids = prompts(model);
  for (auto& prompt : ids) prompt.resize(300, prompt[0]);
  const GenerateOptions greedy{.max_new_tokens = 10, .ignore_eos = true};
  const auto expected = tokens_of(model.generate(ids, greedy));
  for (const bool is_used : {true, false, true}) {
    const LanguageModel warm =
        LanguageModel::load(LOWBIT_SOURCE_DIR "/demo/model", {.device = "cuda", .kv_cache_tokens = 8192});
    if (is_used) {
      EXPECT_EQ(tokens_of(warm.generate(ids, greedy)), expected);
    }
  }
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

TEST_F(GpuModel, SampledTokensAreThoseThatTheHostDraws) {
  const LanguageModel model = load("cuda");
  const auto ids = prompts(model);
  GenerateOptions options{.max_new_tokens = 40, .seed = 7, .ignore_eos = true};
  for (const SamplingRule& rule :
       {SamplingRule{.repetition_penalty = 1.3f},
        {.temperature = 1},
        {.temperature = 0.8f, .top_k = 20},
        {.temperature = 1.2f, .top_p = 0.9f},
        {.temperature = 0.8f, .top_k = 50, .top_p = 0.95f, .repetition_penalty = 1.1f}}) {
    options.temperature = rule.temperature, options.top_k = rule.top_k, options.top_p = rule.top_p;
    options.repetition_penalty = rule.repetition_penalty;
    const auto drawn = tokens_of(model.generate(ids, options));
    EXPECT_EQ(drawn, sampled_on_host(model, ids, options)) << rule.temperature << " " << rule.top_k;
    EXPECT_EQ(drawn, tokens_of(model.generate(ids, options))) << "again";
  }
}

// Whatever part of the steps is recorded, and wherever answers are cut.
TEST_F(GpuModel, AnswersOfAnyLengthAreTheBeginningOfLongerOnes) {
  const LanguageModel model = load("cuda");
  const auto ids = prompts(model);
  constexpr int64_t kLongest = 150;
  for (const GenerateOptions& rule : {GenerateOptions{}, {.temperature = 0.9f, .top_k = 40, .seed = 5}}) {
    GenerateOptions options = rule;
    options.max_new_tokens = kLongest, options.ignore_eos = true;
    const auto whole = sampled_on_host(model, ids, options);
    for (const int64_t length : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 32, 33, 34, 35, 36, 99, 150}) {
      options.max_new_tokens = length;
      const auto together = tokens_of(model.generate(ids, options)),
                 first_alone = tokens_of(model.generate({ids[0]}, options));
      EXPECT_EQ(first_alone[0], together[0]) << length;
      for (size_t i = 0; i < ids.size(); ++i) {
        const auto end = whole[i].begin() + length;
        EXPECT_EQ(together[i], std::vector<int32_t>(whole[i].begin(), end)) << length << ", answer " << i;
      }
    }
  }
}

TEST_F(GpuModel, AnswersEndWithTheContext) {
  const LanguageModel model = load("cuda");
  constexpr int64_t kRoom = 70;
  std::vector<std::vector<int32_t>> ids = {prompts(model)[0], prompts(model)[1]};
  const size_t count = ids[0].size();
  while (static_cast<int64_t>(ids[0].size()) < model.context_length() - kRoom)
    ids[0].push_back(ids[0][ids[0].size() % count]);
  const auto results = model.generate(ids, {.max_new_tokens = 200, .ignore_eos = true});
  EXPECT_EQ(results[0].finish_reason, "context");
  EXPECT_EQ(results[0].token_ids.size(), static_cast<size_t>(kRoom + 1));
  EXPECT_EQ(results[1].finish_reason, "length");
  EXPECT_EQ(results[1].token_ids.size(), 200u);
}

// What the decoder itself gives: each prompt is computed alone, then the steps are taken together. spare: so
// many bytes of the memory's limit are left when a step that is not recorded has what it needs.
std::vector<std::vector<int32_t>> decoded(const LanguageModel& model,
                                          const std::vector<std::vector<int32_t>>& prompts, int64_t capacity,
                                          int64_t steps, std::optional<int64_t> spare = {}) {
  const LanguageModel::State& state = model.state();
  Workspace workspace(*state.gpu);  // what steps take stays theirs, however little memory there is
  OpContext ops = state.ops();
  ops.workspace = &workspace;
  const int64_t width = state.model.config().hidden_size, count = static_cast<int64_t>(prompts.size());
  const RopeTables rope = state.model.rope_tables(ops, capacity);
  KvCache cache(state.model.config(), count, capacity, state.cache_dtype, state.gpu.get());
  const int32_t first = 1;
  std::vector<SequenceTokens> batch;
  for (int64_t i = 0; i < count; ++i) {
    const SequenceTokens prompt{i, prompts[static_cast<size_t>(i)]};
    const Scratch hidden =
        ops.workspace->take(prompt.ids.size() * static_cast<size_t>(width) * sizeof(float));
    forward(state.model, ops, rope, std::span(&prompt, 1), MatmulMode::kPrefill, cache, hidden.as<float>());
    batch.push_back({i, std::span(&first, 1)});
  }
  std::vector<size_t> sequences(prompts.size());
  std::iota(sequences.begin(), sequences.end(), 0);
  const std::vector<SamplingRow> rows(prompts.size());
  Tensor taken;
  if (spare) {
    GpuDecoder once(state.model, ops, rope, sequences, cache, {}, 1);
    once.begin(batch, rows);
    once.next(1);
    state.workspace->release();
    const auto left = static_cast<int64_t>(state.gpu->memory().available());
    taken = Tensor::allocate_on(state.gpu.get(), DType::kU8, {left - *spare});
  }
  GpuDecoder decoder(state.model, ops, rope, sequences, cache, {}, steps);
  decoder.begin(batch, rows);
  std::vector<std::vector<int32_t>> tokens(prompts.size());
  for (int64_t step = 0; step < steps; ++step) {
    const std::span<const int32_t> chosen = decoder.next(steps - step);
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i].push_back(chosen[i]);
    EXPECT_LE(decoder.queued(), steps - step - 1) << "steps that nobody wants";
  }
  EXPECT_EQ(decoder.queued(), 0);
  return tokens;
}

TEST_F(GpuModel, SequencesAtTheEndOfTheCacheDisturbNoOthers) {
  const LanguageModel model = load("cuda");
  constexpr int64_t kSteps = 120, kLong = 200, kRoom = 13;
  std::vector<std::vector<int32_t>> ids = prompts(model);
  ids[2].resize(kLong, ids[2][0]);
  const auto together = decoded(model, ids, kLong + kRoom, kSteps);
  for (size_t i = 0; i < ids.size(); ++i) {
    const int64_t steps = i == 2 ? kRoom : kSteps;
    const auto alone = decoded(model, {ids[i]}, kLong + kSteps, steps)[0];
    EXPECT_EQ(std::vector<int32_t>(together[i].begin(), together[i].begin() + steps), alone) << i;
  }
}

// Random streams and the tokens seen go on when a batch becomes smaller.
TEST_F(GpuModel, AnAnswerThatEndsChangesNoSampledTokenOfAnother) {
  const LanguageModel model = load("cuda");
  const auto ids = prompts(model);
  GenerateOptions options{.max_new_tokens = 150,
                          .temperature = 1,
                          .top_k = 30,
                          .top_p = 0.95f,
                          .repetition_penalty = 1.1f,
                          .seed = 3,
                          .ignore_eos = true};
  const auto whole = tokens_of(model.generate(ids, options));
  options.stop = {"，", "。", "\n", ",", " "};
  const auto stopped = tokens_of(model.generate(ids, options));
  for (size_t i = 0; i < ids.size(); ++i) {
    ASSERT_LE(stopped[i].size(), whole[i].size());
    EXPECT_TRUE(std::equal(stopped[i].begin(), stopped[i].end(), whole[i].begin())) << i;
  }
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

// Demo models that get exactly the memory in which so many layers must be streamed.
class GpuStreaming : public GpuModel {
 protected:
  static constexpr int64_t kTokens = 1024;

  static GpuSizes sizes() {
    const Checkpoint checkpoint = read_checkpoint(LOWBIT_SOURCE_DIR "/demo/model");
    Model model = Model::create(checkpoint.config, checkpoint.weights);
    return gpu_sizes(model, DType::kBF16, kTokens);
  }
  LanguageModel load_streamed(int64_t streamed, const std::string& device = "cuda") {
    return load_within(plan_with_streamed(sizes(), streamed).needed_bytes, device);
  }
  LanguageModel load_within(uint64_t bytes, const std::string& device = "cuda") {
    log_.clear();
    Log log;
    log.message = [this](LogLevel, std::string_view text) { log_ += std::string(text) + "\n"; };
    return LanguageModel::load(LOWBIT_SOURCE_DIR "/demo/model",
                               {.device = device, .max_gpu_memory = bytes, .kv_cache_tokens = kTokens}, log);
  }

  std::string log_;
};

TEST_F(GpuStreaming, GivesTheSameTokensGreedyAndSampled) {
  const LanguageModel whole = load("cuda");
  const auto ids = prompts(whole);
  const GenerateOptions greedy{.max_new_tokens = 40, .ignore_eos = true},
      sampled{.max_new_tokens = 20, .temperature = 0.8f, .top_k = 20, .seed = 7, .ignore_eos = true};
  const auto expected = tokens_of(whole.generate(ids, greedy)),
             expected_sampled = tokens_of(whole.generate(ids, sampled));
  for (int64_t streamed : {0, 3, 4, 5}) {
    const LanguageModel model = load_streamed(streamed);
    EXPECT_EQ(log_.find(fmt::format("{} of 5 layers do not fit", streamed)) != log_.npos, streamed > 0)
        << log_;
    EXPECT_EQ(tokens_of(model.generate(ids, greedy)), expected) << streamed;
    EXPECT_EQ(tokens_of(model.generate(ids, sampled)), expected_sampled) << streamed;
    EXPECT_EQ(tokens_of(model.generate({ids[1]}, greedy))[0], expected[1]) << streamed;
  }
}

TEST_F(GpuStreaming, StaysWithinTheLimitAndSaysWhatItTakes) {
  for (int64_t streamed : {0, 3, 5}) {
    const uint64_t limit = plan_with_streamed(sizes(), streamed).needed_bytes;
    const LanguageModel model = load_streamed(streamed);
    model.generate(prompts(model), {.max_new_tokens = 40, .ignore_eos = true});
    const MemoryUse use = model.memory();
    EXPECT_LE(use.gpu_peak_bytes, limit);
    EXPECT_EQ(use.gpu_weight_bytes, limit - sizes().cache - sizes().work);
    EXPECT_GT(use.gpu_kv_cache_bytes, 0u);
    EXPECT_GT(use.gpu_workspace_bytes, 0u);
    EXPECT_EQ(use.streamed_bytes, plan_with_streamed(sizes(), streamed).streamed_bytes);
    EXPECT_EQ(model.device(), "cuda:0");
  }
}

// Wherever in the step that is to be recorded the memory ends.
TEST_F(GpuStreaming, StepsThatCannotBeRecordedGiveTheSameTokens) {
  const LanguageModel model = load_streamed(0);
  const auto ids = prompts(model);
  constexpr int64_t kCapacity = 100, kSteps = 40;
  const auto expected = decoded(model, ids, kCapacity, kSteps);
  for (int64_t spare = 0; spare < 64 << 10; spare += 1 << 10)
    EXPECT_EQ(decoded(model, ids, kCapacity, kSteps, spare), expected) << spare;
}

// What the limit leaves is less than the answer needs: an error, after which smaller ones are as before.
TEST_F(GpuStreaming, ACacheThatDoesNotFitNamesThePhaseAndNothingIsLost) {
  const LanguageModel model = load_streamed(5);
  const std::vector<std::vector<int32_t>> few = {prompts(model)[1]};
  const GenerateOptions greedy{.max_new_tokens = 30, .ignore_eos = true};
  const auto before = tokens_of(model.generate(few, greedy));
  const std::vector<std::vector<int32_t>> many(64, prompts(model)[1]);
  const std::string message = testing::error_of(
      ErrorCode::kOutOfMemory, [&] { model.generate(many, {.max_new_tokens = 1500, .ignore_eos = true}); });
  for (const char* part :
       {"the keys and values of", "tokens", "cuda:0 has", "--max-gpu-memory", "--max-new-tokens"})
    EXPECT_NE(message.find(part), std::string::npos) << message;
  EXPECT_EQ(tokens_of(model.generate(few, greedy)), before);
}

TEST_F(GpuStreaming, TooLittleForTwoLayersIsAnErrorOrTheCpu) {
  const uint64_t least = plan_with_streamed(sizes(), 5).needed_bytes;
  const std::string message = testing::error_of(ErrorCode::kOutOfMemory, [&] { load_within(least - 1); });
  EXPECT_NE(message.find("even when its layers are streamed"), std::string::npos) << message;
  const std::string frame =
      testing::error_of(ErrorCode::kOutOfMemory, [&] { load_within(sizes().frame - 1); });
  EXPECT_NE(frame.find("the embedding and the head alone"), std::string::npos) << frame;
  const LanguageModel model = load_within(least - 1, "auto");
  EXPECT_EQ(model.device(), "cpu");
  EXPECT_NE(log_.find("runs on the CPU"), std::string::npos) << log_;
  EXPECT_EQ(model.memory().gpu_peak_bytes, 0u);
  EXPECT_FALSE(model.generate(prompts(model), {.max_new_tokens = 4})[0].token_ids.empty());
  EXPECT_EQ(load_streamed(4, "auto").device(), "cpu");  // most layers would be streamed
  EXPECT_EQ(load_streamed(0, "auto").device(), "cuda:0");
}

TEST(GpuSizes, OfTheDemoModel) {
  if (!kHasCuda) GTEST_SKIP() << "this build has no GPU kernels";
  const Checkpoint checkpoint = read_checkpoint(LOWBIT_SOURCE_DIR "/demo/model");
  Model model = Model::create(checkpoint.config, checkpoint.weights);
  const GpuSizes sizes = gpu_sizes(model, DType::kBF16, 100);
  EXPECT_EQ(sizes.frame, 4096u * 256 * 2 + 256 * 4);  // tied: one matrix, and a norm
  // q, k, v with biases, o, gate, up and down, two norms.
  const uint64_t layer = 256 * 256 * 2 + 2 * 128 * 256 * 2 + (256 + 2 * 128) * 4 + 256 * 256 * 2 +
                         3 * 768 * 256 * 2 + 2 * 256 * 4;
  EXPECT_EQ(sizes.layers, std::vector<uint64_t>(5, layer));
  EXPECT_EQ(sizes.cache, 100u * 5 * 2 * 2 * 64 * 2);
  EXPECT_GT(sizes.work, uint64_t{32} << 20);
}

TEST(Device, OptionsOfAGpuAreChecked) {
  for (const RuntimeOptions& options : {RuntimeOptions{.device = "cpu", .max_gpu_memory = 1000},
                                        RuntimeOptions{.device = "cpu", .kv_cache_tokens = -1}}) {
    const std::string message = testing::error_of(
        ErrorCode::kInvalidArgument, [&] { LanguageModel::load(LOWBIT_SOURCE_DIR "/demo/model", options); });
    EXPECT_TRUE(message.find("max_gpu_memory") != message.npos ||
                message.find("kv_cache_tokens") != message.npos);
  }
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
