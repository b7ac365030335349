// Qwen3: RMS norms over each head of q and k, no biases by default. Yang et al., arXiv 2505.09388.
#include "model/decoder_block.h"
#include "model/model.h"

namespace lowbit {
namespace {

ModelConfig read_config(const Json& config) {
  ModelConfig model = read_decoder_config(config);
  model.qk_norm = true;
  if (const Json* bias = config.find("attention_bias"); bias && bias->is_bool()) {
    model.qkv_bias = model.o_bias = bias->as_bool();
  }
  return model;
}

}  // namespace

extern const Architecture kQwen3;
const Architecture kQwen3 = {.model_type = "qwen3",
                             .read_config = read_config,
                             .make_frame = make_decoder_frame,
                             .make_block = make_decoder_block,
                             .base = "model.",
                             .embedding = "embed_tokens.weight",
                             .head = "lm_head"};

}  // namespace lowbit
