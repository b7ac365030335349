#include "quantize/settings.h"

#include "quantize/options.h"
#include "quantize/source_model.h"
#include "quantize/test_problem.h"
#include "support.h"

#include <gtest/gtest.h>

namespace lowbit {
namespace {

using namespace lowbit::testing;

class Settings : public ::testing::Test {
 protected:
  void SetUp() override { write_tiny_model(folder_.path() / "model", shape_); }

  QuantizationSettings resolve(const QuantizeOptions& options) {
    const SourceModel source = load_source(folder_.path() / "model");
    return resolve_settings(source.model, settled(options));
  }

  TinyModel shape_;
  TemporaryFolder folder_;
};

TEST_F(Settings, FirstMatchWinsAndExclusionsGoFirst) {
  QuantizeOptions options;
  options.dynamic = {".*layers\\.1\\.mlp.*=bits:8,group_size:32", ".*mlp.*=bits:3,mse:0",
                     "-:.*layers\\.2\\.mlp.*"};
  const QuantizationSettings settings = resolve(options);
  EXPECT_EQ(settings.layers[0][4].affine.bits, 3);
  EXPECT_EQ(settings.layers[0][4].gptq.mse, 0);
  EXPECT_EQ(settings.layers[1][4].affine.bits, 8);
  EXPECT_EQ(settings.layers[1][4].affine.group_size, 32);
  EXPECT_EQ(settings.layers[1][0].affine.bits, 4);
  EXPECT_FALSE(settings.layers[2][6].is_quantized);
  EXPECT_NE(settings.layers[2][6].reason, "");
  EXPECT_TRUE(settings.warnings.empty());
  EXPECT_FALSE(settings.head.is_quantized);
}

TEST_F(Settings, DividedUnitsAreNamed) {
  QuantizeOptions options;
  options.dynamic = {".*layers\\.1\\.self_attn\\.q_proj=bits:8"};
  const QuantizationSettings settings = resolve(options);
  ASSERT_EQ(settings.warnings.size(), 1u);
  EXPECT_NE(settings.warnings[0].find("vLLM"), std::string::npos);
  EXPECT_NE(settings.warnings[0].find("model.layers.1.self_attn.k_proj"), std::string::npos);
}

TEST_F(Settings, FusedNamesGetRulesThatSayTheSame) {
  QuantizeOptions options;
  options.dynamic = {".*layers\\.1\\.self_attn\\.[qkv]_proj=bits:8", "-:.*layers\\.0\\.mlp\\.(gate|up)_proj"};
  const QuantizationSettings settings = resolve(options);
  EXPECT_TRUE(settings.warnings.empty());
  const Json* fused = settings.dynamic.find("+:^model\\.layers\\.1\\.self_attn\\.qkv_proj$");
  ASSERT_TRUE(fused);
  EXPECT_EQ(fused->get("bits").as_integer(), 8);
  EXPECT_TRUE(settings.dynamic.find("-:^model\\.layers\\.0\\.mlp\\.gate_up_proj$"));
}

TEST_F(Settings, BadRulesAreRefused) {
  for (const char* rule :
       {"", "abc", "abc=", "abc=bits", "abc=bits:x", "abc=wings:2", "abc=bits:5", "=bits:4", "-:", "(=bits:4",
        "abc=bits:4,,", "abc=damp_percent:2", ".*=group_size:0"}) {
    QuantizeOptions options;
    options.dynamic = {rule};
    bool is_refused = false;
    try {
      resolve(options);
    } catch (const Error&) {
      is_refused = true;
    }
    EXPECT_TRUE(is_refused) << rule;
  }
}

TEST_F(Settings, RulesWithoutEffectAreNamed) {
  QuantizeOptions options;
  options.dynamic = {"layers\\.0=bits:8"};  // matches from the beginning of a name, which is "model."
  const QuantizationSettings settings = resolve(options);
  ASSERT_EQ(settings.warnings.size(), 1u);
  EXPECT_NE(settings.warnings[0].find("matches no module"), std::string::npos);
}

TEST_F(Settings, TiedHeadAndEmptySelectionsAreRefused) {
  QuantizeOptions options;
  options.lm_head = true;
  EXPECT_NE(error_of(ErrorCode::kInvalidArgument, [&] { resolve(options); }).find("tie_word_embeddings"),
            std::string::npos);
  options.lm_head = false;
  options.dynamic = {"-:.*"};
  error_of(ErrorCode::kInvalidArgument, [&] { resolve(options); });
}

TEST(Options, WrongValuesAreRefusedByName) {
  auto message = [](auto change) {
    QuantizeOptions options;
    change(options);
    return error_of(ErrorCode::kInvalidArgument, [&] { validate(options); });
  };
  EXPECT_NE(message([](auto& o) { o.method = "awq"; }).find("method is \"awq\""), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.affine.bits = 5; }).find("bits is 5"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.affine.group_size = 0; }).find("group_size"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.gptq.damp_percent = 0; }).find("damp_percent"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.gptq.damp_percent = std::nanf(""); }).find("damp_percent"),
            std::string::npos);
  EXPECT_NE(message([](auto& o) { o.gptq.mse = 0.5f; }).find("mse"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.calibration.samples = 0; }).find("samples"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.calibration.max_length = 1; }).find("max_length"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.checkpoint_format = "marlin"; }).find("checkpoint_format"),
            std::string::npos);
  EXPECT_NE(message([](auto& o) { o.model_file_base_name = "../x"; }).find("model_file_base_name"),
            std::string::npos);
  EXPECT_NE(message([](auto& o) { o.max_shard_size = "many"; }).find("many"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.compat = "autogptq", o.method = "rtn"; }).find("compat"),
            std::string::npos);
  QuantizeOptions options;
  const std::string hint = error_of(ErrorCode::kInvalidArgument, [&] { require_calibration(options); });
  EXPECT_NE(hint.find("--method rtn"), std::string::npos);
}

