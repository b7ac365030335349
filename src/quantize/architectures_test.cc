// Quantizing architectures whose blocks are not as Llama's, on small models that are not part of the project:
// save, load, generate, check.
#include "base/files.h"
#include "checkpoint/checkpoint.h"
#include "lowbit/convert.h"
#include "lowbit/generate.h"
#include "lowbit/quantize.h"
#include "quantize/run.h"
#include "quantize/source_model.h"
#include "quantize/states_test_support.h"
#include "quantize/test_problem.h"
#include "support.h"

#include <gtest/gtest.h>

namespace lowbit {
namespace {

using namespace lowbit::testing;
namespace fs = std::filesystem;

class QuantizeArchitecture : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    LOWBIT_SKIP_WITHOUT_MATERIAL(material);
    model_ = material / "peers" / "models" / GetParam();
    std::mt19937_64 engine(3);
    for (int i = 0; i < 10; ++i) {
      std::vector<int32_t> ids(20 + engine() % 60);
      for (int32_t& id : ids) id = static_cast<int32_t>(engine() % 512);
      if (i < 8) calibration_.tokens += static_cast<int64_t>(ids.size());
      (i < 8 ? calibration_.samples : calibration_.held_back).push_back(ids);
    }
    options_.affine = {8, 32, true};
    options_.threads = 2;
    options_.device = "cpu";
    options_.calibration.batch_size = 4;
  }

  fs::path model_;
  TemporaryFolder folder_;
  Calibration calibration_;
  QuantizeOptions options_;
};

std::vector<int32_t> answer(const fs::path& model) {
  const LanguageModel loaded = LanguageModel::load(
      model, {.device = "cpu", .threads = 2, .kernel = "ref", .kv_cache_dtype = "float32"});
  return loaded.generate({{122, 17, 325, 219}}, {.max_new_tokens = 4, .ignore_eos = true})[0].token_ids;
}

TEST_P(QuantizeArchitecture, ResultsLoadGenerateAndPassTheirCheck) {
  for (const auto& [bits, method, limit] :
       {std::tuple{8, "gptq", 0.01}, {8, "rtn", 0.01}, {4, "gptq", 0.5}, {4, "rtn", 0.5}}) {
    options_.affine.bits = bits;
    options_.method = method;
    const fs::path out = folder_.path() / fmt::format("{}{}", method, bits);
    const QuantizeResult result = quantize_tokens(model_, out, options_, calibration_);
    EXPECT_TRUE(result.checked && result.passed) << method << bits;
    EXPECT_GT(result.mean_kl, 0) << method << bits;
    EXPECT_LT(result.mean_kl, limit) << method << bits;
    for (const ModuleReport& report : result.modules)
      EXPECT_TRUE(report.method == method || report.note.find("head") != std::string::npos ||
                  report.note.find("embedding") != std::string::npos)
          << report.module << " " << report.method << " " << report.note;
    const std::vector<int32_t> ids = answer(out);
    EXPECT_EQ(ids.size(), 4u);
    if (bits == 8 && options_.method == "gptq") {
      EXPECT_EQ(ids[0], answer(model_)[0]);
    }
  }
}

TEST_P(QuantizeArchitecture, CarriesMadeAnewGiveTheSameStatesAndThoseOfARun) {
  expect_same_states(load_source(model_), calibration_.samples);
}

INSTANTIATE_TEST_SUITE_P(All, QuantizeArchitecture,
                         ::testing::Values("phi3", "gpt2", "gpt_neox", "gpt_neox-sequential", "bloom", "opt",
                                           "opt-postnorm-proj", "gemma3_text"));

// A Conv1D's codes are written as those of a linear layer, its dense weights as [in, out].
TEST(QuantizeConv1d, DenseFilesAreTurnedBack) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const TemporaryFolder folder;
  const fs::path codes = folder.path() / "codes", dense = folder.path() / "dense";
  QuantizeOptions options;
  options.method = "rtn";
  options.affine = {8, 32, true};
  options.device = "cpu";
  options.dynamic = {"-:.*h\\.1\\.mlp.*"};
  quantize_tokens(material / "peers" / "models" / "gpt2", codes, options, {});
  convert(codes, dense, {.to = "float32"});
  const Checkpoint quantized = read_checkpoint(codes), turned = read_checkpoint(dense);
  const std::string module = "transformer.h.0.attn.c_attn.weight";
  const auto& of = std::get<QuantizedTensor>(quantized.weights.at(module));
  EXPECT_EQ(of.out_features, 192);
  EXPECT_EQ(of.in_features, 64);
  EXPECT_EQ(std::get<Tensor>(turned.weights.at(module)).shape(), (Shape{64, 192}));
  for (const char* kept : {"transformer.h.1.mlp.c_fc.weight", "transformer.wte.weight"}) {
    EXPECT_TRUE(
        same_bytes(std::get<Tensor>(quantized.weights.at(kept)), std::get<Tensor>(turned.weights.at(kept))));
  }
  EXPECT_EQ(answer(codes), answer(dense));
}

}  // namespace
}  // namespace lowbit
