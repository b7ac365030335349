// BERT against numbers that transformers computed in float32: each layer, both heads, padded batches (here
// ragged ones), token types, pooling.
#include "lowbit/embed.h"
#include "ops/softmax.h"
#include "runtime/encoder_run.h"
#include "runtime/forward.h"
#include "support.h"

#include <cmath>
#include <cstring>
#include <fstream>
#include <gtest/gtest.h>
#include <map>

namespace lowbit {
namespace {

namespace fs = std::filesystem;
using testing::error_of;
using testing::TemporaryFolder;

const fs::path kClassifier = fs::path(LOWBIT_SOURCE_DIR) / "tests/golden/bert_classifier";

template <class T>
std::vector<T> list_of(const Json& json) {
  std::vector<T> list;
  for (const Json& value : json.as_array()) list.push_back(static_cast<T>(value.as_number()));
  return list;
}

// max|a - b| / max|b|
double difference(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size()) return INFINITY;
  double largest = 0, most = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i])) return INFINITY;
    largest = std::max(largest, std::abs(double{a[i]} - b[i]));
    most = std::max(most, std::abs(double{b[i]}));
  }
  return largest / most;
}

std::vector<float> floats_of_base64(const std::string& text) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  uint32_t bits = 0, count = 0;
  for (const char c : text.substr(0, text.find('='))) {
    bits = bits << 6 | static_cast<uint32_t>(kDigits.find(c));
    if ((count += 6) >= 8) bytes += static_cast<char>(bits >> (count -= 8));
  }
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

std::vector<std::string> kernels() {
  std::vector<std::string> names = {"ref"};
  if (isa_available(Isa::kAvx2)) names.push_back("avx2");
  return names;
}

LanguageModel load(const fs::path& folder, const std::string& kernel = "") {
  return LanguageModel::load(folder, {.device = "cpu", .threads = 2, .kernel = kernel});
}

// A copy of the small model, to which files may be added.
void copy_classifier(const fs::path& to) {
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.json"})
    fs::copy_file(kClassifier / name, to / name);
}
void write(const fs::path& file, const std::string& text) {
  fs::create_directories(file.parent_path());
  std::ofstream(file) << text;
}

struct Example {
  std::string text;
  std::optional<std::string> second;
  int64_t max_length;
  EncoderInput input;
  std::vector<float> logits, pooled, mean, cls;
};

std::vector<Example> golden_examples() {
  std::vector<Example> examples;
  const Json golden = parse_json(read_file(kClassifier / "golden.json"), "golden.json");
  for (const Json& json : golden.get("examples").as_array()) {
    Example& example = examples.emplace_back();
    example.text = json.get("text").as_string();
    if (json.get("text_pair").is_string()) example.second = json.get("text_pair").as_string();
    example.max_length = json.get("max_length").as_integer();
    example.input.ids = list_of<int32_t>(json.get("ids"));
    example.input.types = list_of<int32_t>(json.get("types"));
    example.logits = list_of<float>(json.get("logits"));
    example.pooled = list_of<float>(json.get("pooled"));
    example.mean = list_of<float>(json.get("mean"));
    example.cls = list_of<float>(json.get("cls"));
  }
  return examples;
}

