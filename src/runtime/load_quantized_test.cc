#include "runtime/language_model.h"
#include "support.h"

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
