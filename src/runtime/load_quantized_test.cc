#include "format/codebook.h"
#include "format/nested_scales.h"
#include "runtime/forward.h"
#include "runtime/language_model.h"
#include "support.h"

#include <cmath>
#include <cstring>
#include <gtest/gtest.h>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

LanguageModel load_demo(RuntimeOptions options) {
  options.device = "cpu";
  options.threads = 2;
  options.load_in_4bit = true;
  return LanguageModel::load(LOWBIT_SOURCE_DIR "/demo/model", options);
}

TEST(LoadQuantized, MatricesOfLayersAreCodesAndTheRestIsAsItWas) {
  for (const std::string type : {"nf4", "fp4"}) {
    const LanguageModel model = load_demo({.bnb_4bit_quant_type = type});
    const Model& loaded = model.state().model;
    for (int64_t layer = 0; layer < loaded.layer_count(); ++layer) {
      for (const Linear& linear : loaded.block(layer).linears()) {
        ASSERT_TRUE(std::holds_alternative<QuantizedTensor>(linear.weight)) << linear.module;
        const auto& weight = std::get<QuantizedTensor>(linear.weight);
        EXPECT_EQ(weight.format, type == "nf4" ? Format::kNf4 : Format::kFp4);
        EXPECT_EQ(weight.group_size, 64) << linear.module;
      }
    }
    EXPECT_TRUE(std::holds_alternative<Tensor>(loaded.embedding_table()));
    EXPECT_EQ(model.generate({{1, 2, 3}}, {.max_new_tokens = 4, .ignore_eos = true})[0].token_ids.size(), 4u);
  }
}

// As a file of bitsandbytes with double quantization would be read: codes are the same, scales are not.
TEST(LoadQuantized, DoubleQuantizationRoundsTheScales) {
  const LanguageModel plain = load_demo({}), twice = load_demo({.bnb_4bit_use_double_quant = true});
  int64_t different = 0;
  for (int64_t layer = 0; layer < plain.state().model.layer_count(); ++layer) {
    const auto &linears = plain.state().model.block(layer).linears(),
               &others = twice.state().model.block(layer).linears();
    for (size_t i = 0; i < linears.size(); ++i) {
      const auto &a = std::get<QuantizedTensor>(linears[i].weight),
                 &b = std::get<QuantizedTensor>(others[i].weight);
      ASSERT_EQ(std::memcmp(a.codes.bytes(), b.codes.bytes(), a.codes.byte_count()), 0);
      const std::vector<float> scales = flat_scales(a), rounded = flat_scales(b),
                               expected = unnested(nested(scales, mean_of(scales)));
      EXPECT_EQ(rounded, expected) << linears[i].module;
      different += rounded != scales;
    }
  }
  EXPECT_GT(different, 0);
}

TEST(LoadQuantized, InEightBitsMatricesAreRowsWhoseInputsAreRounded) {
  const LanguageModel model =
      LanguageModel::load(LOWBIT_SOURCE_DIR "/demo/model", {.device = "cpu",
                                                            .threads = 2,
                                                            .load_in_8bit = true,
                                                            .llm_int8_threshold = 5,
                                                            .llm_int8_skip_modules = {"o_proj"}});
  const Model& loaded = model.state().model;
  for (int64_t layer = 0; layer < loaded.layer_count(); ++layer) {
    for (const Linear& linear : loaded.block(layer).linears()) {
      if (linear.module.ends_with(".o_proj")) {
        EXPECT_TRUE(std::holds_alternative<Tensor>(linear.weight));
        continue;
      }
      const auto& weight = std::get<QuantizedTensor>(linear.weight);
      EXPECT_EQ(weight.format, Format::kInt8);
      EXPECT_EQ(weight.activations, ActivationFormat::kInt8Dynamic);
      EXPECT_EQ(weight.outlier_threshold, 5);
    }
  }
}

TEST(LoadQuantized, SkippedModulesStayByNameOrByItsLastPart) {
  const LanguageModel model =
      load_demo({.llm_int8_skip_modules = {"o_proj", "model.layers.1.mlp", "lm_head"}});
  for (int64_t layer = 0; layer < 2; ++layer) {
    for (const Linear& linear : model.state().model.block(layer).linears()) {
      const bool is_skipped =
          linear.module.ends_with(".o_proj") || linear.module.starts_with("model.layers.1.mlp.");
      EXPECT_EQ(std::holds_alternative<Tensor>(linear.weight), is_skipped) << linear.module;
    }
  }
}