TEST(EncoderGolden, EveryLayerAndTheMaskedLanguageHeadMatchTransformers) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const fs::path folder = material / "peers" / "models" / "bert";
  std::map<std::string, Tensor> tensors;
  for (NamedTensor& named : open_safetensors(folder / "golden.safetensors").tensors)
    tensors[named.name] = named.tensor;
  const Json golden = parse_json(read_file(folder / "golden.json"), "golden.json", {.allow_nan = true});
  const Json& prompts = golden.get("prompts");
  for (const std::string& kernel : kernels()) {
    SCOPED_TRACE(kernel);
    const LanguageModel loaded = load(folder, kernel);
    EXPECT_EQ(loaded.task(), "fill-mask");
    const Model& model = loaded.state().model;
    const OpContext ops = loaded.state().ops();
    const int64_t width = model.config().hidden_size, vocab = model.config().vocab_size;
    double largest = 0;
    auto check = [&](const std::string& name, std::span<const float> values) {
      ASSERT_TRUE(tensors.count(name)) << name;
      const Tensor& expected = tensors[name];
      const double found =
          difference(values, {expected.data<float>(), static_cast<size_t>(expected.element_count())});
      EXPECT_LT(found, 1e-4) << name;
      largest = std::max(largest, found);
    };

    const std::vector<int32_t> first = list_of<int32_t>(prompts.get("prompt0"));
    const auto tokens = static_cast<int64_t>(first.size());
    std::vector<float> hidden(static_cast<size_t>(tokens * width));
    std::vector<int32_t> positions;
    for (int32_t i = 0; i < tokens; ++i) positions.push_back(i);
    KvCache cache(model.config(), 1, tokens, DType::kF32, nullptr, KvCache::Layers::kShared);
    model.embed(ops, first, positions.data(), hidden.data());
    check("hidden.embed", hidden);
    for (int64_t layer = 0; layer < model.layer_count(); ++layer) {
      const AttentionSequence sequence{0, tokens, 0, tokens, cache.keys(0), cache.values(0)};
      const StepInput step{.ops = &ops,
                           .tokens = tokens,
                           .positions = positions.data(),
                           .sequences = std::span(&sequence, 1),
                           .mode = MatmulMode::kPrefill};
      model.block(layer).run(step, hidden.data());
      check(fmt::format("hidden.layer{}", layer), hidden);
    }

    auto all_logits = [&](const std::vector<std::vector<int32_t>>& rows,
                          const std::vector<std::vector<int32_t>>& types,
                          const std::vector<std::string>& names) {
      forward_windows(
          model, ops, rows, 8, DType::kF32,
          [&](size_t row, const float* states) {
            const auto count = static_cast<int64_t>(rows[row].size());
            std::vector<float> logits(static_cast<size_t>(count * vocab));
            model.logits(ops, states, count, MatmulMode::kPrefill, logits.data());
            check("logits_all." + names[row], logits);
          },
          types);
    };
    all_logits({first}, {}, {"prompt0"});
    all_logits({first}, {{0, 0, 0, 0, 0, 1, 1, 1}}, {"prompt0_typed"});
    all_logits({list_of<int32_t>(prompts.get("prompt1"))}, {}, {"prompt1"});
    std::vector<std::vector<int32_t>> rows;
    for (const Json& row : prompts.get("batch_rows").as_array()) rows.push_back(list_of<int32_t>(row));
    all_logits(rows, {}, {"batch0", "batch1", "batch2"});

    const std::vector<std::vector<int32_t>> sequence = {list_of<int32_t>(
        prompts.find("nll_sequence") ? prompts.get("nll_sequence") : golden.get("nll_sequence"))};
    forward_windows(model, ops, sequence, 1, DType::kF32, [&](size_t, const float* states) {
      const auto count = static_cast<int64_t>(sequence[0].size());
      std::vector<float> logits(static_cast<size_t>(count * vocab)), losses;
      std::vector<double> sums(static_cast<size_t>(count));
      model.logits(ops, states, count, MatmulMode::kPrefill, logits.data());
      log_sum_exp(ops, logits.data(), count, vocab, sums.data());
      for (int64_t i = 0; i < count; ++i) {
        const auto target = static_cast<size_t>(i * vocab + sequence[0][static_cast<size_t>(i)]);
        losses.push_back(static_cast<float>(sums[static_cast<size_t>(i)] - logits[target]));
      }
      check("nll_per_token", losses);
    });
    RecordProperty("largest_relative_difference_" + kernel, fmt::format("{:.2g}", largest));
  }
}

