// Small random models of the architectures that are not as Llama, for tests: config.json and every tensor of
// a checkpoint. Heads of 32 to 256, windows, ALiBi, partial RoPE; norms before, behind and around.
#pragma once

#include "base/fail.h"
#include "io/safetensors.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

namespace lowbit::testing {

// Values that BF16 holds, so that a GPU has the same model.
class RandomTensors {
 public:
  explicit RandomTensors(uint32_t seed) : engine_(seed) {}

  void matrix(const std::string& name, int64_t rows, int64_t columns, float deviation) {
    add(name, {rows, columns}, 0, deviation);
  }
  void linear(const std::string& module, int64_t out, int64_t in, bool has_bias = true) {
    matrix(module + ".weight", out, in, 1 / std::sqrt(static_cast<float>(in)));
    if (has_bias) add(module + ".bias", {out}, 0, 0.2f);
  }
  void conv1d(const std::string& module, int64_t out, int64_t in) {
    matrix(module + ".weight", in, out, 1 / std::sqrt(static_cast<float>(in)));
    add(module + ".bias", {out}, 0, 0.2f);
  }
  void layer_norm(const std::string& module, int64_t width) {
    add(module + ".weight", {width}, 1, 0.2f);
    add(module + ".bias", {width}, 0, 0.2f);
  }
  // mean: 0 where the model adds one to the weights.
  void rms_norm(const std::string& module, int64_t width, float mean = 1) {
    add(module + ".weight", {width}, mean, 0.2f);
  }
  void vector(const std::string& name, int64_t width) { add(name, {width}, 0, 0.2f); }

  const std::vector<NamedTensor>& all() const { return tensors_; }

 private:
  void add(const std::string& name, Shape shape, float mean, float deviation) {
    Tensor values = Tensor::allocate(DType::kF32, std::move(shape));
    std::normal_distribution<float> normal(mean, deviation);
    for (int64_t i = 0; i < values.element_count(); ++i) values.mutable_data<float>()[i] = normal(engine_);
    tensors_.push_back({name, converted(values, DType::kBF16)});
  }