TEST(Options, CompatSettlesWhatItImplies) {
  QuantizeOptions options;
  options.compat = "autogptq";
  const QuantizeOptions result = settled(options);
  EXPECT_FLOAT_EQ(result.gptq.damp_percent, 0.01f);
  EXPECT_EQ(result.gptq.mse, 0);
  EXPECT_FALSE(result.gptq.act_group_aware);
  EXPECT_FALSE(result.gptq.updated_groups);
  EXPECT_EQ(result.checkpoint_format, "gptq");
  options.affine.sym = false;
  EXPECT_EQ(settled(options).checkpoint_format, "gptq_v2");
}

TEST(Options, DialectAutoIsTheFirstThatCanSpellTheRest) {
  const auto dialect = [](const char* format, auto change) {
    QuantizeOptions options;
    options.format = format;
    if (options.format == "int8") options.method = "rtn";
    change(options);
    validate(options);
    return settled(options).dialect;
  };
  const auto nothing = [](QuantizeOptions&) {};
  EXPECT_EQ(dialect("affine", nothing), "gptq");
  EXPECT_EQ(dialect("nf4", nothing), "bitsandbytes");
  EXPECT_EQ(dialect("fp4", [](auto& o) { o.affine.group_size = 64; }), "bitsandbytes");
  EXPECT_EQ(dialect("nf4", [](auto& o) { o.affine.group_size = 32; }), "lowbit");
  EXPECT_EQ(dialect("nf4", [](auto& o) { o.lm_head = true; }), "lowbit");
  EXPECT_EQ(dialect("int8", nothing), "bitsandbytes");
  EXPECT_EQ(dialect("int8", [](auto& o) { o.llm_int8_threshold = 0; }), "bitsandbytes");
  EXPECT_EQ(dialect("int8", [](auto& o) { o.activations = "int8-static"; }), "compressed-tensors");
  EXPECT_EQ(dialect("int8", [](auto& o) { o.activations = "none"; }), "compressed-tensors");
  EXPECT_EQ(dialect("fp8", nothing), "compressed-tensors");
  EXPECT_EQ(dialect("fp8", [](auto& o) { o.affine.group_size = 64; }), "lowbit");
  EXPECT_EQ(dialect("fp8_e5m2", nothing), "lowbit");
  EXPECT_EQ(dialect("log2", nothing), "lowbit");
  EXPECT_EQ(dialect("nf4", [](auto& o) { o.dialect = "lowbit"; }), "lowbit");
}

}  // namespace
}  // namespace lowbit