TEST(EncoderGolden, TextsPairsClassesAndPoolingMatchTransformers) {
  const std::vector<Example> examples = golden_examples();
  ASSERT_GE(examples.size(), 20u);
  for (const std::string& kernel : kernels()) {
    SCOPED_TRACE(kernel);
    const LanguageModel loaded = load(kClassifier, kernel);
    EXPECT_EQ(loaded.task(), "text-classification");
    const Model& model = loaded.state().model;
    const OpContext ops = loaded.state().ops();
    const size_t width = static_cast<size_t>(model.config().hidden_size);
    EXPECT_EQ(model.config().labels, (std::vector<std::string>{"ham", "spam", "other"}));
    std::vector<EncoderInput> inputs;
    for (const Example& example : examples) {
      // transformers recognises special tokens in a text.
      const EncoderInput input = loaded.tokenizer().encode_input(
          example.text, example.second, example.max_length, {.parse_special_tokens = true});
      EXPECT_EQ(input.ids, example.input.ids) << example.text;
      EXPECT_EQ(input.types, example.input.types) << example.text;
      inputs.push_back(input);
    }
    double largest = 0;
    run_encoder(loaded.state(), inputs, 5, "test", {}, [&](size_t i, const float* hidden) {
      const size_t tokens = inputs[i].ids.size();
      std::vector<float> logits(3), pooled(width), mean(width);
      model.logits(ops, hidden, 1, MatmulMode::kDecode, logits.data());
      model.head_input(ops, hidden, 1, pooled.data());
      for (size_t k = 0; k < tokens * width; ++k) mean[k % width] += hidden[k] / static_cast<float>(tokens);
      for (const double found :
           {difference(logits, examples[i].logits), difference(pooled, examples[i].pooled),
            difference(mean, examples[i].mean), difference({hidden, width}, examples[i].cls)}) {
        EXPECT_LT(found, 1e-4) << i;
        largest = std::max(largest, found);
      }
    });
    RecordProperty("largest_relative_difference_" + kernel, fmt::format("{:.2g}", largest));
  }
}

TEST(Embed, PoolsAndNormalizesAsTheFolderSays) {
  std::vector<std::string> texts;
  std::vector<const Example*> whole;
  const std::vector<Example> examples = golden_examples();
  for (const Example& example : examples) {
    if (example.second || example.max_length != 48 || example.text.find('[') != std::string::npos) continue;
    texts.push_back(example.text);
    whole.push_back(&example);
  }
  ASSERT_GE(texts.size(), 4u);
  const TemporaryFolder folder;
  copy_classifier(folder.path());
  auto expect_rows = [&](const Embeddings& found, std::vector<float> Example::*expected, bool is_normalized) {
    ASSERT_EQ(found.count, static_cast<int64_t>(texts.size()));
    ASSERT_EQ(found.width, 32);
    EXPECT_EQ(found.is_normalized, is_normalized);
    for (size_t i = 0; i < texts.size(); ++i) {
      std::vector<float> row = whole[i]->*expected;
      double squares = 0;
      for (float value : row) squares += double{value} * double{value};
      for (float& value : row) value /= is_normalized ? static_cast<float>(std::sqrt(squares)) : 1;
      EXPECT_LT(difference({found.values.data() + i * 32, 32}, row), 1e-4) << i;
    }
  };
  const LanguageModel model = load(folder.path());
  const EmbedOptions cut{.truncate = true, .batch_size = 3};
  expect_rows(embed(model, texts, cut), &Example::mean, false);
  write(
      folder.path() / "1_Pooling/config.json",
      R"({"word_embedding_dimension": 32, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false})");
  write(
      folder.path() / "modules.json",
      R"([{"type": "sentence_transformers.models.Transformer"}, {"type": "sentence_transformers.models.Pooling"},
            {"type": "sentence_transformers.models.Normalize"}])");
  expect_rows(embed(model, texts, cut), &Example::cls, true);
  expect_rows(embed(model, texts, {.pooling = "mean", .truncate = true}), &Example::mean, true);
  // Batches, and what else is in them, change nothing.
  EXPECT_EQ(embed(model, texts, {.truncate = true, .batch_size = 1}).values,
            embed(model, texts, {.truncate = true, .batch_size = 64}).values);

  write(folder.path() / "1_Pooling/config.json", R"({"pooling_mode_max_tokens": true})");
  EXPECT_NE(error_of(ErrorCode::kUnsupported, [&] { embed(model, texts, cut); }).find("max_tokens"),
            std::string::npos);
  write(folder.path() / "modules.json", R"([{"type": "sentence_transformers.models.Dense"}])");
  EXPECT_NE(
      error_of(ErrorCode::kUnsupported, [&] { embed(model, texts, {.pooling = "mean", .truncate = true}); })
          .find("Dense"),
      std::string::npos);
}

