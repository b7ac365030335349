// GPT-2: learned positions, layer norms, and linears whose dense weights stand in files as [in, out]
// (Conv1D). They are turned round when they are loaded, and have the names and the [out, in] of all others
// from then on: codes are written as those of a linear layer, which is what GPTQ's writers do with a Conv1D
// too. Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
#include "model/config_reader.h"
#include "model/decoder_block.h"
#include "model/model.h"

namespace lowbit {
namespace {

ModelConfig read_config(const Json& config) {
  const ConfigReader reader(config);
  ModelConfig model = read_sizes(
      reader, {.hidden = "n_embd", .intermediate = "n_inner", .layers = "n_layer", .heads = "n_head"});
  model.max_positions = reader.integer(reader.either("n_positions", "n_ctx"), 1, int64_t{1} << 31);
  model.norm_eps = static_cast<float>(reader.number_or("layer_norm_epsilon", 0, 1, 1e-5));
  model.activation = reader.activation_or("activation_function", "gelu_new");
  model.tie_word_embeddings = reader.flag_or("tie_word_embeddings", true);
  if (!reader.flag_or("scale_attn_weights", true)) model.attention_scale = 1;
  reader.require("scale_attn_by_inverse_layer_idx", false);
  reader.require("add_cross_attention", false);
  return model;
}

Frame make_frame(const ModelConfig& config, const WeightReader& weights) {
  Frame frame;
  frame.embedding = weights.matrix("wte.weight", config.vocab_size, config.hidden_size);
  frame.positions = weights.table("wpe.weight", config.max_positions, config.hidden_size);
  frame.final_norm = weights.layer_norm("ln_f", config.hidden_size, config.norm_eps);
  return frame;
}

std::unique_ptr<Block> make_block(const ModelConfig& config, const WeightReader& weights, int64_t layer) {
  const WeightReader here = weights.inside(fmt::format("h.{}.", layer));
  const int64_t hidden = config.hidden_size, intermediate = config.intermediate_size;
  DecoderParts parts;
  parts.qkv = {here.conv1d("attn.c_attn", 3 * hidden, hidden, true)};
  parts.o = here.conv1d("attn.c_proj", hidden, hidden, true);
  parts.up = {here.conv1d("mlp.c_fc", intermediate, hidden, true)};
  parts.is_gated = false;
  parts.down = here.conv1d("mlp.c_proj", hidden, intermediate, true);
  parts.activation = config.activation;
  parts.attention_norms.input = here.layer_norm("ln_1", hidden, config.norm_eps);
  parts.mlp_norms.input = here.layer_norm("ln_2", hidden, config.norm_eps);
  parts.attention = attention_shape(config, layer);
  parts.has_rope = false;
  return std::make_unique<DecoderBlock>(config, std::move(parts));
}

}  // namespace

extern const Architecture kGpt2;
const Architecture kGpt2 = {.model_type = "gpt2",
                            .read_config = read_config,
                            .make_frame = make_frame,
                            .make_block = make_block,
                            .base = "transformer.",
                            .embedding = "wte.weight",
                            .head = "lm_head",
                            .has_conv1d = true};

}  // namespace lowbit
