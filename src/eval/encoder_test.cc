// Classification and embeddings of encoders, on the small model of tests/golden.
#include "base/files.h"
#include "base/json.h"
#include "eval/statistics.h"
#include "support.h"

#include <cmath>
#include <fstream>

namespace lowbit {
namespace {

namespace fs = std::filesystem;
using testing::error_of;
using testing::TemporaryFolder;

const fs::path kClassifier = fs::path(LOWBIT_SOURCE_DIR) / "tests/golden/bert_classifier";

LanguageModel load(const RuntimeOptions& options = {.device = "cpu", .threads = 2}) {
  return LanguageModel::load(kClassifier, options);
}

std::string write(const fs::path& file, const std::string& text) {
  std::ofstream(file) << text;
  return file.string();
}

TEST(Spearman, IsThatOfRanksWithTiesShared) {
  EXPECT_DOUBLE_EQ(*spearman({1, 2, 3, 9}, {0.1f, 0.2f, 5, 6}), 1);
  EXPECT_DOUBLE_EQ(*spearman({1, 2, 3}, {3, 2, 1}), -1);
  EXPECT_NEAR(*spearman({1, 2, 2, 4}, {1, 3, 2, 4}), 0.9486832980505138, 1e-12);  // scipy.stats.spearmanr
  EXPECT_FALSE(spearman({1, 1}, {1, 2}).has_value());
  EXPECT_FALSE(spearman({1}, {2}).has_value());
}

// Of the examples of the golden, whose logits transformers made.
TEST(ClassifySequences, CountsWhatTheHeadSaysOfEachLabel) {
  const Json golden = parse_json(read_file(kClassifier / "golden.json"), "golden.json");
  const std::string names[] = {"ham", "spam", "other"};
  const TemporaryFolder folder;
  std::string lines;
  std::vector<int> expected, truths;
  std::vector<double> probabilities;
  for (const Json& example : golden.get("examples").as_array()) {
    if (example.get("max_length").as_integer() != 48 ||
        example.get("text").as_string().find('[') != std::string::npos)
      continue;
    const std::vector<Json>& logits = example.get("logits").as_array();
    size_t best = 0;
    double sum = 0;
    for (size_t i = 0; i < 3; ++i)
      if (logits[i].as_number() > logits[best].as_number()) best = i;
    for (size_t i = 0; i < 3; ++i) sum += std::exp(logits[i].as_number() - logits[best].as_number());
    expected.push_back(static_cast<int>(best));
    probabilities.push_back(1 / sum);
    truths.push_back(static_cast<int>(expected.size() % 3));
    Json line = Json::object();
    line.set("text", example.get("text"));
    if (example.get("text_pair").is_string()) line.set("text_pair", example.get("text_pair"));
    // By name and by index.
    if (expected.size() % 2 == 0) {
      line.set("label", names[truths.back()]);
    } else {
      line.set("label", truths.back());
    }
    lines += line.dump() + "\n";
  }
  ASSERT_GE(expected.size(), 8u);
  const std::string data = write(folder.path() / "data.jsonl", lines);
  const fs::path predictions = folder.path() / "predictions.jsonl";
  const LanguageModel model = load();
  ClassifyOptions options{
      .batch_size = 3, .label_key = "label", .predictions = predictions, .truncate = true};
  const SequenceClassifyResult result = classify_sequences(model, data, options);
  EXPECT_EQ(result.predictions, expected);
  EXPECT_EQ(result.truths, truths);
  int64_t right = 0, all = 0;
  for (size_t i = 0; i < truths.size(); ++i) {
    right += truths[i] == expected[i];
    EXPECT_NEAR(double{result.probabilities[i][static_cast<size_t>(expected[i])]}, probabilities[i], 1e-5);
  }
  EXPECT_DOUBLE_EQ(*result.accuracy.value, static_cast<double>(right) / static_cast<double>(truths.size()));
  ASSERT_EQ(result.labels.size(), 3u);
  for (size_t label = 0; label < 3; ++label) {
    int64_t predicted = 0, true_positive = 0, samples = 0;
    for (size_t i = 0; i < truths.size(); ++i) {
      predicted += expected[i] == static_cast<int>(label);
      samples += truths[i] == static_cast<int>(label);
      true_positive += expected[i] == static_cast<int>(label) && truths[i] == static_cast<int>(label);
    }
    EXPECT_EQ(result.labels[label].label, names[label]);
    EXPECT_EQ(result.labels[label].samples, samples);
    EXPECT_EQ(result.confusion[label][label], true_positive);
    EXPECT_EQ(result.labels[label].recall.value.has_value(), samples > 0);
    if (predicted > 0) {
      EXPECT_DOUBLE_EQ(*result.labels[label].precision.value,
                       static_cast<double>(true_positive) / static_cast<double>(predicted));
    }
    for (int64_t count : result.confusion[label]) all += count;
  }
  EXPECT_EQ(all, static_cast<int64_t>(truths.size()));
  EXPECT_NE(read_file(predictions).find("\"probability\""), std::string::npos);
  // Batches change nothing.
  options.batch_size = 64;
  EXPECT_EQ(classify_sequences(model, data, options).probabilities, result.probabilities);
  options.limit = 2;
  EXPECT_EQ(classify_sequences(model, data, options).samples, 2);
}

TEST(ClassifySequences, RefusesWhatItCannotAnswer) {
  const TemporaryFolder folder;
  const LanguageModel model = load();
  const std::string good = write(folder.path() / "good.jsonl", R"({"text": "the", "label": "spam"})"
                                                               "\n");
  auto refusal = [&](const std::string& data, const ClassifyOptions& options) {
    return error_of(ErrorCode::kInvalidArgument, [&] { classify_sequences(model, data, options); });
  };
  const std::string bad = write(folder.path() / "bad.jsonl", R"({"id": "x7", "text": "the", "label": "eggs"})"
                                                             "\n");
  const std::string message = refusal(bad, {.label_key = "label"});
  for (const char* part : {"x7", "eggs", "\"ham\", \"spam\", \"other\""})
    EXPECT_NE(message.find(part), std::string::npos) << message;
  EXPECT_NE(refusal(good, {}).find("--label-key"), std::string::npos);
  EXPECT_NE(refusal(good, {.label_key = "label", .max_new_tokens = 7}).find("max_new_tokens"),
            std::string::npos);
  const std::string chat =
      write(folder.path() / "chat.jsonl", R"({"messages": [{"role": "user", "content": "x"}], "label": 1})"
                                          "\n");
  EXPECT_NE(refusal(chat, {.label_key = "label"}).find("text_pair"), std::string::npos);
  // What takes models that write text.
  EXPECT_NE(error_of(ErrorCode::kInvalidArgument, [&] { classify(model, good, {}); }).find("encoder"),
            std::string::npos);
  error_of(ErrorCode::kInvalidArgument, [&] { perplexity(model, good, {.context = 8}); });
}

TEST(CompareEmbeddings, OfAModelWithItselfIsOneAndWithItsRoundedSelfBelow) {
  const TemporaryFolder folder;
  const std::string texts =
      write(folder.path() / "texts.txt", "the of and\n\n  who made it ?\r\nwater\nno\n");
  const LanguageModel model = load();
  const EmbeddingsResult same = compare_embeddings(model, model, texts);
  EXPECT_EQ(same.texts, 4);
  EXPECT_NEAR(same.min_cosine, 1, 1e-7);
  EXPECT_NEAR(*same.similarity_spearman, 1, 1e-12);
  const LanguageModel rounded = load({.device = "cpu", .threads = 2, .load_in_4bit = true});
  const EmbeddingsResult four = compare_embeddings(rounded, model, texts);
  EXPECT_LT(four.mean_cosine, 0.9999);
  EXPECT_GT(four.mean_cosine, 0.9);
  EXPECT_LE(four.min_cosine, four.p1_cosine);
  EXPECT_LE(four.p1_cosine, four.p5_cosine);
  EXPECT_LE(four.p5_cosine, four.median_cosine);
  EXPECT_EQ(compare_embeddings(model, model, texts, {.limit = 3}).texts, 3);
  const std::string jsonl =
      write(folder.path() / "texts.jsonl", "{\"text\": \"the of\"}\n{\"text\": \"a\\nb\"}\n");
  EXPECT_EQ(compare_embeddings(model, model, jsonl).texts, 2);
  const std::string blank = write(folder.path() / "blank.txt", "\n  \n");
  error_of(ErrorCode::kInvalidArgument, [&] { compare_embeddings(model, model, blank); });
}

}  // namespace
}  // namespace lowbit
