// What a decoder block is made of, for kernels that run whole layers: the pre-norm block of model/decoder_block.h without
// norms of q and k.
#pragma once

#include "format/weight.h"
#include "ops/attention.h"

namespace lowbit {

struct DecodeMatrix {
  const Weight* weight = nullptr;
  const Tensor* bias = nullptr;  // F32, or null
};

struct DecodeLayer {
  DecodeMatrix q, k, v, o, gate, up, down;
  const Tensor *input_norm = nullptr, *post_norm = nullptr;  // F32
  AttentionShape attention;
  float epsilon = 0;
};

}  // namespace lowbit
