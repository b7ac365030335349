// Mistral: a Llama block whose tokens see a window of the last ones. Jiang et al., arXiv 2310.06825.
#include "model/decoder_block.h"
#include "model/model.h"

namespace lowbit {
namespace {

ModelConfig read_config(const Json& config) {
  ModelConfig model = read_decoder_config(config);
  return model;
}

}  // namespace

extern const Architecture kMistral;
const Architecture kMistral = {
    "mistral", read_config, make_decoder_block, "model.embed_tokens.weight", "model.norm.weight", "lm_head"};

}  // namespace lowbit
