// Qwen2 and Qwen2.5: biases on q, k and v. Yang et al., arXiv 2407.10671.
#include "model/decoder_block.h"
#include "model/model.h"

namespace lowbit {
namespace {

ModelConfig read_config(const Json& config) {
  ModelConfig model = read_decoder_config(config);
  model.qkv_bias = true;
  return model;
}

}  // namespace

extern const Architecture kQwen2;
const Architecture kQwen2 = {.model_type = "qwen2",
                             .read_config = read_config,
                             .make_frame = make_decoder_frame,
                             .make_block = make_decoder_block,
                             .base = "model.",
                             .embedding = "embed_tokens.weight",
                             .head = "lm_head"};

}  // namespace lowbit