TEST(LoadQuantized, WhatCannotBeIsSaidWithTheNearestName) {
  auto refusal = [](RuntimeOptions options) {
    return testing::error_of(ErrorCode::kInvalidArgument, [&] { load_demo(options); });
  };
  const std::string unknown = refusal({.llm_int8_skip_modules = {"o_prj"}});
  EXPECT_NE(unknown.find("did you mean \"o_proj\""), std::string::npos) << unknown;
  EXPECT_NE(refusal({.llm_int8_skip_modules = {"proj"}}).find("\"proj\""), std::string::npos);
  EXPECT_NE(refusal({.llm_int8_skip_modules = {""}}).find("0 characters"), std::string::npos);
  EXPECT_NE(refusal({.bnb_4bit_quant_type = "nf5"}).find("\"nf4\" or \"fp4\""), std::string::npos);
  const std::string alone = testing::error_of(ErrorCode::kInvalidArgument, [] {
    LanguageModel::load(LOWBIT_SOURCE_DIR "/demo/model",
                        {.device = "cpu", .llm_int8_skip_modules = {"o_proj"}});
  });
  EXPECT_NE(alone.find("load_in_4bit"), std::string::npos) << alone;
  EXPECT_NE(refusal({.load_in_8bit = true}).find("both"), std::string::npos);
  EXPECT_NE(testing::error_of(ErrorCode::kInvalidArgument,
                              [] {
                                LanguageModel::load(LOWBIT_SOURCE_DIR "/demo/model",
                                                    {.device = "cpu", .bnb_4bit_use_double_quant = true});
                              })
                .find("add load_in_4bit"),
            std::string::npos);
  EXPECT_NE(refusal({.llm_int8_threshold = 3}).find("load_in_8bit"), std::string::npos);
  for (const float bad : {-0.5f, NAN, INFINITY}) {
    const std::string message = testing::error_of(ErrorCode::kInvalidArgument, [&] {
      LanguageModel::load(LOWBIT_SOURCE_DIR "/demo/model",
                          {.device = "cpu", .load_in_8bit = true, .llm_int8_threshold = bad});
    });
    EXPECT_NE(message.find("llm_int8_threshold"), std::string::npos) << message;
  }
}

// GPT-2 too, whose files hold matrices the other way round.
TEST(LoadQuantized, EveryArchitectureGeneratesWithTheCodesOfItsWeights) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  for (const char* name :
       {"qwen2", "qwen3", "mistral", "phi3", "gpt2", "gpt_neox", "bloom", "opt", "gemma3_text"}) {
    SCOPED_TRACE(name);
    const auto folder = material / "peers" / "models" / name;
    const LanguageModel dense = LanguageModel::load(folder, {.device = "cpu", .threads = 2});
    const LanguageModel model =
        LanguageModel::load(folder, {.device = "cpu", .threads = 2, .load_in_4bit = true});
    const auto &source = dense.state().model.block(0).linears(),
               &linears = model.state().model.block(0).linears();
    for (size_t i = 0; i < source.size(); ++i) {
      const Tensor a = converted(std::get<Tensor>(source[i].weight), DType::kF32),
                   b = std::holds_alternative<Tensor>(linears[i].weight)
                           ? std::get<Tensor>(linears[i].weight)
                           : dequantized(std::get<QuantizedTensor>(linears[i].weight));
      ASSERT_EQ(a.shape(), b.shape()) << linears[i].module;
      double error = 0, size = 0;
      for (int64_t k = 0; k < a.element_count(); ++k) {
        error += std::pow(a.data<float>()[k] - b.data<float>()[k], 2);
        size += std::pow(a.data<float>()[k], 2);
      }
      EXPECT_LT(std::sqrt(error / size), 0.12) << linears[i].module;
      EXPECT_GT(std::sqrt(error / size), 0.05) << linears[i].module;
    }
    EXPECT_EQ(model.generate({{1, 2, 3}}, {.max_new_tokens = 4, .ignore_eos = true})[0].token_ids.size(), 4u);
  }
}

