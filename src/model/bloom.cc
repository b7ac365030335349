// BLOOM: ALiBi instead of positions, a norm behind the embedding, q, k and v of a head behind each other in
// one linear. Le Scao et al., arXiv 2211.05100; ALiBi: Press et al., arXiv 2108.12409.
#include "model/config_reader.h"
#include "model/decoder_block.h"
#include "model/model.h"

#include <bit>
#include <cmath>

namespace lowbit {
namespace {

ModelConfig read_config(const Json& config) {
  const ConfigReader reader(config);
  ModelConfig model = read_sizes(reader, {.hidden = reader.either("hidden_size", "n_embed"),
                                          .intermediate = "",
                                          .layers = reader.either("n_layer", "num_hidden_layers"),
                                          .heads = reader.either("n_head", "num_attention_heads")});
  // Nothing ends with a position; this is how long its training sequences were.
  model.max_positions = reader.integer_or("seq_length", 1, int64_t{1} << 31, 2048);
  model.norm_eps = static_cast<float>(reader.number_or("layer_norm_epsilon", 0, 1, 1e-5));
  model.activation = Activation::kGeluTanh;
  model.tie_word_embeddings = reader.flag_or("tie_word_embeddings", true);
  reader.require("apply_residual_connection_post_layernorm", false);
  return model;
}

Frame make_frame(const ModelConfig& config, const WeightReader& weights) {
  const int64_t hidden = config.hidden_size;
  Frame frame;
  frame.embedding = weights.matrix("word_embeddings.weight", config.vocab_size, hidden);
  frame.embedding_norm = weights.layer_norm("word_embeddings_layernorm", hidden, config.norm_eps);
  frame.final_norm = weights.layer_norm("ln_f", hidden, config.norm_eps);
  return frame;
}

// 2^(-8 / n), 2^(-16 / n), ... for a power of two n of heads; heads beyond it get every other slope of 2 n.
Tensor alibi_slopes(int64_t heads) {
  Tensor slopes = Tensor::allocate(DType::kF32, {heads});
  const auto whole = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(heads)));
  for (int64_t head = 0; head < heads; ++head) {
    const double power = head < whole
                             ? 8.0 * static_cast<double>(head + 1) / static_cast<double>(whole)
                             : 4.0 * static_cast<double>(2 * (head - whole) + 1) / static_cast<double>(whole);
    slopes.mutable_data<float>()[head] = static_cast<float>(std::exp2(-power));
  }
  return slopes;
}

std::unique_ptr<Block> make_block(const ModelConfig& config, const WeightReader& weights, int64_t layer) {
  const WeightReader here = weights.inside(fmt::format("h.{}.", layer));
  const int64_t hidden = config.hidden_size, intermediate = config.intermediate_size;
  DecoderParts parts;
  parts.qkv = {here.linear("self_attention.query_key_value", 3 * hidden, hidden, true)};
  parts.is_qkv_by_head = true;
  parts.o = here.linear("self_attention.dense", hidden, hidden, true);
  parts.up = {here.linear("mlp.dense_h_to_4h", intermediate, hidden, true)};
  parts.is_gated = false;
  parts.down = here.linear("mlp.dense_4h_to_h", hidden, intermediate, true);
  parts.activation = config.activation;
  parts.attention_norms.input = here.layer_norm("input_layernorm", hidden, config.norm_eps);
  parts.mlp_norms.input = here.layer_norm("post_attention_layernorm", hidden, config.norm_eps);
  parts.attention = attention_shape(config, layer);
  parts.has_rope = false;
  parts.slopes = alibi_slopes(config.heads);
  return std::make_unique<DecoderBlock>(config, std::move(parts));
}

}  // namespace

extern const Architecture kBloom;
const Architecture kBloom = {.model_type = "bloom",
                             .read_config = read_config,
                             .make_frame = make_frame,
                             .make_block = make_block,
                             .base = "transformer.",
                             .embedding = "word_embeddings.weight",
                             .head = "lm_head"};

}  // namespace lowbit
