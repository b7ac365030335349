#include "checkpoint/gptq.h"
#include "checkpoint/gptq_fixture.h"

namespace lowbit {
namespace {

// Qwen2-1.5B's layer.
std::vector<EngineModule> layer(AffineOptions options) {
  const std::string block = "model.layers.0.";
  return {
      {block + "self_attn.q_proj", 1536, 1536, options}, {block + "self_attn.k_proj", 256, 1536, options},
      {block + "self_attn.v_proj", 256, 1536, options},  {block + "self_attn.o_proj", 1536, 1536, options},
      {block + "mlp.gate_proj", 8960, 1536, options},    {block + "mlp.up_proj", 8960, 1536, options},
      {block + "mlp.down_proj", 1536, 8960, options}};
}

EngineVerdict of(const std::vector<EngineVerdict>& table, std::string_view engine) {
  for (const EngineVerdict& verdict : table) {
    if (verdict.engine == engine) return verdict;
  }
  ADD_FAILURE() << "no verdict for " << engine;
  return {};
}

void expect(const std::vector<EngineVerdict>& table, std::string_view engine, std::string_view verdict,
            std::string_view part) {
  const EngineVerdict found = of(table, engine);
  EXPECT_EQ(found.verdict, verdict) << engine << ": " << found.reason;
  EXPECT_NE(found.reason.find(part), std::string::npos) << engine << ": " << found.reason;
  EXPECT_EQ(found.reason.empty(), found.verdict == "fast") << found.reason;
}

TEST(EngineTable, SymmetricFourBitsInGroupsOf128RunFastEverywhere) {
  for (const EngineVerdict& verdict : engine_table(layer({}), GptqVersion::kV1, false)) {
    EXPECT_EQ(verdict.verdict, "fast") << verdict.engine << ": " << verdict.reason;
  }
}

TEST(EngineTable, AsymmetricWeightsNeedVersionTwoAndNoMarlin) {
  const auto v2 = engine_table(layer({.bits = 4, .group_size = 128, .sym = false}), GptqVersion::kV2, false);
  expect(v2, "GPTQModel", "fast", "");
  expect(v2, "vLLM", "no", "asymmetric (model.layers.0.self_attn.q_proj)");
  expect(v2, "SGLang", "slow", "asymmetric");
  expect(v2, "AutoGPTQ", "no", "gptq_v2");
  const auto v1 = engine_table(layer({.bits = 4, .group_size = 128, .sym = false}), GptqVersion::kV1, false);
  expect(v1, "GPTQModel", "no", "write gptq_v2");
  expect(v1, "transformers + GPTQModel", "no", "write gptq_v2");
  expect(v1, "AutoGPTQ", "fast", "");
}

TEST(EngineTable, OtherBitsRunSlowlyOrNotAtAll) {
  const auto three = engine_table(layer({.bits = 3, .group_size = 128}), GptqVersion::kV1, false);
  expect(three, "GPTQModel", "slow", "3 bits");
  expect(three, "vLLM", "no", "3 bits");
  expect(three, "SGLang", "slow", "3 bits");
  expect(three, "AutoGPTQ", "slow", "3 bits");
  expect(engine_table(layer({.bits = 8, .group_size = -1}), GptqVersion::kV1, false), "vLLM", "fast", "");
}

TEST(EngineTable, TheFirstModuleThatDoesNotFitIsNamed) {
  std::vector<EngineModule> modules = layer({});
  modules[4].out_features = modules[5].out_features = 8976;  // no multiple of 64
  expect(engine_table(modules, GptqVersion::kV1, false), "vLLM", "no",
         "out_features 8976 is no multiple of 64 (model.layers.0.mlp.gate_proj)");
  modules = layer({});
  for (EngineModule& module : modules) module.in_features = 576;
  expect(engine_table(modules, GptqVersion::kV1, false), "vLLM", "no",
         "in_features 576 is no multiple of group_size 128");
  expect(engine_table(modules, GptqVersion::kV1, false), "GPTQModel", "slow", "in_features 576");
  for (EngineModule& module : modules) module.affine.group_size = 64;
  expect(engine_table(modules, GptqVersion::kV1, false), "vLLM", "no",
         "in_features 576 is no multiple of 128");
  expect(engine_table(layer({.bits = 4, .group_size = 48}), GptqVersion::kV1, false), "GPTQModel", "no",
         "group_size 48");
}

TEST(EngineTable, ActOrderIsNotForVllm) {
  std::vector<EngineModule> modules = layer({});
  modules[3].is_act_order = true;
  const auto table = engine_table(modules, GptqVersion::kV1, false);
  expect(table, "vLLM", "no",
         "g_idx is not sequential (desc_act without static_groups) (model.layers.0.self_attn.o_proj)");
  expect(table, "SGLang", "slow", "g_idx");
  expect(table, "AutoGPTQ", "fast", "");
}

TEST(EngineTable, FusedModulesMustAgree) {
  std::vector<EngineModule> modules = layer({});
  modules[2].affine.bits = 8;
  expect(engine_table(modules, GptqVersion::kV1, true), "vLLM", "no",
         "self_attn.q_proj and model.layers.0.self_attn.v_proj");
  expect(engine_table(modules, GptqVersion::kV1, true), "AutoGPTQ", "no", "dynamic");
  expect(engine_table(modules, GptqVersion::kV1, true), "transformers + GPTQModel", "no", "optimum");
  expect(engine_table(modules, GptqVersion::kV1, true), "GPTQModel", "fast", "");
  modules = layer({});
  modules.erase(modules.begin() + 5);
  expect(engine_table(modules, GptqVersion::kV1, true), "SGLang", "no",
         "model.layers.0.mlp.up_proj, which is fused");
}

TEST(EngineTable, AQuantizedHeadIsNotForLoadersOfBlocks) {
  std::vector<EngineModule> modules = layer({});
  modules.push_back({"lm_head", 151936, 1536, {.bits = 8, .group_size = 128}});
  expect(engine_table(modules, GptqVersion::kV1, false), "AutoGPTQ", "no",
         "blocks may be quantized (lm_head)");
  expect(engine_table(modules, GptqVersion::kV1, false), "vLLM", "fast", "");
}

}  // namespace
}  // namespace lowbit