  std::mt19937 engine_;
  std::vector<NamedTensor> tensors_;
};

constexpr int64_t kRandomVocab = 160, kRandomLayers = 3, kRandomPositions = 256;

struct RandomModel {
  const char* name;
  const char* config;  // without vocabulary, layers and positions
  void (*make)(RandomTensors& tensors);
};
inline void PrintTo(const RandomModel& model, std::ostream* out) { *out << model.name; }

inline std::string in_layer(const char* prefix, int64_t layer) { return fmt::format("{}{}.", prefix, layer); }

inline void make_gpt2(RandomTensors& to) {
  const std::string base = "transformer.";
  to.matrix(base + "wte.weight", kRandomVocab, 128, 0.3f);
  to.matrix(base + "wpe.weight", kRandomPositions, 128, 0.3f);
  for (int64_t layer = 0; layer < kRandomLayers; ++layer) {
    const std::string here = in_layer("transformer.h.", layer);
    to.layer_norm(here + "ln_1", 128);
    to.conv1d(here + "attn.c_attn", 3 * 128, 128);
    to.conv1d(here + "attn.c_proj", 128, 128);
    to.layer_norm(here + "ln_2", 128);
    to.conv1d(here + "mlp.c_fc", 512, 128);
    to.conv1d(here + "mlp.c_proj", 128, 512);
  }
  to.layer_norm(base + "ln_f", 128);
}

inline void make_gpt_neox(RandomTensors& to) {
  const std::string base = "gpt_neox.";
  to.matrix(base + "embed_in.weight", kRandomVocab, 320, 1);
  for (int64_t layer = 0; layer < kRandomLayers; ++layer) {
    const std::string here = in_layer("gpt_neox.layers.", layer);
    to.layer_norm(here + "input_layernorm", 320);
    to.layer_norm(here + "post_attention_layernorm", 320);
    to.linear(here + "attention.query_key_value", 3 * 320, 320);
    to.linear(here + "attention.dense", 320, 320);
    to.linear(here + "mlp.dense_h_to_4h", 640, 320);
    to.linear(here + "mlp.dense_4h_to_h", 320, 640);
  }
  to.layer_norm(base + "final_layer_norm", 320);
  to.linear("embed_out", kRandomVocab, 320, false);
}

inline void make_bloom(RandomTensors& to) {
  const std::string base = "transformer.";
  to.matrix(base + "word_embeddings.weight", kRandomVocab, 192, 0.3f);
  to.layer_norm(base + "word_embeddings_layernorm", 192);
  for (int64_t layer = 0; layer < kRandomLayers; ++layer) {
    const std::string here = in_layer("transformer.h.", layer);
    to.layer_norm(here + "input_layernorm", 192);
    to.layer_norm(here + "post_attention_layernorm", 192);
    to.linear(here + "self_attention.query_key_value", 3 * 192, 192);
    to.linear(here + "self_attention.dense", 192, 192);
    to.linear(here + "mlp.dense_h_to_4h", 768, 192);
    to.linear(here + "mlp.dense_4h_to_h", 192, 768);
  }
  to.layer_norm(base + "ln_f", 192);
}

inline void make_opt_of(RandomTensors& to, int64_t embedding, bool has_norm_first) {
  const std::string base = "model.decoder.";
  to.matrix(base + "embed_tokens.weight", kRandomVocab, embedding, 0.3f);
  to.matrix(base + "embed_positions.weight", kRandomPositions + 2, 128, 0.3f);
  if (embedding != 128) {
    to.linear(base + "project_in", 128, embedding, false);
    to.linear(base + "project_out", embedding, 128, false);
  }
  for (int64_t layer = 0; layer < kRandomLayers; ++layer) {
    const std::string here = in_layer("model.decoder.layers.", layer);
    for (const char* module : {"q_proj", "k_proj", "v_proj", "out_proj"})
      to.linear(here + "self_attn." + module, 128, 128);
    to.layer_norm(here + "self_attn_layer_norm", 128);
    to.linear(here + "fc1", 256, 128);
    to.linear(here + "fc2", 128, 256);
    to.layer_norm(here + "final_layer_norm", 128);
  }
  if (has_norm_first) to.layer_norm(base + "final_layer_norm", 128);
}
inline void make_opt(RandomTensors& to) { make_opt_of(to, 128, true); }
inline void make_opt_behind(RandomTensors& to) { make_opt_of(to, 64, false); }

inline void make_gemma3(RandomTensors& to) {
  to.matrix("model.embed_tokens.weight", kRandomVocab, 128, 0.1f);
  for (int64_t layer = 0; layer < kRandomLayers; ++layer) {
    const std::string here = in_layer("model.layers.", layer);
    for (const char* norm : {"input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                             "post_feedforward_layernorm"})
      to.rms_norm(here + norm, 128, 0);
    to.linear(here + "self_attn.q_proj", 2 * 256, 128, false);
    to.linear(here + "self_attn.k_proj", 256, 128, false);
    to.linear(here + "self_attn.v_proj", 256, 128, false);
    to.linear(here + "self_attn.o_proj", 128, 2 * 256, false);
    to.rms_norm(here + "self_attn.q_norm", 256, 0);
    to.rms_norm(here + "self_attn.k_norm", 256, 0);
    to.linear(here + "mlp.gate_proj", 256, 128, false);
    to.linear(here + "mlp.up_proj", 256, 128, false);
    to.linear(here + "mlp.down_proj", 128, 256, false);
  }
  to.rms_norm("model.norm", 128, 0);
}

inline void make_phi3(RandomTensors& to) {
  to.matrix("model.embed_tokens.weight", kRandomVocab, 192, 1);
  for (int64_t layer = 0; layer < kRandomLayers; ++layer) {
    const std::string here = in_layer("model.layers.", layer);
    to.rms_norm(here + "input_layernorm", 192);
    to.rms_norm(here + "post_attention_layernorm", 192);
    to.linear(here + "self_attn.qkv_proj", (2 + 2) * 96, 192, false);
    to.linear(here + "self_attn.o_proj", 192, 192, false);
    to.linear(here + "mlp.gate_up_proj", 2 * 256, 192, false);
    to.linear(here + "mlp.down_proj", 192, 256, false);
  }
  to.rms_norm("model.norm", 192);
  to.linear("lm_head", kRandomVocab, 192, false);
}

inline void make_bert(RandomTensors& to) {
  const std::string frame = "bert.embeddings.", head = "cls.predictions.";
  to.matrix(frame + "word_embeddings.weight", kRandomVocab, 128, 0.3f);
  to.matrix(frame + "position_embeddings.weight", kRandomPositions, 128, 0.3f);
  to.matrix(frame + "token_type_embeddings.weight", 2, 128, 0.3f);
  to.layer_norm(frame + "LayerNorm", 128);
  for (int64_t layer = 0; layer < kRandomLayers; ++layer) {
    const std::string here = in_layer("bert.encoder.layer.", layer);
    for (const char* module : {"query", "key", "value"})
      to.linear(here + "attention.self." + module, 128, 128);
    to.linear(here + "attention.output.dense", 128, 128);
    to.layer_norm(here + "attention.output.LayerNorm", 128);
    to.linear(here + "intermediate.dense", 256, 128);
    to.linear(here + "output.dense", 128, 256);
    to.layer_norm(here + "output.LayerNorm", 128);
  }
  to.linear(head + "transform.dense", 128, 128);
  to.layer_norm(head + "transform.LayerNorm", 128);
  to.vector(head + "bias", kRandomVocab);
}

inline constexpr RandomModel kRandomDecoders[] = {
    {"gpt2", R"("model_type": "gpt2", "n_embd": 128, "n_head": 2, "activation_function": "gelu_new")",
     make_gpt2},
    {"gpt_neox",
     R"("model_type": "gpt_neox", "hidden_size": 320, "intermediate_size": 640, "num_attention_heads": 4,
        "rotary_pct": 0.25, "hidden_act": "gelu", "tie_word_embeddings": false)",
     make_gpt_neox},
    {"gpt_neox_sequential",
     R"("model_type": "gpt_neox", "hidden_size": 320, "intermediate_size": 640, "num_attention_heads": 4,
        "rotary_pct": 1.0, "hidden_act": "gelu", "tie_word_embeddings": false, "use_parallel_residual": false)",
     make_gpt_neox},
    {"bloom", R"("model_type": "bloom", "hidden_size": 192, "n_head": 3)", make_bloom},
    {"opt",
     R"("model_type": "opt", "hidden_size": 128, "ffn_dim": 256, "num_attention_heads": 4,
        "activation_function": "relu", "word_embed_proj_dim": 128)",
     make_opt},
    {"opt_behind",
     R"("model_type": "opt", "hidden_size": 128, "ffn_dim": 256, "num_attention_heads": 4,
        "activation_function": "relu", "word_embed_proj_dim": 64, "do_layer_norm_before": false)",
     make_opt_behind},
    {"gemma3_text",
     R"("model_type": "gemma3_text", "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 16,
        "sliding_window_pattern": 3)",
     make_gemma3},
    {"phi3",
     R"("model_type": "phi3", "hidden_size": 192, "intermediate_size": 256, "num_attention_heads": 2,
        "num_key_value_heads": 1, "tie_word_embeddings": false)",
     make_phi3}};

inline constexpr RandomModel kRandomBert = {
    "bert",
    R"("model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_size": 128, "intermediate_size": 256,
       "num_attention_heads": 2)",
    make_bert};

// A folder that LanguageModel::load takes, without a tokenizer.
inline void write_random_model(const std::filesystem::path& folder, const RandomModel& model,
                               uint32_t seed = 1) {
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "config.json") << fmt::format(
      R"({{{}, "vocab_size": {}, "num_hidden_layers": {}, "n_layer": {}, "max_position_embeddings": {},
           "n_positions": {}, "seq_length": {}, "torch_dtype": "bfloat16"}})",
      model.config, kRandomVocab, kRandomLayers, kRandomLayers, kRandomPositions, kRandomPositions,
      kRandomPositions);
  RandomTensors tensors(seed);
  model.make(tensors);
  write_safetensors(folder / "model.safetensors", tensors.all());
}

}  // namespace lowbit::testing
