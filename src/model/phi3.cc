// Phi-3: a Llama block whose q, k and v are one linear, and so are gate and up. Abdin et al., arXiv
// 2404.14219.
#include "model/decoder_block.h"
#include "model/model.h"

namespace lowbit {
namespace {

std::unique_ptr<Block> make_block(const ModelConfig& config, const WeightReader& weights, int64_t layer) {
  const WeightReader here = weights.inside(fmt::format("layers.{}.", layer));
  const int64_t hidden = config.hidden_size, intermediate = config.intermediate_size;
  const int64_t q_width = config.heads * config.head_dim, kv_width = config.kv_heads * config.head_dim;
  DecoderParts parts;
  parts.qkv = {here.linear("self_attn.qkv_proj", q_width + 2 * kv_width, hidden, false)};
  parts.o = here.linear("self_attn.o_proj", hidden, q_width, false);
  parts.up = {here.linear("mlp.gate_up_proj", 2 * intermediate, hidden, false)};
  parts.down = here.linear("mlp.down_proj", hidden, intermediate, false);
  parts.attention_norms.input = here.rms_norm("input_layernorm", hidden, config.norm_eps);
  parts.mlp_norms.input = here.rms_norm("post_attention_layernorm", hidden, config.norm_eps);
  parts.attention = attention_shape(config, layer);
  return std::make_unique<DecoderBlock>(config, std::move(parts));
}

}  // namespace

extern const Architecture kPhi3;
const Architecture kPhi3 = {.model_type = "phi3",
                            .read_config = read_decoder_config,
                            .make_frame = make_decoder_frame,
                            .make_block = make_block,
                            .base = "model.",
                            .embedding = "embed_tokens.weight",
                            .head = "lm_head"};

}  // namespace lowbit
