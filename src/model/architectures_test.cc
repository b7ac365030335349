// What each architecture reads of config.json and refuses, and that it asks for its tensors by name.
#include "model/config_reader.h"
#include "model/model.h"
#include "support.h"

#include <gtest/gtest.h>

namespace lowbit {
namespace {

Json gpt2() {
  return parse_json(R"({"model_type": "gpt2", "vocab_size": 11, "n_embd": 8, "n_head": 2, "n_layer": 1,
    "n_positions": 16, "activation_function": "gelu_new", "n_inner": null})",
                    "config.json");
}
Json gpt_neox() {
  return parse_json(
      R"({"model_type": "gpt_neox", "vocab_size": 11, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64, "hidden_act": "gelu",
    "rotary_pct": 0.5, "rotary_emb_base": 20000, "torch_dtype": "float16"})",
      "config.json");
}
Json bloom() {
  return parse_json(R"({"model_type": "bloom", "vocab_size": 11, "n_embed": 8, "num_attention_heads": 2,
    "n_layer": 1, "seq_length": 32})",
                    "config.json");
}
Json opt() {
  return parse_json(R"({"model_type": "opt", "vocab_size": 11, "hidden_size": 8, "ffn_dim": 12,
    "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16,
    "activation_function": "relu", "word_embed_proj_dim": 4, "do_layer_norm_before": false})",
                    "config.json");
}
Json gemma3() {
  return parse_json(
      R"({"model_type": "gemma3_text", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 12,
    "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6,
    "query_pre_attn_scalar": 4, "sliding_window": 5, "sliding_window_pattern": 3, "rope_theta": 2e6,
    "rope_local_base_freq": 5000, "rope_scaling": {"rope_type": "linear", "factor": 8}})",
      "config.json");
}

Json bert(const char* architecture) {
  Json config =
      parse_json(R"({"model_type": "bert", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 12,
    "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16})",
                 "config.json");
  config.set("architectures", Json(Json::Array{Json(architecture)}));
  return config;
}

ModelConfig read(const Json& config) { return find_architecture(config).read_config(config); }

void expect_refusal(Json config, const char* key, Json value, ErrorCode code = ErrorCode::kUnsupported) {
  config.set(key, std::move(value));
  const std::string message = testing::error_of(code, [&] { read(config); });
  EXPECT_NE(message.find(key), std::string::npos) << message;
}

TEST(Architectures, OlderKeysAreRead) {
  const ModelConfig neox = read(gpt_neox());
  EXPECT_EQ(neox.rotary_dim, 4);
  EXPECT_EQ(neox.rope.theta, 20000);
  EXPECT_TRUE(neox.has_parallel_residual);
  EXPECT_FALSE(neox.tie_word_embeddings);
  const ModelConfig of_bloom = read(bloom());
  EXPECT_EQ(of_bloom.hidden_size, 8);
  EXPECT_EQ(of_bloom.intermediate_size, 32);
  EXPECT_EQ(of_bloom.max_positions, 32);
  EXPECT_TRUE(of_bloom.tie_word_embeddings);
  EXPECT_EQ(read(gpt2()).intermediate_size, 32);
  EXPECT_EQ(read(opt()).embedding_width, 4);
  const ModelConfig gemma = read(gemma3());
  EXPECT_EQ(gemma.windows, (std::vector<int64_t>{5, 5, 0}));
  EXPECT_EQ(gemma.rope.theta, 2e6);
  EXPECT_EQ(gemma.rope.factor, 8);
  EXPECT_EQ(gemma.window_rope->theta, 5000);
  EXPECT_EQ(gemma.window_rope->type, RopeType::kDefault);
  EXPECT_EQ(gemma.attention_scale, 0.5f);
}

TEST(Architectures, NewerKeysAreReadAndComeFirst) {
  Json neox = gpt_neox();
  neox.set("rope_parameters",
           parse_json(R"({"rope_type": "default", "rope_theta": 300, "partial_rotary_factor": 1.0})", "t"));
  EXPECT_EQ(read(neox).rotary_dim, 8);
  EXPECT_EQ(read(neox).rope.theta, 300);
  Json gemma = gemma3();
  gemma.set("layer_types", parse_json(R"(["full_attention", "sliding_attention", "full_attention"])", "t"));
  gemma.set("rope_parameters", parse_json(R"({"full_attention": {"rope_type": "default", "rope_theta": 70},
    "sliding_attention": {"rope_type": "default", "rope_theta": 80}})",
                                          "t"));
  const ModelConfig model = read(gemma);
  EXPECT_EQ(model.windows, (std::vector<int64_t>{0, 5, 0}));
  EXPECT_EQ(model.rope.theta, 70);
  EXPECT_EQ(model.window_rope->theta, 80);
}

