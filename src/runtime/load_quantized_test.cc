#include "runtime/language_model.h"
#include "support.h"

#include <cmath>
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
