#include "model/model.h"

#include "support.h"

#include <cstring>
#include <gtest/gtest.h>

namespace lowbit {
namespace {

Json config_of(const char* model_type) {
  Json config =
      parse_json(R"({"vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": false})",
                 "config.json");
  config.set("model_type", model_type);
  return config;
}

// All tensors of a model of that config, zero.
NamedWeights weights_of(bool has_qkv_bias) {
  NamedWeights weights;
  auto add = [&](const std::string& name, Shape shape) {
    weights[name] = Tensor::zeros(DType::kBF16, std::move(shape));
  };
  add("model.embed_tokens.weight", {11, 8});
  add("lm_head.weight", {11, 8});
  add("model.norm.weight", {8});
  const std::string layer = "model.layers.0.", attention = layer + "self_attn.", mlp = layer + "mlp.";
  add(layer + "input_layernorm.weight", {8});
  add(layer + "post_attention_layernorm.weight", {8});
  add(attention + "q_proj.weight", {8, 8});
  add(attention + "k_proj.weight", {4, 8});
  add(attention + "v_proj.weight", {4, 8});
  add(attention + "o_proj.weight", {8, 8});
  add(mlp + "gate_proj.weight", {12, 8});
  add(mlp + "up_proj.weight", {12, 8});
  add(mlp + "down_proj.weight", {8, 12});
  if (has_qkv_bias) {
    add(attention + "q_proj.bias", {8});
    add(attention + "k_proj.bias", {4});
    add(attention + "v_proj.bias", {4});
  }
  return weights;
}

void expect_named(const NamedWeights& weights, const std::string& name, const char* expected,
                  const char* model_type = "llama") {
  const std::string message =
      testing::error_of(ErrorCode::kCorruptFile, [&] { Model::create(config_of(model_type), weights); });
  EXPECT_NE(message.find(name), std::string::npos) << message;
  EXPECT_NE(message.find(expected), std::string::npos) << message;
}

TEST(Model, EveryTensorIsMissedByName) {
  for (const auto& [name, weight] : weights_of(true)) {
    NamedWeights weights = weights_of(true);
    weights.erase(name);
    expect_named(weights, name, "missing", "qwen2");
  }
  Model::create(config_of("qwen2"), weights_of(true));
  Model::create(config_of("llama"), weights_of(false));
}

TEST(Model, EveryTensorOfAnotherShapeOrTypeIsRefusedByName) {
  for (const auto& [name, weight] : weights_of(true)) {
    const Shape shape = std::get<Tensor>(weight).shape();
    Shape longer = shape, other_rank = shape;
    ++longer.back();
    other_rank.push_back(1);
    for (const Tensor& wrong : {Tensor::zeros(DType::kBF16, longer), Tensor::zeros(DType::kBF16, other_rank),
                                Tensor::zeros(DType::kI32, shape)}) {
      NamedWeights weights = weights_of(true);
      weights[name] = wrong;
      expect_named(weights, name, wrong.dtype() == DType::kI32 ? "floating" : "asks for", "qwen2");
    }
  }
}

TEST(Model, AQuantizedWeightOfAnotherShapeIsRefused) {
  QuantizedTensor quantized;
  quantized.out_features = 8;
  quantized.in_features = 16;
  NamedWeights weights = weights_of(false);
  weights["model.layers.0.self_attn.o_proj.weight"] = quantized;
  expect_named(weights, "o_proj", "[8, 16], config.json asks for [8, 8]");
}

TEST(Model, ABiasThatTheConfigDoesNotMentionIsUsedAllTheSame) {
  NamedWeights weights = weights_of(false);
  weights["model.layers.0.mlp.down_proj.bias"] = Tensor::zeros(DType::kF32, {8});
  const Model model = Model::create(config_of("llama"), weights);
  int biases = 0;
  for (const Linear& linear : model.block(0).linears()) biases += !linear.bias.empty();
  EXPECT_EQ(biases, 1);
}

TEST(Model, TiedHeadAndEmbeddingStandForEachOther) {
  Json config = config_of("llama");
  config.set("tie_word_embeddings", true);
  for (const char* absent : {"lm_head.weight", "model.embed_tokens.weight"}) {
    NamedWeights weights = weights_of(false);
    weights.erase(absent);
    Model::create(config, weights);
  }
}

TEST(Model, UnknownArchitecturesAreNamedBesideTheKnownOnes) {
  const std::string message = testing::error_of(ErrorCode::kUnsupported,
                                                [] { Model::create(config_of("mamba"), weights_of(false)); });
  for (const char* word : {"mamba", "llama", "mistral", "qwen2", "qwen3"})
    EXPECT_NE(message.find(word), std::string::npos) << message;
  testing::error_of(ErrorCode::kUnsupported, [] { Model::create(Json::object(), {}); });
}

TEST(Model, IdsOutsideOfTheVocabularyAreRefused) {
  const Model model = Model::create(config_of("llama"), weights_of(false));
  for (int32_t id : {-1, 11}) {
    std::vector<float> hidden(8);
    const std::vector<int32_t> ids = {id};
    EXPECT_NE(
        testing::error_of(ErrorCode::kInvalidArgument, [&] { model.embed({}, ids, nullptr, hidden.data()); })
            .find("vocabulary of 11"),
        std::string::npos);
  }
}

}  // namespace
}  // namespace lowbit
