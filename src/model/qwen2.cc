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
const Architecture kQwen2 = {
    "qwen2", read_config, make_decoder_block, "model.embed_tokens.weight", "model.norm.weight", "lm_head"};

}  // namespace lowbit
