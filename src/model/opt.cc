// OPT: learned positions behind two rows that nothing uses, ReLU, norms before attention and MLP or
// (OPT-350m) behind them, embeddings that may be narrower than the hidden state. Zhang et al., arXiv
// 2205.01068.
#include "model/config_reader.h"
#include "model/decoder_block.h"
#include "model/model.h"

namespace lowbit {
namespace {

constexpr int64_t kPositionOffset = 2;

ModelConfig read_config(const Json& config) {
  const ConfigReader reader(config);
  ModelConfig model = read_sizes(reader, {.intermediate = "ffn_dim"});
  model.embedding_width = reader.integer_or("word_embed_proj_dim", 1, int64_t{1} << 20, model.hidden_size);
  model.max_positions = reader.integer_or("max_position_embeddings", 1, int64_t{1} << 31, 2048);
  model.norm_eps = 1e-5f;
  model.activation = reader.activation_or("activation_function", "relu");
  model.tie_word_embeddings = reader.flag_or("tie_word_embeddings", true);
  model.qkv_bias = model.o_bias = model.mlp_bias = reader.flag_or("enable_bias", true);
  model.has_norm_first = reader.flag_or("do_layer_norm_before", true);
  model.has_final_norm = model.has_norm_first && !reader.flag_or("_remove_final_layer_norm", false);
  reader.require("layer_norm_elementwise_affine", true);
  return model;
}

Frame make_frame(const ModelConfig& config, const WeightReader& all) {
  const WeightReader weights = all.inside("decoder.");
  const int64_t hidden = config.hidden_size, width = config.embedding_width;
  Frame frame;
  frame.embedding = weights.matrix("embed_tokens.weight", config.vocab_size, width);
  frame.positions = weights.table("embed_positions.weight", config.max_positions + kPositionOffset, hidden);
  frame.position_offset = kPositionOffset;
  if (config.has_final_norm)
    frame.final_norm = weights.layer_norm("final_layer_norm", hidden, config.norm_eps);
  if (width != hidden) {
    frame.project_in = weights.matrix("project_in.weight", hidden, width);
    frame.project_out = weights.matrix("project_out.weight", width, hidden);
  }
  return frame;
}

std::unique_ptr<Block> make_block(const ModelConfig& config, const WeightReader& weights, int64_t layer) {
  const WeightReader here = weights.inside(fmt::format("decoder.layers.{}.", layer));
  const WeightReader attention = here.inside("self_attn.");
  const int64_t hidden = config.hidden_size, intermediate = config.intermediate_size;
  DecoderParts parts;
  parts.qkv = {attention.linear("q_proj", hidden, hidden, config.qkv_bias),
               attention.linear("k_proj", hidden, hidden, config.qkv_bias),
               attention.linear("v_proj", hidden, hidden, config.qkv_bias)};
  parts.o = attention.linear("out_proj", hidden, hidden, config.o_bias);
  parts.up = {here.linear("fc1", intermediate, hidden, config.mlp_bias)};
  parts.is_gated = false;
  parts.down = here.linear("fc2", hidden, intermediate, config.mlp_bias);
  parts.activation = config.activation;
  SublayerNorms &first = parts.attention_norms, &second = parts.mlp_norms;
  (config.has_norm_first ? first.input : first.residual) =
      here.layer_norm("self_attn_layer_norm", hidden, config.norm_eps);
  (config.has_norm_first ? second.input : second.residual) =
      here.layer_norm("final_layer_norm", hidden, config.norm_eps);
  parts.attention = attention_shape(config, layer);
  parts.has_rope = false;
  return std::make_unique<DecoderBlock>(config, std::move(parts));
}

}  // namespace

extern const Architecture kOpt;
const Architecture kOpt = {.model_type = "opt",
                           .read_config = read_config,
                           .make_frame = make_frame,
                           .make_block = make_block,
                           .base = "model.",
                           .embedding = "decoder.embed_tokens.weight",
                           .head = "lm_head"};

}  // namespace lowbit
