// The table of architectures. To add one: a file that defines its row, and a line here
// (docs/how_to/architecture.md).
#include "model/model.h"

namespace lowbit {

extern const Architecture kBert, kBloom, kGemma3, kGpt2, kGptNeox, kLlama, kMistral, kOpt, kPhi3, kQwen2,
    kQwen3;

std::span<const Architecture> architectures() {
  static const Architecture kArchitectures[] = {kBert,    kBloom, kGemma3, kGpt2,  kGptNeox, kLlama,
                                                kMistral, kOpt,   kPhi3,   kQwen2, kQwen3};
  return kArchitectures;
}

}  // namespace lowbit
