// Llama 1 to 3, SmolLM2, TinyStories. Touvron et al., arXiv 2302.13971.
#include "model/decoder_block.h"
#include "model/model.h"

namespace lowbit {
namespace {

ModelConfig read_config(const Json& config) {
  ModelConfig model = read_decoder_config(config);
  if (const Json* bias = config.find("attention_bias"); bias && bias->is_bool()) {
    model.qkv_bias = model.o_bias = bias->as_bool();
  }
  if (const Json* bias = config.find("mlp_bias"); bias && bias->is_bool()) model.mlp_bias = bias->as_bool();
  return model;
}

}  // namespace

extern const Architecture kLlama;
const Architecture kLlama = {.model_type = "llama",
                             .read_config = read_config,
                             .make_frame = make_decoder_frame,
                             .make_block = make_decoder_block,
                             .base = "model.",
                             .embedding = "embed_tokens.weight",
                             .head = "lm_head"};

}  // namespace lowbit
