// Small random models of the architectures that are not as Llama: decoding beside prompts on the CPU, and
// both on a GPU beside the CPU.
#include "base/files.h"
#include "base/gpu.h"
#include "checkpoint/checkpoint.h"
#include "lowbit/embed.h"
#include "model/random_models_test_support.h"
#include "runtime/encoder_run.h"
#include "runtime/gpu_model_test_support.h"
#include "runtime/gpu_placement.h"
#include "support.h"

#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>

namespace lowbit {
namespace {

namespace fs = std::filesystem;
using namespace lowbit::testing;
using Prompts = std::vector<std::vector<int32_t>>;

// What the GPU may differ by: max|a - b| / max|b|. Activations are BF16 there, with steps of 1/256, and some
// tens of them stand one behind the other.
constexpr double kBf16Bound = 2e-2;

Prompts random_prompts() {
  std::mt19937 engine(5);
  Prompts prompts;
  for (const size_t length : {1, 5, 40, 130}) {
    std::vector<int32_t>& ids = prompts.emplace_back(length);
    for (int32_t& id : ids) id = static_cast<int32_t>(engine() % kRandomVocab);
  }
  return prompts;
}

int64_t longest_of(const Prompts& prompts) {
  size_t longest = 0;
  for (const auto& ids : prompts) longest = std::max(longest, ids.size());
  return static_cast<int64_t>(longest);
}

std::vector<float> logits_of(const LanguageModel& model, const float* hidden, int64_t rows, MatmulMode mode) {
  const LanguageModel::State& state = model.state();
  const OpContext ops = state.ops();
  Tensor logits = allocate(ops, DType::kF32, {rows, state.model.head_outputs()});
  state.model.logits(ops, hidden, rows, mode, logits.mutable_data<float>());
  std::vector<float> here(static_cast<size_t>(logits.element_count()));
  copy_here(ops, here.data(), logits.bytes(), logits.byte_count());
  return here;
}

// Of every token, [tokens of all prompts, vocabulary]: the prompts as one ragged batch.
std::vector<float> prompt_logits(const LanguageModel& model, const Prompts& prompts) {
  const LanguageModel::State& state = model.state();
  const OpContext ops = state.ops();
  const int64_t longest = longest_of(prompts);
  const RopeTables rope = state.model.rope_tables(ops, longest);
  KvCache cache(state.model.config(), static_cast<int64_t>(prompts.size()), longest, state.cache_dtype,
                state.gpu.get());
  std::vector<SequenceTokens> batch;
  int64_t rows = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    batch.push_back({static_cast<int64_t>(i), prompts[i]});
    rows += static_cast<int64_t>(prompts[i].size());
  }
  Tensor hidden = allocate(ops, DType::kF32, {rows, state.model.config().hidden_size});
  forward(state.model, ops, rope, batch, MatmulMode::kPrefill, cache, hidden.mutable_data<float>());
  return logits_of(model, hidden.data<float>(), rows, MatmulMode::kPrefill);
}

// The same, when all tokens but the first `at_once` of each prompt are decoded, those of all prompts
// together.
std::vector<float> step_logits(const LanguageModel& model, const Prompts& prompts, size_t at_once) {
  const LanguageModel::State& state = model.state();
  const OpContext ops = state.ops();
  const int64_t longest = longest_of(prompts), width = state.model.config().hidden_size;
  const auto vocab = static_cast<size_t>(state.model.head_outputs());
  const RopeTables rope = state.model.rope_tables(ops, longest);
  KvCache cache(state.model.config(), static_cast<int64_t>(prompts.size()), longest, state.cache_dtype,
                state.gpu.get());
  std::vector<size_t> first_row;
  size_t rows = 0;
  for (const auto& ids : prompts) first_row.push_back(rows), rows += ids.size();
  std::vector<float> all(rows * vocab);
  const auto run = [&](size_t begin, size_t end, MatmulMode mode) {
    std::vector<SequenceTokens> batch;
    std::vector<size_t> places;
    for (size_t i = 0; i < prompts.size(); ++i) {
      const size_t last = std::min(end, prompts[i].size());
      if (begin >= last) continue;
      batch.push_back({static_cast<int64_t>(i), std::span(prompts[i]).subspan(begin, last - begin)});
      for (size_t token = begin; token < last; ++token) places.push_back(first_row[i] + token);
    }
    const auto count = static_cast<int64_t>(places.size());
    Tensor hidden = allocate(ops, DType::kF32, {count, width});
    forward(state.model, ops, rope, batch, mode, cache, hidden.mutable_data<float>());
    const std::vector<float> logits = logits_of(model, hidden.data<float>(), count, mode);
    for (size_t i = 0; i < places.size(); ++i)
      std::copy_n(logits.begin() + static_cast<std::ptrdiff_t>(i * vocab), vocab,
                  all.begin() + static_cast<std::ptrdiff_t>(places[i] * vocab));
  };
  if (at_once > 0) run(0, at_once, MatmulMode::kPrefill);
  for (size_t token = at_once; token < static_cast<size_t>(longest); ++token)
    run(token, token + 1, MatmulMode::kDecode);
  return all;
}

double largest_of(std::span<const float> values) {
  double largest = 0;
  for (float value : values) largest = std::max(largest, std::abs(double{value}));
  return largest;
}

// Within the bound of what is largest, and the same token wherever the first is clearly ahead.
void expect_near(const std::vector<float>& got, const std::vector<float>& expected, size_t vocab,
                 double bound, const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  const double allowed = bound * largest_of(expected);
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_TRUE(std::isfinite(got[i])) << what << ", row " << i / vocab;
    worst = std::max(worst, std::abs(double{got[i]} - double{expected[i]}));
  }
  EXPECT_LE(worst, allowed) << what;
  ::testing::Test::RecordProperty(what, fmt::format("{:.2g}", worst / largest_of(expected)));
  size_t clear = 0;
  for (size_t row = 0; row < got.size() / vocab; ++row) {
    std::vector<float> sorted(expected.begin() + static_cast<std::ptrdiff_t>(row * vocab),
                              expected.begin() + static_cast<std::ptrdiff_t>((row + 1) * vocab));
    const auto best = std::max_element(sorted.begin(), sorted.end()) - sorted.begin();
    const auto ours = got.begin() + static_cast<std::ptrdiff_t>(row * vocab);
    const auto found = std::max_element(ours, ours + static_cast<std::ptrdiff_t>(vocab)) - ours;
    std::nth_element(sorted.begin(), sorted.begin() + 1, sorted.end(), std::greater<>());
    if (double{sorted[0]} - double{sorted[1]} <= 2 * allowed) continue;
    ++clear;
    EXPECT_EQ(found, best) << what << ", row " << row;
  }
  EXPECT_GT(clear, got.size() / vocab / 4) << what << ": hardly a row says anything";
}

