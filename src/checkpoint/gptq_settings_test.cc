#include "checkpoint/gptq_settings.h"

#include "checkpoint/gptq_fixture.h"

namespace lowbit {
namespace {

using testing::error_of;

GptqSettings settings(const char* text) { return read_gptq_settings(parse_json(text, "c"), "config.json"); }

void expect_refusal(ErrorCode code, const char* text, const char* part) {
  const std::string message = error_of(code, [&] { settings(text); });
  EXPECT_CONTAINS(message, part);
  EXPECT_CONTAINS(message, "config.json");
}

TEST(GptqSettings, SpellingsOfEveryWriterAreRead) {
  const GptqSettings auto_gptq = settings(
      R"({"bits":4,"group_size":128,"damp_percent":0.01,"desc_act":true,"static_groups":false,"sym":true,"true_sequential":true,
          "model_name_or_path":null,"model_file_base_name":null})");
  EXPECT_EQ(auto_gptq.affine.bits, 4);
  EXPECT_TRUE(auto_gptq.desc_act);
  EXPECT_EQ(auto_gptq.version, "gptq");
  EXPECT_EQ(auto_gptq.base_name, "");
  EXPECT_FALSE(auto_gptq.subtracts_from_words());

  const GptqSettings model = settings(
      R"({"bits":8,"group_size":-1,"sym":false,"format":"gptq_v2","checkpoint_format":"gptq_v2","method":"gptq",
          "quant_method":"GPTQ","pack_dtype":"int32","meta":{"quantizer":["optimum:1.2","gptqmodel:7.7.0"]}})");
  EXPECT_EQ(model.affine.group_size, -1);
  EXPECT_FALSE(model.affine.sym);
  EXPECT_EQ(model.version, "gptq_v2");
  EXPECT_TRUE(model.subtracts_from_words());

  const GptqSettings old =
      settings(R"({"W_BIT":3,"q_group_size":64,"desc_act":null,"sym":null,"meta":{"quantizer":"x"}})");
  EXPECT_EQ(old.affine.bits, 3);
  EXPECT_EQ(old.affine.group_size, 64);
  EXPECT_TRUE(old.affine.sym);
  EXPECT_FALSE(old.desc_act);
  EXPECT_EQ(settings(R"({"bits":4})").affine.group_size, -1);
  EXPECT_EQ(settings(R"({"bits":4,"model_file_base_name":"gptq_model-4bit-128g"})").base_name,
            "gptq_model-4bit-128g");
}

TEST(GptqSettings, OtherMethodsAndFormatsAreRefusedByName) {
  for (const char* method :
       {"awq", "bitsandbytes", "compressed-tensors", "fp8", "aqlm", "hqq", "quip", "auto-round"}) {
    const std::string text = fmt::format(R"({{"quant_method":"{}","bits":4}})", method);
    expect_refusal(ErrorCode::kUnsupported, text.c_str(), method);
  }
  expect_refusal(ErrorCode::kUnsupported, R"({"bits":6,"format":"gptq_p"})", "gptq_p");
  expect_refusal(ErrorCode::kUnsupported, R"({"bits":4,"checkpoint_format":"marlin"})", "marlin");
  expect_refusal(ErrorCode::kUnsupported, R"({"bits":4,"is_marlin_format":true})", "Marlin");
  expect_refusal(ErrorCode::kUnsupported,
                 R"({"w_bit":4,"q_group_size":128,"zero_point":true,"version":"GEMM"})", "zero_point");
  expect_refusal(ErrorCode::kUnsupported, R"({"load_in_4bit":true})", "load_in_4bit");
  expect_refusal(ErrorCode::kUnsupported, R"({"bits":4,"pack_dtype":"int16"})", "int16");
  for (const char* bits : {"5", "6", "7"}) {
    expect_refusal(ErrorCode::kUnsupported, fmt::format(R"({{"bits":{}}})", bits).c_str(),
                   "lowbit reads 2, 3, 4 and 8");
  }
}

