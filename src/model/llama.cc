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
const Architecture kLlama = {
    "llama", read_config, make_decoder_block, "model.embed_tokens.weight", "model.norm.weight", "lm_head"};

}  // namespace lowbit