class RandomArchitecture : public ::testing::TestWithParam<RandomModel> {
 protected:
  void SetUp() override { write_random_model(folder_.path() / "model", GetParam()); }
  LanguageModel load(const RuntimeOptions& options) const {
    return LanguageModel::load(folder_.path() / "model", options);
  }
  LanguageModel on_cpu() const {
    return load({.device = "cpu", .threads = 2, .kernel = "ref", .kv_cache_dtype = "float32"});
  }

  TemporaryFolder folder_;
};

TEST_P(RandomArchitecture, StepsGiveOnTheCpuWhatPromptsGive) {
  const LanguageModel model = on_cpu();
  const Prompts prompts = random_prompts();
  const std::vector<float> expected = prompt_logits(model, prompts);
  expect_near(step_logits(model, prompts, 4), expected, kRandomVocab, 1e-4, "steps");
}

std::string name_of(const ::testing::TestParamInfo<RandomModel>& info) { return info.param.name; }
INSTANTIATE_TEST_SUITE_P(All, RandomArchitecture, ::testing::ValuesIn(kRandomDecoders), name_of);

class GpuArchitecture : public RandomArchitecture {
 protected:
  void SetUp() override {
    if (!gpu_support().problem.empty()) GTEST_SKIP() << gpu_support().problem;
    RandomArchitecture::SetUp();
  }
};

