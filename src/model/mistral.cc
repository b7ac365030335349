// Mistral: a Llama block whose tokens see a window of the last ones. Jiang et al., arXiv 2310.06825.
#include "model/decoder_block.h"
#include "model/model.h"

namespace lowbit {
extern const Architecture kMistral;
const Architecture kMistral = {.model_type = "mistral",
                               .read_config = read_decoder_config,
                               .make_frame = make_decoder_frame,
                               .make_block = make_decoder_block,
                               .base = "model.",
                               .embedding = "embed_tokens.weight",
                               .head = "lm_head"};

}  // namespace lowbit
