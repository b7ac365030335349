// Whole evaluations with a real model of 260k parameters, against transformers and against plain formulas.
#include "base/files.h"
#include "base/json.h"
#include "lowbit/evaluate.h"
#include "runtime/forward.h"
#include "runtime/language_model.h"
#include "support.h"

#include <cmath>
#include <fstream>
#include <gtest/gtest.h>

namespace lowbit {
namespace {

namespace fs = std::filesystem;
using testing::error_of;
using testing::TemporaryFolder;

const RuntimeOptions kExact{.device = "cpu", .threads = 1, .kernel = "ref", .kv_cache_dtype = "float32"};

fs::path stories() { return testing::material_folder() / "model-stories260k-llama2c" / "hf"; }
fs::path text_file() { return testing::material_folder() / "text" / "tinystories.txt"; }

// A copy of the stories model in `folder`, with a change to its config.
fs::path changed_copy(const fs::path& folder, const std::function<void(Json&)>& change) {
  for (const auto& entry : fs::directory_iterator(stories()))
    fs::copy_file(entry.path(), folder / entry.path().filename());
  Json config = parse_json(read_file(folder / "config.json"), "config.json");
  change(config);
  fs::permissions(folder / "config.json", fs::perms::owner_write, fs::perm_options::add);
  std::ofstream(folder / "config.json") << config.dump(2);
  return folder;
}

// Expected figures: transformers 5, float32, the first 12 windows of 128 ids of text/tinystories.txt.
TEST(Perplexity, MatchesTransformersUnderEveryProtocol) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const LanguageModel model = LanguageModel::load(stories(), kExact);
  const auto check = [&](PerplexityOptions options, double expected, int64_t tokens) {
    options.context = 128;
    options.limit = 12;
    const PerplexityResult result = perplexity(model, text_file(), options);
    EXPECT_NEAR(result.perplexity, expected, 1e-4 * expected) << result.protocol;
    EXPECT_NEAR(std::exp(result.mean_nll), result.perplexity, 1e-9);
    EXPECT_EQ(result.tokens, tokens) << result.protocol;
    EXPECT_EQ(result.windows, 12);
  };
  check({}, 6.328255810343883, 1524);
  check({.protocol = "llama.cpp"}, 6.75456097675883, 756);  // this tokenizer adds a BOS
  check({.stride = 32}, 5.29320132599397, 479);
  EXPECT_NEAR(perplexity(model, text_file(), {.context = 128, .limit = 12}).standard_error,
              0.07531215523692915, 1e-5);
}

TEST(Perplexity, DoesNotDependOnTheBatch) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const LanguageModel model = LanguageModel::load(stories(), kExact);
  const double one = perplexity(model, text_file(), {.context = 64, .limit = 5, .batch_size = 1}).mean_nll;
  EXPECT_EQ(perplexity(model, text_file(), {.context = 64, .limit = 5, .batch_size = 3}).mean_nll, one);
}

TEST(Perplexity, RefusesWindowsLongerThanTheModelsContext) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const LanguageModel model = LanguageModel::load(stories(), kExact);
  const std::string message =
      error_of(ErrorCode::kInvalidArgument, [&] { perplexity(model, text_file(), {.context = 1024}); });
  EXPECT_NE(message.find("1024"), std::string::npos) << message;
  EXPECT_NE(message.find("512"), std::string::npos) << message;
}

TEST(Divergence, OfAModelFromItselfIsNothing) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const LanguageModel model = LanguageModel::load(stories(), kExact),
                      reference = LanguageModel::load(stories(), kExact);
  const DivergenceResult result = divergence(model, reference, text_file(), {.context = 64, .limit = 3});
  EXPECT_LT(result.max_kl, 1e-12);
  EXPECT_EQ(result.top1_agreement, 1);
  EXPECT_EQ(result.tokens, 3 * 64);
  EXPECT_EQ(result.perplexity.perplexity, result.reference_perplexity.perplexity);
  const PerplexityResult alone = perplexity(model, text_file(), {.context = 64, .limit = 3});
  EXPECT_DOUBLE_EQ(result.perplexity.perplexity, alone.perplexity);
  EXPECT_DOUBLE_EQ(result.perplexity.standard_error, alone.standard_error);
  EXPECT_EQ(result.perplexity.tokens, alone.tokens);
  EXPECT_EQ(result.perplexity.protocol, alone.protocol);
}