TEST_P(GpuArchitecture, PromptsAndStepsGiveTheLogitsOfTheCpu) {
  const Prompts prompts = random_prompts();
  const std::vector<float> expected = prompt_logits(on_cpu(), prompts);
  const LanguageModel model = load({.device = "cuda"});
  expect_near(prompt_logits(model, prompts), expected, kRandomVocab, kBf16Bound, "prompts");
  expect_near(step_logits(model, prompts, 0), expected, kRandomVocab, kBf16Bound, "steps");
  expect_near(step_logits(model, prompts, 33), expected, kRandomVocab, kBf16Bound, "prompt_then_steps");
}

// In nf4 no two ways to multiply see other weights.
TEST_P(GpuArchitecture, StepsGiveWhatPromptsGiveInFourBits) {
  const Prompts prompts = random_prompts();
  const LanguageModel model = load({.device = "cuda", .load_in_4bit = true});
  expect_near(step_logits(model, prompts, 3), prompt_logits(model, prompts), kRandomVocab, kBf16Bound, "nf4");
}

// Recorded steps, those that are queued kernel by kernel, and steps with layers that come and go.
TEST_P(GpuArchitecture, AnswersAreThoseOfStepsAlone) {
  const LanguageModel model = load({.device = "cuda"});
  const Prompts prompts = random_prompts();
  for (const GenerateOptions& rule : {GenerateOptions{}, {.temperature = 0.9f, .top_k = 40, .seed = 5}}) {
    GenerateOptions options = rule;
    options.max_new_tokens = 60, options.ignore_eos = true;
    const Prompts expected = sampled_on_host(model, prompts, options);
    EXPECT_EQ(tokens_of(model.generate(prompts, options)), expected);
    EXPECT_EQ(tokens_of(model.generate(prompts, options)), expected) << "again";
    options.max_new_tokens = 10;
    const Prompts few = tokens_of(model.generate(prompts, options));
    for (size_t i = 0; i < prompts.size(); ++i)
      EXPECT_TRUE(std::equal(few[i].begin(), few[i].end(), expected[i].begin())) << i;
  }
}

TEST_P(GpuArchitecture, WhatIsPlannedIsEnoughAndStreamedLayersChangeNoToken) {
  const Checkpoint checkpoint = read_checkpoint(folder_.path() / "model");
  Model counted = Model::create(checkpoint.config, checkpoint.weights);
  constexpr int64_t kTokens = 1024;
  const GpuSizes sizes = gpu_sizes(counted, DType::kBF16, kTokens);
  const Prompts prompts = random_prompts();
  const GenerateOptions options{.max_new_tokens = 30, .ignore_eos = true};
  const Prompts expected = tokens_of(load({.device = "cuda"}).generate(prompts, options));
  for (const int64_t streamed : {int64_t{0}, kRandomLayers}) {
    const uint64_t limit = plan_with_streamed(sizes, streamed).needed_bytes;
    const LanguageModel model = load({.device = "cuda", .max_gpu_memory = limit, .kv_cache_tokens = kTokens});
    EXPECT_EQ(tokens_of(model.generate(prompts, options)), expected) << streamed;
    EXPECT_LE(model.memory().gpu_peak_bytes, limit);
    EXPECT_EQ(model.memory().gpu_weight_bytes, limit - sizes.cache - sizes.work) << streamed;
  }
}

INSTANTIATE_TEST_SUITE_P(Gpu, GpuArchitecture, ::testing::ValuesIn(kRandomDecoders), name_of);

class GpuEncoder : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!gpu_support().problem.empty()) GTEST_SKIP() << gpu_support().problem;
  }
};