TEST(GptqSettings, NumbersWithoutSenseAreRefused) {
  expect_refusal(ErrorCode::kCorruptFile, R"([])", "expected an object");
  expect_refusal(ErrorCode::kCorruptFile, R"({})", "\"bits\" is missing");
  for (const char* bits : {"0", "1", "-4", "9", "4294967300", "4.0", "4.5", "\"4\"", "true", "1e300"}) {
    expect_refusal(ErrorCode::kCorruptFile, fmt::format(R"({{"bits":{}}})", bits).c_str(), "bits is");
  }
  for (const char* size : {"0", "-2", "9223372036854775807", "128.0", "\"128\""}) {
    expect_refusal(ErrorCode::kCorruptFile, fmt::format(R"({{"bits":4,"group_size":{}}})", size).c_str(),
                   "group_size is");
  }
  expect_refusal(ErrorCode::kCorruptFile, R"({"bits":4,"sym":1})", "sym is an integer");
  expect_refusal(ErrorCode::kCorruptFile, R"({"bits":4,"format":4})", "expected a string");
  std::string many = "{\"bits\":4";
  for (int i = 0; i < 2000; ++i) many += fmt::format(",\"k{}\":1", i);
  expect_refusal(ErrorCode::kCorruptFile, (many + "}").c_str(), "2001 keys");
}

TEST(DynamicRules, NegativeRulesComeFirstThenTheFirstMatch) {
  const GptqSettings rules = settings(
      R"({"bits":4,"group_size":32,"dynamic":{"+:model\\.layers\\.0\\.":{"bits":8},"model\\.layers\\.\\d+\\.mlp":{"bits":2,"group_size":64,"sym":false},
          "-:.*v_proj":{}}})");
  EXPECT_EQ(rules.module_options("model.layers.0.mlp.up_proj", "c").bits, 8);
  EXPECT_EQ(rules.module_options("model.layers.0.mlp.up_proj", "c").group_size, 32);
  EXPECT_EQ(rules.module_options("model.layers.11.mlp.up_proj", "c").bits, 2);
  EXPECT_EQ(rules.module_options("model.layers.11.mlp.up_proj", "c").group_size, 64);
  EXPECT_FALSE(rules.module_options("model.layers.11.mlp.up_proj", "c").sym);
  EXPECT_EQ(rules.module_options("model.layers.1.self_attn.q_proj", "c").bits, 4);
  EXPECT_EQ(rules.module_options("x.model.layers.0.mlp.up_proj", "c").bits,
            4);  // as Python's re.match, from the beginning
  EXPECT_TRUE(rules.dynamic.match("model.layers.0.self_attn.v_proj").is_excluded);
}

TEST(DynamicRules, WhatIsNoRuleIsRefused) {
  expect_refusal(ErrorCode::kCorruptFile, R"({"bits":4,"dynamic":[]})", "expected an object of rules");
  expect_refusal(ErrorCode::kCorruptFile, R"({"bits":4,"dynamic":{"+:(":{}}})", "no regular expression");
  expect_refusal(ErrorCode::kCorruptFile, R"({"bits":4,"dynamic":{"a":4}})",
                 "expected an object of overrides");
  const GptqSettings bad = settings(R"({"bits":4,"dynamic":{"a":{"bits":1}}})");
  EXPECT_CONTAINS(error_of(ErrorCode::kCorruptFile, [&] { bad.module_options("abc", "c"); }),
                  "the dynamic rule of abc");
}

TEST(DynamicRules, APatternThatStallsIsStopped) {
  const GptqSettings evil = settings(R"({"bits":4,"dynamic":{"(a+)+$":{"bits":8}}})");
  const std::string module = std::string(60, 'a') + "!";
  EXPECT_CONTAINS(error_of(ErrorCode::kUnsupported, [&] { evil.module_options(module, "c"); }), "steps");
}

}  // namespace
}  // namespace lowbit
