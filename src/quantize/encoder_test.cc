// Quantizing encoders through the same stages as models that write.
#include "base/files.h"
#include "lowbit/embed.h"
#include "quantize/run.h"
#include "quantize/source_model.h"
#include "quantize/states_test_support.h"
#include "quantize/test_problem.h"
#include "runtime/forward.h"
#include "runtime/language_model.h"
#include "support.h"

#include <gtest/gtest.h>

namespace lowbit {
namespace {

using namespace lowbit::testing;
namespace fs = std::filesystem;

const fs::path kClassifier = fs::path(LOWBIT_SOURCE_DIR) / "tests/golden/bert_classifier";

// ids: of the vocabulary. Sequences of different lengths, none longer than the model's positions.
Calibration random_calibration(uint64_t ids, uint64_t longest) {
  Calibration calibration;
  std::mt19937_64 engine(3);
  for (int i = 0; i < 34; ++i) {
    std::vector<int32_t> row(longest / 2 + engine() % (longest / 2));
    for (int32_t& id : row) id = static_cast<int32_t>(5 + engine() % (ids - 5));
    row.front() = 2, row.back() = 3;
    if (i < 30) calibration.tokens += static_cast<int64_t>(row.size());
    (i < 30 ? calibration.samples : calibration.held_back).push_back(row);
  }
  return calibration;
}

QuantizeOptions options_of(const std::string& method, int bits) {
  QuantizeOptions options;
  options.method = method;
  options.affine = {bits, 16, true};
  options.device = "cpu";
  options.threads = 2;
  options.calibration.batch_size = 4;
  return options;
}

LanguageModel load(const fs::path& folder, bool in_4bit = false) {
  return LanguageModel::load(folder, {.device = "cpu", .threads = 2, .load_in_4bit = in_4bit});
}

// What the head says of one sequence, of its first row.
std::vector<float> answer(const LanguageModel& model) {
  const LanguageModel::State& state = model.state();
  const std::vector<std::vector<int32_t>> ids = {{2, 40, 17, 333, 90, 128, 3}};
  std::vector<float> logits(static_cast<size_t>(state.model.head_outputs()));
  forward_windows(state.model, state.ops(), ids, 1, DType::kF32, [&](size_t, const float* hidden) {
    state.model.logits(state.ops(), hidden, 1, MatmulMode::kDecode, logits.data());
  });
  return logits;
}

double most_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) most = std::max(most, std::abs(double{a[i]} - double{b[i]}));
  return most;
}

double mean_error(const QuantizeResult& result, const std::string& method) {
  double sum = 0;
  int64_t count = 0;
  for (const ModuleReport& report : result.modules) {
    if (report.note.find("head") != std::string::npos || report.note.find("embedding") != std::string::npos)
      continue;
    EXPECT_EQ(report.method, method) << report.module << " " << report.note;
    sum += report.relative_error;
    ++count;
  }
  EXPECT_EQ(count, 12);  // six linears in each of two layers
  return sum / static_cast<double>(count);
}

void expect_sound(const fs::path& model, const Calibration& calibration) {
  const TemporaryFolder folder;
  const std::vector<float> source = answer(load(model));
  double errors[2][2];
  int row = 0;
  for (const auto& [bits, limit] : {std::pair{8, 0.01}, {4, 0.5}}) {
    int column = 0;
    for (const char* method : {"gptq", "rtn"}) {
      const fs::path out = folder.path() / fmt::format("{}{}", method, bits);
      const QuantizeResult result = quantize_tokens(model, out, options_of(method, bits), calibration);
      EXPECT_TRUE(result.checked && result.passed) << method << bits;
      EXPECT_GT(result.mean_kl, 0) << method << bits;
      EXPECT_LT(result.mean_kl, limit) << method << bits;
      errors[row][column++] = mean_error(result, method);
      const std::vector<float> found = answer(load(out));
      EXPECT_GT(most_difference(found, source), 0);
      if (bits == 8) {
        EXPECT_LT(most_difference(found, source), 0.2) << method;
      }
    }
    EXPECT_LT(errors[row][0], errors[row][1]) << "gptq should beat rtn at " << bits << " bits";
    ++row;
  }
}

TEST(QuantizeEncoder, AClassifierIsSoundInEveryMethod) {
  expect_sound(kClassifier, random_calibration(400, 48));
}

TEST(QuantizeEncoder, AMaskedLanguageModelIsSoundInEveryMethod) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  expect_sound(material / "peers" / "models" / "bert", random_calibration(512, 80));
}

TEST(QuantizeEncoder, CarriesMadeAnewGiveTheSameStatesAndThoseOfARun) {
  expect_same_states(load_source(kClassifier), random_calibration(400, 48).samples);
}

