// GPT-NeoX and Pythia: attention and MLP side by side, RoPE over a part of each head, q, k and v of a head
// behind each other in one linear. Black et al., arXiv 2204.06745.
#include "model/config_reader.h"
#include "model/decoder_block.h"
#include "model/model.h"

namespace lowbit {
namespace {

ModelConfig read_config(const Json& config) {
  const ConfigReader reader(config);
  ModelConfig model = read_sizes(reader, {});
  model.max_positions = reader.integer_or("max_position_embeddings", 1, int64_t{1} << 31, 2048);
  model.norm_eps = static_cast<float>(reader.number_or("layer_norm_eps", 0, 1, 1e-5));
  model.activation = reader.activation_or("hidden_act", "gelu");
  model.tie_word_embeddings = reader.flag_or("tie_word_embeddings", false);
  model.qkv_bias = model.o_bias = reader.flag_or("attention_bias", true);
  model.has_parallel_residual = reader.flag_or("use_parallel_residual", true);
  const Json parameters = rope_parameters(reader);
  model.rope = read_rope(reader, parameters, model.max_positions);
  const ConfigReader newer(parameters);
  if (!newer.has("rope_theta"))
    model.rope.theta = reader.number_or("rotary_emb_base", 1e-3, 1e15, model.rope.theta);
  model.rotary_dim = rotary_dim(model.head_dim, newer.number_or("partial_rotary_factor", 0, 1,
                                                                reader.number_or("rotary_pct", 0, 1, 0.25)));
  return model;
}

Frame make_frame(const ModelConfig& config, const WeightReader& weights) {
  Frame frame;
  frame.embedding = weights.matrix("embed_in.weight", config.vocab_size, config.hidden_size);
  frame.final_norm = weights.layer_norm("final_layer_norm", config.hidden_size, config.norm_eps);
  return frame;
}

std::unique_ptr<Block> make_block(const ModelConfig& config, const WeightReader& weights, int64_t layer) {
  const WeightReader here = weights.inside(fmt::format("layers.{}.", layer));
  const int64_t hidden = config.hidden_size, intermediate = config.intermediate_size;
  DecoderParts parts;
  parts.qkv = {here.linear("attention.query_key_value", 3 * hidden, hidden, config.qkv_bias)};
  parts.is_qkv_by_head = true;
  parts.o = here.linear("attention.dense", hidden, hidden, config.o_bias);
  parts.up = {here.linear("mlp.dense_h_to_4h", intermediate, hidden, true)};
  parts.is_gated = false;
  parts.down = here.linear("mlp.dense_4h_to_h", hidden, intermediate, true);
  parts.activation = config.activation;
  parts.attention_norms.input = here.layer_norm("input_layernorm", hidden, config.norm_eps);
  parts.mlp_norms.input = here.layer_norm("post_attention_layernorm", hidden, config.norm_eps);
  parts.attention = attention_shape(config, layer);
  parts.has_rope = config.rotary_dim > 0;
  parts.is_parallel = config.has_parallel_residual;
  return std::make_unique<DecoderBlock>(config, std::move(parts));
}

}  // namespace

extern const Architecture kGptNeox;
const Architecture kGptNeox = {.model_type = "gpt_neox",
                               .read_config = read_config,
                               .make_frame = make_frame,
                               .make_block = make_block,
                               .base = "gpt_neox.",
                               .embedding = "embed_in.weight",
                               .head = "embed_out"};

}  // namespace lowbit