TEST(Embed, TextsThatAreTooLongAreAnErrorOrAreCut) {
  const TemporaryFolder folder;
  copy_classifier(folder.path());
  const LanguageModel model = load(folder.path());
  std::string text;
  for (int i = 0; i < 60; ++i) text += "the ";
  const std::vector<std::string> texts = {"the", text};
  const std::string message = error_of(ErrorCode::kInvalidArgument, [&] { embed(model, texts); });
  for (const char* part : {"1 of 2 texts", "48", "max_position_embeddings", "text 2", "62", "truncate"})
    EXPECT_NE(message.find(part), std::string::npos) << message;
  const Embeddings cut = embed(model, texts, {.truncate = true});
  EXPECT_EQ(cut.truncated, 1);
  EXPECT_EQ(cut.tokens, 3 + 48);
  // What sentence-transformers reads at most; a length of one's own may be up to the model's positions.
  write(folder.path() / "sentence_bert_config.json", R"({"max_seq_length": 10, "do_lower_case": false})");
  EXPECT_EQ(embed(model, texts, {.truncate = true}).tokens, 3 + 10);
  EXPECT_EQ(embed(model, texts, {.max_length = 20, .truncate = true}).tokens, 3 + 20);
  for (int64_t length : {int64_t{-1}, int64_t{49}, int64_t{2}}) {
    EXPECT_NE(error_of(ErrorCode::kInvalidArgument,
                       [&] { embed(model, texts, {.max_length = length, .truncate = true}); })
                  .find("max_length"),
              std::string::npos);
  }
  error_of(ErrorCode::kInvalidArgument, [&] { embed(model, texts, {.pooling = "max"}); });
  error_of(ErrorCode::kInvalidArgument, [&] { embed(model, texts, {.batch_size = 0}); });
  fs::remove(folder.path() / "tokenizer.json");
  const LanguageModel without = load(folder.path());
  EXPECT_NE(error_of(ErrorCode::kNotFound, [&] { embed(without, texts); }).find("tokenizer.json"),
            std::string::npos);
}

TEST(Encoder, WritesNoText) {
  const std::string message = error_of(ErrorCode::kInvalidArgument, [] {
    load(kClassifier).generate({{2, 5, 3}}, {.max_new_tokens = 4});
  });
  for (const char* part : {"encoder", "BertForSequenceClassification", "eval embeddings", "eval classify"})
    EXPECT_NE(message.find(part), std::string::npos) << message;
}

TEST(Encoder, TokenTypesThatTheModelDoesNotHaveAreRefused) {
  const LanguageModel model = load(kClassifier);
  std::vector<EncoderInput> inputs(1);
  inputs[0].ids = {2, 5, 3};
  inputs[0].types = {0, 2, 0};
  EXPECT_NE(error_of(ErrorCode::kInvalidArgument,
                     [&] { run_encoder(model.state(), inputs, 1, "test", {}, [](size_t, const float*) {}); })
                .find("token type 2"),
            std::string::npos);
}

// LOWBIT_MODELS: a folder that holds what models/fetch.sh brought, as minilm.
TEST(Embed, MiniLmMatchesTransformers) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const char* models = std::getenv("LOWBIT_MODELS");
  if (models == nullptr || !fs::exists(fs::path(models) / "minilm"))
    GTEST_SKIP() << "LOWBIT_MODELS has no minilm";
  const Json golden = parse_json(read_file(material / "models/all-minilm-l6-v2/golden.json"), "golden.json");
  const LanguageModel model = load(fs::path(models) / "minilm");
  EXPECT_EQ(model.task(), "feature-extraction");
  std::vector<std::string> texts;
  for (const Json& text : golden.get("texts").as_array()) {
    texts.push_back(text.get("text").as_string());
    EXPECT_EQ(model.tokenizer().encode_input(texts.back()).ids, list_of<int32_t>(text.get("ids")));
  }
  const Embeddings found = embed(model, texts);
  EXPECT_EQ(found.max_length, 256);
  EXPECT_TRUE(found.is_normalized);
  const std::vector<Json>& list = golden.get("texts").as_array();
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::vector<float> expected = floats_of_base64(list[i].get("embedding").as_string());
    EXPECT_LT(difference({found.values.data() + i * 384, 384}, expected), 1e-5) << texts[i];
  }
}

}  // namespace
}  // namespace lowbit
