// Operators that stand side by side in a block, as one: a single kernel where a GPU has it, otherwise one
// after the other. The numbers are those of the operators apart, but for their rounding.
#pragma once

#include "ops/matmul.h"

#include <span>

namespace lowbit {

// rms_norm(hidden, weight, epsilon): the rows that a product reads.
struct NormedRows {
  const float* hidden = nullptr;   // F32 [tokens, in]
  const Tensor* weight = nullptr;  // F32 [in]
  float epsilon = 0;
};

// matmul of the normed rows.
void matmul_normed(const OpContext& context, const NormedRows& x, int64_t tokens,
                   std::span<const MatmulOutput> outputs, MatmulMode mode);

// out = silu(gate(x)) * up(x), x the normed rows. gate and up: weights of one size, their y is not used; out:
// [tokens, out_features].
void matmul_gated(const OpContext& context, const NormedRows& x, int64_t tokens, const MatmulOutput& gate,
                  const MatmulOutput& up, Activations out, MatmulMode mode);

}  // namespace lowbit
