// Evaluation of the demo model on a GPU, with all its weights there and with layers that are streamed.
#include "base/gpu.h"

#include "base/files.h"
#include "base/json.h"
#include "checkpoint/checkpoint.h"
#include "lowbit/evaluate.h"
#include "runtime/gpu_placement.h"
#include "runtime/load_quantized.h"
#include "support.h"

#include <fstream>
#include <gtest/gtest.h>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

const fs::path kModel = LOWBIT_SOURCE_DIR "/demo/model", kText = LOWBIT_SOURCE_DIR "/demo/data/heldout.txt";
constexpr int64_t kTokens = 1024;
const PerplexityOptions kWindows{.context = 256, .limit = 6, .batch_size = 4};

class GpuEval : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!gpu_support().problem.empty()) GTEST_SKIP() << gpu_support().problem;
  }
  // With exactly the memory in which so many layers must be streamed.
  static LanguageModel load(int64_t streamed) {
    const Checkpoint checkpoint = read_checkpoint(kModel);
    Model model = Model::create(checkpoint.config, checkpoint.weights);
    const uint64_t bytes = plan_with_streamed(gpu_sizes(model, DType::kBF16, kTokens), streamed).needed_bytes;
    return LanguageModel::load(kModel,
                               {.device = "cuda", .max_gpu_memory = bytes, .kv_cache_tokens = kTokens});
  }
};

TEST_F(GpuEval, PerplexityIsTheSameWithStreamedLayers) {
  const double expected = perplexity(load(0), kText, kWindows).mean_nll;
  for (int64_t streamed : {3, 4, 5}) {
    const LanguageModel model = load(streamed);
    const PerplexityResult result = perplexity(model, kText, kWindows);
    EXPECT_EQ(result.mean_nll, expected) << streamed;
    EXPECT_GT(result.memory.streamed_bytes, 0u);
    EXPECT_GT(result.memory.gpu_kv_cache_bytes, 0u);
    EXPECT_LE(result.memory.gpu_weight_bytes + result.memory.gpu_kv_cache_bytes,
              result.memory.gpu_peak_bytes);
    EXPECT_NE(to_json(result).find("\"streamed_bytes\""), std::string::npos);
  }
}

// Its matrices become codes on the GPU, also those of layers that are streamed.
TEST_F(GpuEval, PerplexityLoadedInFourBitsIsThatOfTheCpu) {
  for (const char* type : {"nf4", "fp4"}) {
    RuntimeOptions options{.device = "cpu", .load_in_4bit = true, .bnb_4bit_quant_type = type};
    const double expected = perplexity(LanguageModel::load(kModel, options), kText, kWindows).mean_nll;
    const double source = perplexity(load(0), kText, kWindows).mean_nll;
    options.device = "cuda";
    options.kv_cache_tokens = kTokens;
    const LanguageModel whole = LanguageModel::load(kModel, options);
    const double found = perplexity(whole, kText, kWindows).mean_nll;
    EXPECT_NEAR(found, expected, 0.003) << type;
    EXPECT_NE(found, source);
    const Checkpoint checkpoint = read_checkpoint(kModel);
    Model model = Model::create(checkpoint.config, checkpoint.weights);
    const GpuEncoding encoding = encoding_on_load(model, checkpoint, options, {});
    const GpuSizes sizes = gpu_sizes(model, DType::kBF16, kTokens, &encoding);
    options.max_gpu_memory = plan_with_streamed(sizes, 3).needed_bytes;
    const LanguageModel streamed = LanguageModel::load(kModel, options);
    EXPECT_GT(streamed.memory().streamed_bytes, 0u);
    EXPECT_EQ(perplexity(streamed, kText, kWindows).mean_nll, found) << type;
  }
}

TEST_F(GpuEval, DivergenceOfAStreamedModelFromItselfIsNothing) {
  const DivergenceResult result =
      divergence(load(3), load(0), kText, {.context = 256, .limit = 6, .batch_size = 4});
  EXPECT_LT(result.max_kl, 1e-9);
  EXPECT_EQ(result.top1_agreement, 1);
  EXPECT_EQ(result.perplexity.perplexity, result.reference_perplexity.perplexity);
}

TEST_F(GpuEval, ModelsOnTwoDevicesAreNotComparedSideBySide) {
  const LanguageModel on_cpu = LanguageModel::load(kModel, {.device = "cpu"});
  const std::string message = testing::error_of(
      ErrorCode::kUnsupported, [&] { divergence(load(0), on_cpu, kText, {.context = 64, .limit = 1}); });
  EXPECT_NE(message.find("cuda:0"), std::string::npos) << message;
}

TEST_F(GpuEval, ABatchThatIsTooLargeNamesThePhaseAndTheModelGoesOn) {
  const LanguageModel model = load(5);
  const double before = perplexity(model, kText, kWindows).mean_nll;
  const std::string message = testing::error_of(ErrorCode::kOutOfMemory, [&] {
    perplexity(model, kText, {.context = 1024, .limit = 12, .batch_size = 12});
  });
  for (const char* part : {"the keys and values of 12288 tokens", "--max-gpu-memory", "--batch-size"})
    EXPECT_NE(message.find(part), std::string::npos) << message;
  EXPECT_EQ(perplexity(model, kText, kWindows).mean_nll, before);
}

// The small classifier's labels and embeddings of texts, alone and in pairs.
TEST_F(GpuEval, AnEncodersAnswersAreThoseOfTheCpu) {
  const fs::path classifier = LOWBIT_SOURCE_DIR "/tests/golden/bert_classifier";
  const testing::TemporaryFolder folder;
  const fs::path data = folder.path() / "data.jsonl", texts = folder.path() / "texts.txt";
  std::ofstream lines(data), text_lines(texts);
  const Json golden = parse_json(read_file(classifier / "golden.json"), "golden.json");
  for (const Json& example : golden.get("examples").as_array()) {
    Json line = Json::object();
    line.set("text", example.get("text"));
    if (example.get("text_pair").is_string()) line.set("text_pair", example.get("text_pair"));
    line.set("label", 1);
    lines << line.dump() << "\n";
  }
  text_lines << "the of and\nwho made it ?\nwater\nno\n";
  lines.close(), text_lines.close();
  const LanguageModel cpu = LanguageModel::load(classifier, {.device = "cpu", .threads = 2}),
                      gpu = LanguageModel::load(classifier, {.device = "cuda"});
  const ClassifyOptions options{.batch_size = 3, .label_key = "label", .truncate = true};
  const SequenceClassifyResult expected = classify_sequences(cpu, data, options),
                               got = classify_sequences(gpu, data, options);
  ASSERT_EQ(got.probabilities.size(), expected.probabilities.size());
  for (size_t i = 0; i < got.probabilities.size(); ++i) {
    for (size_t label = 0; label < got.probabilities[i].size(); ++label)
      EXPECT_NEAR(got.probabilities[i][label], expected.probabilities[i][label], 2e-2) << i;
  }
  EXPECT_GT(compare_embeddings(gpu, cpu, texts).min_cosine, 0.999);
}

}  // namespace
}  // namespace lowbit