TEST_F(GpuEncoder, EveryTokensLogitsAreThoseOfTheCpu) {
  const TemporaryFolder folder;
  write_random_model(folder.path() / "bert", kRandomBert);
  const LanguageModel cpu =
      LanguageModel::load(folder.path() / "bert", {.device = "cpu", .threads = 2, .kernel = "ref"});
  const Prompts prompts = random_prompts();
  const std::vector<float> expected = prompt_logits(cpu, prompts);
  for (bool in_4bit : {false, true}) {
    const LanguageModel gpu =
        LanguageModel::load(folder.path() / "bert", {.device = "cuda", .load_in_4bit = in_4bit});
    if (in_4bit) {
      const LanguageModel other = LanguageModel::load(
          folder.path() / "bert", {.device = "cpu", .threads = 2, .kernel = "ref", .load_in_4bit = true});
      expect_near(prompt_logits(gpu, prompts), prompt_logits(other, prompts), kRandomVocab, kBf16Bound,
                  "nf4");
    } else {
      expect_near(prompt_logits(gpu, prompts), expected, kRandomVocab, kBf16Bound, "BF16");
    }
  }
}

std::vector<float> floats_at(const Json& json) {
  std::vector<float> list;
  for (const Json& value : json.as_array()) list.push_back(static_cast<float>(value.as_number()));
  return list;
}

// Classes, pooled and mean states of texts, with token types: what transformers computed.
TEST_F(GpuEncoder, ClassesAndStatesAreThoseOfTransformers) {
  const fs::path folder = fs::path(LOWBIT_SOURCE_DIR) / "tests/golden/bert_classifier";
  const LanguageModel loaded = LanguageModel::load(folder, {.device = "cuda"});
  const Model& model = loaded.state().model;
  const OpContext ops = loaded.state().ops();
  const int64_t width = model.config().hidden_size;
  const Json golden = parse_json(read_file(folder / "golden.json"), "golden.json");
  const Json::Array& examples = golden.get("examples").as_array();
  std::vector<EncoderInput> inputs;
  for (const Json& example : examples) {
    EncoderInput& input = inputs.emplace_back();
    for (const Json& id : example.get("ids").as_array())
      input.ids.push_back(static_cast<int32_t>(id.as_integer()));
    for (const Json& type : example.get("types").as_array())
      input.types.push_back(static_cast<int32_t>(type.as_integer()));
  }
  const auto expect_like = [](const std::vector<float>& got, const std::vector<float>& expected,
                              const std::string& what) {
    ASSERT_EQ(got.size(), expected.size()) << what;
    for (size_t i = 0; i < got.size(); ++i)
      EXPECT_NEAR(got[i], expected[i], kBf16Bound * largest_of(expected)) << what << " " << i;
  };
  run_encoder(loaded.state(), inputs, 5, "test", {}, [&](size_t i, const float* hidden) {
    const auto tokens = static_cast<int64_t>(inputs[i].ids.size());
    std::vector<float> states(static_cast<size_t>(tokens * width)), mean(static_cast<size_t>(width));
    copy_here(ops, states.data(), hidden, states.size() * sizeof(float));
    for (size_t k = 0; k < states.size(); ++k)
      mean[k % static_cast<size_t>(width)] += states[k] / static_cast<float>(tokens);
    const std::string what = fmt::format("example {}, ", i);
    expect_like({states.begin(), states.begin() + width}, floats_at(examples[i].get("cls")), what + "cls");
    expect_like(mean, floats_at(examples[i].get("mean")), what + "mean");
    expect_like(logits_of(loaded, hidden, 1, MatmulMode::kDecode), floats_at(examples[i].get("logits")),
                what + "logits");
  });
}

TEST_F(GpuEncoder, EmbeddingsAreThoseOfTheCpu) {
  const fs::path folder = fs::path(LOWBIT_SOURCE_DIR) / "tests/golden/bert_classifier";
  const std::vector<std::string> texts = {"a short text", "another one that is a little longer than that",
                                          "x"};
  const LanguageModel cpu = LanguageModel::load(folder, {.device = "cpu", .threads = 2}),
                      gpu = LanguageModel::load(folder, {.device = "cuda"});
  for (const char* pooling : {"mean", "cls"}) {
    const EmbedOptions options{.pooling = pooling, .batch_size = 2};
    const Embeddings expected = embed(cpu, texts, options), got = embed(gpu, texts, options);
    ASSERT_EQ(got.values.size(), expected.values.size());
    for (size_t i = 0; i < got.values.size(); ++i)
      EXPECT_NEAR(got.values[i], expected.values[i], kBf16Bound * largest_of(expected.values)) << pooling;
  }
}

}  // namespace
}  // namespace lowbit
