// Gemma 3, text only: norms of what attention and the MLP add as well, norms that multiply with 1 + weight,
// layers with a window and RoPE of their own between layers that see all. Gemma Team, arXiv 2503.19786.
#include "model/config_reader.h"
#include "model/decoder_block.h"
#include "model/model.h"

#include <cmath>

namespace lowbit {
namespace {

void read_ropes(const ConfigReader& reader, ModelConfig& model) {
  const Json parameters = rope_parameters(reader);
  model.rotary_dim = model.head_dim;
  if (const Json* full = parameters.find("full_attention")) {
    const Json* windowed = parameters.find("sliding_attention");
    model.rope = read_rope(reader, *full, model.max_positions);
    model.window_rope = read_rope(reader, windowed ? *windowed : Json(), model.max_positions);
    return;
  }
  model.rope = read_rope(reader, parameters, model.max_positions);
  if (!reader.has("rope_theta") && !parameters.find("rope_theta")) model.rope.theta = 1e6;
  model.window_rope = RopeConfig{.theta = reader.number_or("rope_local_base_freq", 1e-3, 1e15, 10000)};
}

ModelConfig read_config(const Json& config) {
  const ConfigReader reader(config);
  ModelConfig model = read_sizes(reader, {});
  read_grouped_heads(reader, model);
  model.max_positions = reader.integer_or("max_position_embeddings", 1, int64_t{1} << 31, 131072);
  model.norm_eps = static_cast<float>(reader.number_or("rms_norm_eps", 0, 1, 1e-6));
  model.activation = reader.activation_or("hidden_activation", "gelu_pytorch_tanh");
  model.tie_word_embeddings = reader.flag_or("tie_word_embeddings", true);
  model.qkv_bias = model.o_bias = reader.flag_or("attention_bias", false);
  model.attention_scale =
      static_cast<float>(1 / std::sqrt(reader.number_or("query_pre_attn_scalar", 1e-3, 1e6, 256)));
  reader.refuse("attn_logit_softcapping");
  reader.refuse("final_logit_softcapping");
  reader.require("use_bidirectional_attention", false);
  read_ropes(reader, model);
  const int64_t window = reader.integer_or("sliding_window", 1, int64_t{1} << 40, 4096);
  if (reader.has("layer_types")) {
    model.windows = read_layer_windows(reader, model.layers, window);
  } else {
    const std::string_view key = reader.either("sliding_window_pattern", "_sliding_window_pattern");
    const int64_t pattern = reader.integer_or(key, 1, 1024, 6);
    for (int64_t layer = 0; layer < model.layers; ++layer)
      model.windows[static_cast<size_t>(layer)] = (layer + 1) % pattern == 0 ? 0 : window;
  }
  return model;
}

Norm norm_of(const WeightReader& weights, const char* module, int64_t width, float epsilon) {
  Norm norm = weights.rms_norm(module, width, epsilon);
  Tensor gains = Tensor::allocate(DType::kF32, {width});
  for (int64_t i = 0; i < width; ++i) gains.mutable_data<float>()[i] = 1 + norm.weight.data<float>()[i];
  norm.weight = gains;
  norm.weight_offset = 1;
  return norm;
}

Frame make_frame(const ModelConfig& config, const WeightReader& weights) {
  Frame frame;
  frame.embedding = weights.matrix("embed_tokens.weight", config.vocab_size, config.hidden_size);
  // transformers rounds it to the type that it computes in: here F32.
  frame.embedding_scale = static_cast<float>(std::sqrt(static_cast<double>(config.hidden_size)));
  frame.final_norm = norm_of(weights, "norm", config.hidden_size, config.norm_eps);
  return frame;
}

std::unique_ptr<Block> make_block(const ModelConfig& config, const WeightReader& weights, int64_t layer) {
  const WeightReader here = weights.inside(fmt::format("layers.{}.", layer));
  const WeightReader attention = here.inside("self_attn.");
  const int64_t hidden = config.hidden_size;
  DecoderParts parts = llama_parts(config, here, layer);
  parts.activation = config.activation;
  const auto norm = [&](const char* module) { return norm_of(here, module, hidden, config.norm_eps); };
  parts.attention_norms = {norm("input_layernorm"), norm("post_attention_layernorm"), {}};
  parts.mlp_norms = {norm("pre_feedforward_layernorm"), norm("post_feedforward_layernorm"), {}};
  parts.q_norm = norm_of(attention, "q_norm", config.head_dim, config.norm_eps);
  parts.k_norm = norm_of(attention, "k_norm", config.head_dim, config.norm_eps);
  return std::make_unique<DecoderBlock>(config, std::move(parts));
}

}  // namespace

extern const Architecture kGemma3;
const Architecture kGemma3 = {.model_type = "gemma3_text",
                              .read_config = read_config,
                              .make_frame = make_frame,
                              .make_block = make_block,
                              .base = "model.",
                              .embedding = "embed_tokens.weight",
                              .head = "lm_head"};

}  // namespace lowbit
