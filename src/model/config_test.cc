#include "model/config.h"

#include "base/files.h"
#include "support.h"

#include <cmath>
#include <gtest/gtest.h>

namespace lowbit {
namespace {

Json small_config() {
  return parse_json(
      R"({"model_type":"llama","architectures":["LlamaForCausalLM"],"vocab_size":512,"hidden_size":96,
    "intermediate_size":160,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,
    "max_position_embeddings":1024,"rms_norm_eps":1e-6,"rope_theta":10000.0,"tie_word_embeddings":true,
    "eos_token_id":[2,7]})",
      "config.json");
}

std::string refusal(ErrorCode code, const char* key, Json value) {
  Json config = small_config();
  config.set(key, std::move(value));
  return testing::error_of(code, [&] { read_decoder_config(config); });
}

TEST(Config, ReadsWhatModelsWrite) {
  const ModelConfig config = read_decoder_config(small_config());
  EXPECT_EQ(config.head_dim, 24);
  EXPECT_EQ(config.windows, (std::vector<int64_t>{0, 0}));
  Json newer = small_config();
  newer.erase("rope_theta");
  newer.set("rope_parameters", parse_json(R"({"rope_theta": 5e5, "rope_type": "linear", "factor": 4})", "t"));
  const ModelConfig scaled = read_decoder_config(newer);
  EXPECT_EQ(scaled.rope.theta, 5e5);
  EXPECT_EQ(scaled.rope.factor, 4);
}

TEST(Config, AbsurdNumbersAreNamedWithTheirRange) {
  EXPECT_NE(refusal(ErrorCode::kCorruptFile, "num_hidden_layers", Json(int64_t{1000000000}))
                .find("num_hidden_layers is 1000000000"),
            std::string::npos);
  refusal(ErrorCode::kCorruptFile, "vocab_size", Json(0));
  refusal(ErrorCode::kCorruptFile, "head_dim", Json(0));
  refusal(ErrorCode::kCorruptFile, "head_dim", Json(7));
  refusal(ErrorCode::kCorruptFile, "rope_theta", Json(-1.0));
  refusal(ErrorCode::kCorruptFile, "rms_norm_eps", Json(-1e-6));
  refusal(ErrorCode::kCorruptFile, "hidden_size", Json("wide"));
  refusal(ErrorCode::kCorruptFile, "num_key_value_heads", Json(3));
  refusal(ErrorCode::kCorruptFile, "num_attention_heads", Json(5));  // no divisor of hidden_size
  refusal(ErrorCode::kCorruptFile, "rope_parameters", Json("yarn"));
  refusal(ErrorCode::kCorruptFile, "rope_scaling",
          parse_json(R"({"type": "llama3", "low_freq_factor": 4, "high_freq_factor": 4})", "t"));
  refusal(ErrorCode::kUnsupported, "hidden_act", Json("gelu"));
  refusal(ErrorCode::kUnsupported, "rope_scaling", parse_json(R"({"type": "longrope"})", "t"));
  Json missing = small_config();
  missing.erase("hidden_size");
  EXPECT_NE(
      testing::error_of(ErrorCode::kCorruptFile, [&] { read_decoder_config(missing); }).find("hidden_size"),
      std::string::npos);
}

TEST(Config, WindowsFollowMistralAndQwen2Rules) {
  Json config = small_config();
  config.set("sliding_window", Json(100));
  config.set("model_type", Json("mistral"));
  EXPECT_EQ(read_decoder_config(config).windows, (std::vector<int64_t>{100, 100}));
  config.set("model_type", Json("qwen2"));
  EXPECT_EQ(read_decoder_config(config).windows, (std::vector<int64_t>{0, 0}));
  config.set("use_sliding_window", Json(true));
  config.set("max_window_layers", Json(1));
  EXPECT_EQ(read_decoder_config(config).windows, (std::vector<int64_t>{0, 100}));
  config.set("layer_types", parse_json(R"(["sliding_attention", "full_attention"])", "t"));
  EXPECT_EQ(read_decoder_config(config).windows, (std::vector<int64_t>{100, 0}));
  for (const char* types : {R"(["sliding_attention"])", R"("sliding_attention")"}) {
    config.set("layer_types", parse_json(types, "t"));
    EXPECT_NE(testing::error_of(ErrorCode::kCorruptFile, [&] { read_decoder_config(config); })
                  .find("config.json: layer_types"),
              std::string::npos);
  }
}

TEST(Config, OnlyAnObjectIsAConfig) {
  testing::error_of(ErrorCode::kCorruptFile, [] { read_decoder_config(Json("llama")); });
}

TEST(Rope, FrequenciesFallFromOneByTheta) {
  const ModelConfig config = read_decoder_config(small_config());
  const RopeFrequencies frequencies = rope_frequencies(config, config.rope);
  ASSERT_EQ(frequencies.inverse.size(), 12u);
  EXPECT_EQ(frequencies.inverse[0], 1.0);
  EXPECT_NEAR(frequencies.inverse[6], std::pow(10000.0, -0.5), 1e-15);
  EXPECT_EQ(frequencies.attention_factor, 1.0);
}

// Made by tests/golden/make_rope_golden.py; float32 there.
TEST(Rope, ScalingsMatchTransformers) {
  const Json golden = parse_json(read_file(LOWBIT_SOURCE_DIR "/tests/golden/rope.json"), "rope.json");
  for (const Json& example : golden.get("cases").as_array()) {
    SCOPED_TRACE(example.get("name").as_string());
    Json json = small_config();
    json.erase("rope_theta");
    json.set("head_dim", example.get("head_dim"));
    json.set("max_position_embeddings", example.get("max_position_embeddings"));
    json.set("rope_parameters", example.get("rope_parameters"));
    const ModelConfig config = read_decoder_config(json);
    const RopeFrequencies frequencies = rope_frequencies(config, config.rope);
    const auto& expected = example.get("inverse").as_array();
    ASSERT_EQ(frequencies.inverse.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(frequencies.inverse[i] / expected[i].as_number(), 1.0, 1e-5) << i;
    }
    EXPECT_NEAR(frequencies.attention_factor, example.get("attention_factor").as_number(), 1e-6);
  }
}

}  // namespace
}  // namespace lowbit
