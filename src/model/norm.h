// A norm with its weights as a block holds it.
#pragma once

#include "model/block.h"

namespace lowbit {

struct Norm {
  Tensor weight;  // F32 [width]; empty: no norm at all
  Tensor bias;    // F32 [width]: layer norm; empty: RMS norm
  float epsilon = 0;
  std::string module = {};  // of its tensors "<module>.weight" and "<module>.bias"
  float weight_offset = 0;  // weight is so much more than the file's

  bool is_none() const { return weight.empty(); }
  bool is_rms() const { return !is_none() && bias.empty(); }
  Norm moved(const MoveWeight& move) const {
    return {lowbit::moved(weight, move), lowbit::moved(bias, move), epsilon, module, weight_offset};
  }
};

// y = the norm of x, rows of `width`; where there is none, x itself. y may be x.
void apply_norm(const OpContext& ops, const Norm& norm, ConstActivations x, int64_t rows, int64_t width,
                Activations y);

}  // namespace lowbit