TEST(Architectures, WhatIsNotSupportedIsNamed) {
  expect_refusal(gpt2(), "activation_function", "quick_gelu");
  expect_refusal(gpt2(), "scale_attn_by_inverse_layer_idx", true);
  expect_refusal(gpt2(), "add_cross_attention", true);
  expect_refusal(gpt2(), "n_head", Json(3), ErrorCode::kCorruptFile);
  expect_refusal(gpt_neox(), "hidden_act", "xielu");
  expect_refusal(bloom(), "apply_residual_connection_post_layernorm", true);
  expect_refusal(opt(), "layer_norm_elementwise_affine", false);
  expect_refusal(gemma3(), "attn_logit_softcapping", Json(50.0));
  expect_refusal(gemma3(), "final_logit_softcapping", Json(30.0));
  expect_refusal(gemma3(), "use_bidirectional_attention", true);
  expect_refusal(gemma3(), "layer_types", parse_json(R"(["full_attention", "chunked", "x"])", "t"));
  expect_refusal(bert("BertModel"), "is_decoder", true);
  expect_refusal(bert("BertModel"), "position_embedding_type", "relative_key");
  expect_refusal(bert("BertForSequenceClassification"), "problem_type", "regression");
  expect_refusal(bert("BertForSequenceClassification"), "id2label", parse_json(R"({"0": "x"})", "t"));
  expect_refusal(bert("BertForSequenceClassification"), "id2label",
                 parse_json(R"({"0": "x", "2": "y"})", "t"), ErrorCode::kCorruptFile);
  const std::string head =
      testing::error_of(ErrorCode::kUnsupported, [] { read(bert("BertForTokenClassification")); });
  for (const char* word : {"BertForTokenClassification", "BertModel", "BertForMaskedLM"})
    EXPECT_NE(head.find(word), std::string::npos) << head;
  Json neox = gpt_neox();
  neox.set("rope_scaling", parse_json(R"({"type": "dynamic", "factor": 2})", "t"));
  EXPECT_NE(testing::error_of(ErrorCode::kUnsupported, [&] { read(neox); }).find("dynamic"),
            std::string::npos);
  neox.set("rope_scaling", Json());
  neox.set("rotary_pct", Json(0.4));  // three elements of eight
  testing::error_of(ErrorCode::kCorruptFile, [&] { read(neox); });
}

// With no tensors at all the first one asked for is named; files of the model without its head leave out what
// stands before all names.
TEST(Architectures, NamesOfABareModelAreFoundToo) {
  NamedWeights weights;
  auto add = [&](const std::string& name, Shape shape) {
    weights["h.0." + name] = Tensor::zeros(DType::kF32, std::move(shape));
  };
  for (const char* norm : {"ln_1", "ln_2"}) {
    add(std::string(norm) + ".weight", {8});
    add(std::string(norm) + ".bias", {8});
  }
  for (const auto& [module, out, in] : {std::tuple{"attn.c_attn", 24, 8},
                                        {"attn.c_proj", 8, 8},
                                        {"mlp.c_fc", 32, 8},
                                        {"mlp.c_proj", 8, 32}}) {
    add(std::string(module) + ".weight", {in, out});
    add(std::string(module) + ".bias", {out});
  }
  weights["ln_f.weight"] = weights["ln_f.bias"] = Tensor::zeros(DType::kF32, {8});
  weights["wpe.weight"] = Tensor::zeros(DType::kF32, {16, 8});
  weights["wte.weight"] = Tensor::zeros(DType::kF32, {11, 8});
  const Model bare = Model::create(gpt2(), weights);
  EXPECT_EQ(bare.block(0).linears()[0].module, "h.0.attn.c_attn");
  EXPECT_EQ(out_features(bare.block(0).linears()[0].weight), 24);
  NamedWeights named;
  for (const auto& [name, weight] : weights) named["transformer." + name] = weight;
  EXPECT_EQ(Model::create(gpt2(), named).block(0).linears()[0].module, "transformer.h.0.attn.c_attn");
  for (const auto& [name, weight] : named) {
    NamedWeights fewer = named;
    fewer.erase(name);
    EXPECT_NE(testing::error_of(ErrorCode::kCorruptFile, [&] { Model::create(gpt2(), fewer); }).find(name),
              std::string::npos);
  }
}