// Log probabilities [ids, vocab] of one window, in double.
std::vector<std::vector<double>> log_probabilities(const LanguageModel& loaded,
                                                   const std::vector<int32_t>& ids) {
  const LanguageModel::State& state = loaded.state();
  const int64_t vocab = state.model.config().vocab_size;
  std::vector<float> logits(ids.size() * static_cast<size_t>(vocab));
  forward_windows(state.model, state.ops(), std::vector<std::vector<int32_t>>{ids}, 1, DType::kF32,
                  [&](size_t, const float* hidden) {
                    state.model.logits(state.ops(), hidden, static_cast<int64_t>(ids.size()),
                                       MatmulMode::kPrefill, logits.data());
                  });
  std::vector<std::vector<double>> rows;
  for (size_t row = 0; row < ids.size(); ++row) {
    const float* x = logits.data() + row * static_cast<size_t>(vocab);
    double sum = 0;
    for (int64_t i = 0; i < vocab; ++i) sum += std::exp(double{x[i]});
    rows.emplace_back();
    for (int64_t i = 0; i < vocab; ++i) rows.back().push_back(double{x[i]} - std::log(sum));
  }
  return rows;
}

TEST(Divergence, MatchesThePlainFormula) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const TemporaryFolder folder;
  changed_copy(folder.path(), [](Json& config) { config.set("rms_norm_eps", 0.5); });
  const LanguageModel model = LanguageModel::load(folder.path(), kExact),
                      reference = LanguageModel::load(stories(), kExact);
  constexpr int64_t kContext = 100;  // not a multiple of the rows that are held at once
  const DivergenceResult result =
      divergence(model, reference, text_file(), {.context = kContext, .limit = 1});

  std::vector<int32_t> ids = model.tokenizer().encode(read_file(text_file()).substr(0, 5000));
  ids.resize(kContext);
  const auto ours = log_probabilities(model, ids), theirs = log_probabilities(reference, ids);
  double sum = 0, most = 0, nll = 0;
  int agreeing = 0;
  for (size_t row = 0; row < ids.size(); ++row) {
    double kl = 0;
    for (size_t i = 0; i < ours[row].size(); ++i)
      kl += std::exp(theirs[row][i]) * (theirs[row][i] - ours[row][i]);
    sum += kl;
    most = std::max(most, kl);
    agreeing += std::max_element(ours[row].begin(), ours[row].end()) - ours[row].begin() ==
                std::max_element(theirs[row].begin(), theirs[row].end()) - theirs[row].begin();
    if (row + 1 < ids.size()) nll -= ours[row][static_cast<size_t>(ids[row + 1])];
  }
  EXPECT_GT(result.mean_kl, 1e-3);
  EXPECT_NEAR(result.mean_kl, sum / kContext, 1e-5 * result.mean_kl + 1e-7);
  EXPECT_NEAR(result.max_kl, most, 1e-5 * most);
  EXPECT_DOUBLE_EQ(result.top1_agreement, agreeing / static_cast<double>(kContext));
  EXPECT_NEAR(std::log(result.perplexity.perplexity), nll / (kContext - 1), 1e-6);
  EXPECT_LE(result.median_kl, result.p95_kl);
  EXPECT_LE(result.p99_kl, result.max_kl);
}

