// y = x W^T + bias for dense and quantized weights.
#pragma once

#include "format/weight.h"
#include "ops/context.h"
#include "ops/kernel_table.h"
#include "tensor/activations.h"

#include <span>

namespace lowbit {

// How a row of x is worked on does not depend on how many rows come with it, so a sequence gives the same
// numbers alone and in a batch. The two modes round differently and are chosen by the phase, not by the row
// count:
enum class MatmulMode {
  kPrefill,  // blocked product for many rows; the fast kernels may round x and dequantized weights to BF16
             // (AMX)
  kDecode,  // one pass over the weights at memory speed for few rows; x in 16-bit integers per 128 columns or
            // FP32
};

class KeptRows;  // ops/fused.h

struct MatmulOutput {
  const Weight* weight = nullptr;  // [out, in]
  const Tensor* bias = nullptr;    // F32 [out], or null
  Activations y;                   // [tokens, out]
  float* add_to = nullptr;         // F32 [tokens, out] that y is added to, or null
  // The norm that reads add_to next and where that may find its rows, or null.
  const Tensor* next_norm = nullptr;
  KeptRows* kept = nullptr;
};

// x: [tokens, in]. All outputs share x, so that it is prepared once for q/k/v and for gate/up.
void matmul(const OpContext& context, ConstActivations x, int64_t tokens,
            std::span<const MatmulOutput> outputs, MatmulMode mode);

inline void matmul(const OpContext& context, ConstActivations x, int64_t tokens, const Weight& weight,
                   const Tensor* bias, Activations y, MatmulMode mode) {
  const MatmulOutput output{&weight, bias, y};
  matmul(context, x, tokens, std::span(&output, 1), mode);
}

// out = silu(gate(x)) * up(x), [tokens, out_features], by a kernel that has both products in a cache and
// nowhere else: the same bits as one after the other. False where there is none: prompts, AMX, in at most
// kMostGatedColumns. y and add_to of gate and up are not used.
bool matmul_gated_together(const OpContext& context, ConstActivations x, int64_t tokens,
                           const MatmulOutput& gate, const MatmulOutput& up, Activations out,
                           MatmulMode mode);

std::vector<KernelListing> matmul_kernels();

}  // namespace lowbit