std::vector<float> logits_of(const fs::path& folder, RuntimeOptions options,
                             MatmulMode mode = MatmulMode::kPrefill) {
  options.device = "cpu";
  options.threads = 2;
  const LanguageModel loaded = LanguageModel::load(folder, options);
  const Model& model = loaded.state().model;
  const OpContext ops = loaded.state().ops();
  std::vector<int32_t> ids;
  for (int i = 0; i < 48; ++i) ids.push_back((i * 97 + 13) % 4000);
  const int64_t tokens = 48, width = model.config().hidden_size, vocab = model.config().vocab_size;
  const RopeTables rope = model.rope_tables(ops, 1024);
  KvCache cache(model.config(), 1, tokens, DType::kF32);
  std::vector<float> hidden(static_cast<size_t>(tokens * width)), logits(static_cast<size_t>(tokens * vocab));
  const std::vector<SequenceTokens> batch = {{0, ids}};
  forward(model, ops, rope, batch, mode, cache, hidden.data());
  model.logits(ops, hidden.data(), tokens, mode, logits.data());
  return logits;
}

double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  double error = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error += std::pow(double{a[i]} - b[i], 2);
    size += std::pow(double{b[i]}, 2);
  }
  return std::sqrt(error / size);
}

TEST(LoadQuantized, InputsStayInFloat32WhereThatIsAskedFor) {
  const fs::path demo = LOWBIT_SOURCE_DIR "/demo/model";
  for (const MatmulMode mode : {MatmulMode::kPrefill, MatmulMode::kDecode}) {
    const auto right = logits_of(demo, {.kernel = "ref", .load_in_4bit = true}, mode);
    const double usual = relative_error(logits_of(demo, {.load_in_4bit = true}, mode), right),
                 wide = relative_error(
                     logits_of(demo, {.load_in_4bit = true, .bnb_4bit_compute_dtype = "float32"}, mode),
                     right);
    EXPECT_LT(wide, 1e-5);
    EXPECT_LE(wide, usual * 1.5);
    RecordProperty(mode == MatmulMode::kDecode ? "decode" : "prefill",
                   fmt::format("{:.2g} {:.2g}", wide, usual));
  }
}

// The demo's model with channels whose norms are 30 times as large, so that a few inputs of q, k, v, gate and
// up stand out.
TEST(LoadQuantized, OutliersInFloatKeepWhatRoundingThemWouldLose) {
  const testing::TemporaryFolder folder;
  const Checkpoint source = read_checkpoint(LOWBIT_SOURCE_DIR "/demo/model");
  std::vector<NamedTensor> tensors;
  for (const auto& [name, tensor] : source.files.tensors) {
    Tensor changed = converted(tensor, DType::kF32);
    if (name.ends_with("input_layernorm.weight") || name.ends_with("post_attention_layernorm.weight")) {
      for (const int64_t channel : {3, 77, 140, 251}) changed.mutable_data<float>()[channel] *= 30;
    }
    tensors.push_back({name, changed});
  }
  write_checkpoint(folder.path(), {.source = source.folder, .config = source.config, .tensors = tensors});
  const auto dense = logits_of(folder.path(), {});
  const double with = relative_error(
                   logits_of(folder.path(), {.load_in_8bit = true, .llm_int8_threshold = 6}), dense),
               without = relative_error(
                   logits_of(folder.path(), {.load_in_8bit = true, .llm_int8_threshold = 0}), dense);
  EXPECT_LT(with, 0.5 * without) << with << " " << without;
  EXPECT_GT(with, 1e-3);
  RecordProperty("error_with_outliers_in_float", fmt::format("{:.3g}", with));
  RecordProperty("error_without", fmt::format("{:.3g}", without));
}

TEST(LoadQuantized, AQuantizedModelIsNotQuantizedAgain) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  for (const char* folder : {"bnb/tiny-nf4", "gptq/tiny-w4g128-sym"}) {
    const std::string message = testing::error_of(ErrorCode::kInvalidArgument, [&] {
      LanguageModel::load(material / "peers" / folder, {.device = "cpu", .load_in_4bit = true});
    });
    EXPECT_NE(message.find("quantized already"), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace lowbit