// A model without a head has no answers to compare; it is saved and loads all the same.
TEST(QuantizeEncoder, WithoutAHeadTheResultIsSavedUnchecked) {
  const TemporaryFolder folder;
  const fs::path bare = folder.path() / "bare", out = folder.path() / "out";
  fs::create_directory(bare);
  for (const char* name : {"model.safetensors", "tokenizer.json"})
    fs::copy_file(kClassifier / name, bare / name);
  Json config = parse_json(read_file(kClassifier / "config.json"), "config.json");
  config.set("architectures", Json(Json::Array{Json("BertModel")}));
  write_file_atomically(bare / "config.json", config.dump());
  fs::create_directory(bare / "1_Pooling");
  write_file_atomically(bare / "1_Pooling" / "config.json", R"({"pooling_mode_cls_token": true})");
  const QuantizeResult result =
      quantize_tokens(bare, out, options_of("gptq", 8), random_calibration(400, 48));
  EXPECT_FALSE(result.checked);
  EXPECT_TRUE(std::any_of(result.warnings.begin(), result.warnings.end(), [](const std::string& warning) {
    return warning.find("eval embeddings") != std::string::npos;
  }));
  EXPECT_GT(mean_error(result, "gptq"), 0);
  const std::vector<std::string> texts = {"the water", "who made it"};
  const Embeddings before = embed(load(bare), texts), after = embed(load(out), texts);
  EXPECT_EQ(after.pooling, "cls");
  double dot = 0, squares = 0, others = 0;
  for (size_t i = 0; i < before.values.size(); ++i) {
    dot += double{before.values[i]} * double{after.values[i]};
    squares += double{before.values[i]} * double{before.values[i]};
    others += double{after.values[i]} * double{after.values[i]};
  }
  EXPECT_GT(dot / std::sqrt(squares * others), 0.99);
  // Observer auto compares what models without a head leave.
  QuantizeOptions inputs = options_of("rtn", 8);
  inputs.affine = {};
  inputs.format = "int8";
  inputs.activations = "int8-static";
  const QuantizeResult rounded =
      quantize_tokens(bare, folder.path() / "static", inputs, random_calibration(400, 48));
  for (const ModuleReport& report : rounded.modules) EXPECT_LT(report.input->relative_error, 0.05);
  QuantizeOptions head = options_of("rtn", 8);
  head.lm_head = true;
  EXPECT_NE(
      error_of(ErrorCode::kInvalidArgument,
               [&] { quantize_tokens(bare, folder.path() / "other", head, random_calibration(400, 48)); })
          .find("lm_head"),
      std::string::npos);
}

TEST(QuantizeEncoder, InputsInInt8AreSoundStaticAndDynamic) {
  const TemporaryFolder folder;
  const std::vector<float> source = answer(load(kClassifier));
  for (const bool is_symmetric : {true, false}) {
    QuantizeOptions options = options_of("rtn", 8);
    options.affine = {};
    options.format = "int8";
    options.dialect = "compressed-tensors";
    options.activations = "int8-static";
    options.inputs.activations_sym = is_symmetric;
    const fs::path out = folder.path() / fmt::format("{}", is_symmetric);
    const QuantizeResult result = quantize_tokens(kClassifier, out, options, random_calibration(400, 48));
    EXPECT_TRUE(result.checked && result.passed);
    EXPECT_LT(result.mean_kl, 0.01);
    for (const ModuleReport& report : result.modules) EXPECT_LT(report.input->relative_error, 0.05);
    const std::vector<float> found = answer(load(out));
    EXPECT_GT(most_difference(found, source), 0);
    EXPECT_LT(most_difference(found, source), 0.2);
  }
}

// The bitsandbytes file is what loading in four bits makes, and names the linear layers that it leaves.
TEST(QuantizeEncoder, FourBitsOnDiskAreThoseOfLoading) {
  const TemporaryFolder folder;
  const fs::path out = folder.path() / "nf4";
  QuantizeOptions options;
  options.method = "rtn";
  options.format = "nf4";
  options.dialect = "bitsandbytes";
  options.device = "cpu";
  quantize(kClassifier, out, options);
  EXPECT_EQ(answer(load(out)), answer(load(kClassifier, true)));
  EXPECT_GT(most_difference(answer(load(out)), answer(load(kClassifier))), 0);
  const Json config = parse_json(read_file(out / "config.json"), "config.json");
  EXPECT_EQ(config.get("quantization_config").get("llm_int8_skip_modules").dump(),
            R"(["bert.pooler.dense", "classifier"])");
}

}  // namespace
}  // namespace lowbit