TEST(Divergence, RefusesAnotherVocabulary) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const LanguageModel model = LanguageModel::load(stories(), kExact);
  const LanguageModel other = LanguageModel::load(material / "model-tinystories-656k-llama", kExact);
  const std::string message =
      error_of(ErrorCode::kInvalidArgument, [&] { divergence(model, other, text_file(), {.context = 32}); });
  EXPECT_NE(message.find("512"), std::string::npos) << message;
  EXPECT_NE(message.find("2048"), std::string::npos) << message;
}

// A model that tells stories answers no question, so every answer is unparsable and must be counted as such.
TEST(Classify, CountsUnparsableAnswersAndWritesThemInFileOrder) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const TemporaryFolder folder;
  changed_copy(folder.path(), [](Json&) {});
  std::ofstream(folder.path() / "chat_template.jinja")
      << "{% for m in messages %}{{ m.content }}\n{% endfor %}";
  const fs::path data = folder.path() / "d.jsonl", predictions = folder.path() / "p.jsonl";
  {
    std::ofstream file(data);
    for (int i = 0; i < 5; ++i) {
      file << "{\"id\": \"call-" << i
           << "\", \"messages\": [{\"role\": \"user\", \"content\": \"Once upon a time"
           << std::string(static_cast<size_t>(i * 7 % 5), '!')
           << "\"}, {\"role\": \"assistant\", \"content\": \"{\\\"is_fraud\\\": "
           << (i < 3 ? "true" : "false") << "}\"}]}\n";
    }
  }
  const LanguageModel model = LanguageModel::load(folder.path(), kExact);
  ClassifyOptions options{.batch_size = 2, .max_new_tokens = 6, .predictions = predictions};
  const ClassifyResult result = classify(model, data, options);
  EXPECT_EQ(result.samples, 5);
  EXPECT_EQ(result.unparsable, 5);
  EXPECT_EQ(*result.recall.value, 0);
  EXPECT_FALSE(result.precision.value.has_value());
  EXPECT_EQ(*result.accuracy.value, 0);

  const std::string written = read_file(predictions);
  size_t begin = 0;
  for (int i = 0; i < 5; ++i) {
    const size_t end = written.find('\n', begin);
    ASSERT_NE(end, std::string::npos);
    const Json line = parse_json(std::string_view(written).substr(begin, end - begin), "predictions");
    EXPECT_EQ(line.get("id").as_string(), "call-" + std::to_string(i));
    EXPECT_EQ(line.get("truth").as_bool(), i < 3);
    EXPECT_TRUE(line.get("prediction").is_null());
    EXPECT_FALSE(line.get("answer").as_string().empty());
    begin = end + 1;
  }
  options.batch_size = 1;
  classify(model, data, options);
  EXPECT_EQ(read_file(predictions), written) << "the answers depend on the batch";

  options.unparsable = "negative";
  const ClassifyResult negative = classify(model, data, options);
  EXPECT_EQ(negative.false_negative, 3);
  EXPECT_EQ(negative.true_negative, 2);
  EXPECT_EQ(negative.unparsable, 5);
}

TEST(Classify, APromptLongerThanTheContextIsAnErrorBeforeAnythingRuns) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const TemporaryFolder folder;
  changed_copy(folder.path(), [](Json&) {});
  std::ofstream(folder.path() / "chat_template.jinja") << "{{ messages[0].content }}";
  std::ofstream(folder.path() / "d.jsonl")
      << "{\"is_fraud\": true, \"messages\": [{\"role\": \"user\", \"content\": \"" << std::string(3000, 'x')
      << "\"}]}\n";
  const LanguageModel model = LanguageModel::load(folder.path(), kExact);
  const std::string message =
      error_of(ErrorCode::kInvalidArgument, [&] { classify(model, folder.path() / "d.jsonl"); });
  EXPECT_NE(message.find("1 of 1 prompts"), std::string::npos) << message;
  EXPECT_NE(message.find("512"), std::string::npos) << message;
}

}  // namespace
}  // namespace lowbit