TEST(Architectures, HeadsOfEncodersAreReadAndTheirTensorsAskedFor) {
  EXPECT_EQ(read(bert("BertModel")).head_kind, HeadKind::kNone);
  EXPECT_FALSE(read(bert("BertModel")).tie_word_embeddings);
  EXPECT_TRUE(read(bert("BertForMaskedLM")).tie_word_embeddings);
  EXPECT_EQ(read(bert("BertForSequenceClassification")).labels,
            (std::vector<std::string>{"LABEL_0", "LABEL_1"}));
  NamedWeights weights;
  auto add = [&](const std::string& name, Shape shape) {
    weights[name] = Tensor::zeros(DType::kF32, std::move(shape));
  };
  auto add_linear = [&](const std::string& module, int64_t out, int64_t in) {
    add(module + ".weight", {out, in});
    add(module + ".bias", {out});
  };
  auto add_norm = [&](const std::string& module) {
    add(module + ".weight", {8});
    add(module + ".bias", {8});
  };
  add("embeddings.word_embeddings.weight", {11, 8});
  add("embeddings.position_embeddings.weight", {16, 8});
  add("embeddings.token_type_embeddings.weight", {2, 8});
  add_norm("embeddings.LayerNorm");
  const std::string layer = "encoder.layer.0.";
  for (const char* name : {"query", "key", "value"}) add_linear(layer + "attention.self." + name, 8, 8);
  add_linear(layer + "attention.output.dense", 8, 8);
  add_norm(layer + "attention.output.LayerNorm");
  add_linear(layer + "intermediate.dense", 12, 8);
  add_linear(layer + "output.dense", 8, 12);
  add_norm(layer + "output.LayerNorm");
  const Model bare = Model::create(bert("BertModel"), weights);
  EXPECT_FALSE(bare.has_head());
  EXPECT_EQ(bare.head_outputs(), 0);
  EXPECT_TRUE(bare.frame_linears().empty());
  EXPECT_EQ(bare.block(0).linears()[4].module, "encoder.layer.0.intermediate.dense");

  NamedWeights whole;
  for (const auto& [name, weight] : weights) whole["bert." + name] = weight;
  const auto refusal = [&](const char* architecture) {
    return testing::error_of(ErrorCode::kCorruptFile, [&] { Model::create(bert(architecture), whole); });
  };
  EXPECT_NE(refusal("BertForSequenceClassification").find("bert.pooler.dense.weight"), std::string::npos);
  EXPECT_NE(refusal("BertForMaskedLM").find("cls.predictions.transform.dense.weight"), std::string::npos);
  weights.clear();
  add_linear("bert.pooler.dense", 8, 8);
  add_linear("classifier", 2, 8);
  add_linear("cls.predictions.transform.dense", 8, 8);
  add_norm("cls.predictions.transform.LayerNorm");
  add("cls.predictions.bias", {11});
  whole.merge(weights);
  const Model classifier = Model::create(bert("BertForSequenceClassification"), whole);
  EXPECT_EQ(classifier.head_outputs(), 2);
  EXPECT_EQ(classifier.frame_linears(), (std::vector<std::string>{"bert.pooler.dense", "classifier"}));
  const Model masked = Model::create(bert("BertForMaskedLM"), whole);
  EXPECT_EQ(masked.head_outputs(), 11);
  EXPECT_TRUE(masked.is_tied());
}

TEST(Architectures, OnlyConv1dIsTurned) {
  EXPECT_TRUE(is_conv1d(gpt2(), "transformer.h.0.attn.c_attn"));
  EXPECT_FALSE(is_conv1d(gpt2(), "lm_head"));
  EXPECT_FALSE(is_conv1d(opt(), "model.decoder.layers.0.fc1"));
  EXPECT_FALSE(is_conv1d(Json::object(), "x"));
}

}  // namespace
}  // namespace lowbit
