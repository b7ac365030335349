// The small ops between the products: norms, RoPE, SwiGLU, embedding. Rows are independent.
#pragma once

#include "format/weight.h"
#include "ops/context.h"
#include "ops/cuda/elementwise_gpu.h"
#include "ops/kernel_table.h"
#include "tensor/activations.h"

#include <span>
#include <vector>

namespace lowbit {

// y[r] = x[r] / sqrt(mean(x[r]^2) + epsilon) * weight; x, y: [rows, width], weight: F32 [width]; y may be
// x. Zhang and Sennrich, arXiv 1910.07467.
void rms_norm(const OpContext& context, ConstActivations x, int64_t rows, const Tensor& weight, float epsilon,
              Activations y);

// Cosines and sines for positions 0 ... n-1: F32 [n, rotary_dim / 2] each.
struct RopeTable {
  Tensor cosines, sines;
};

// Rotates pairs (i, i + rotary_dim/2) of each head by the angle of its token's position. x: [tokens, heads *
// head_dim]; positions: [tokens], all below the table's length (on a GPU that is the caller's promise). Su et
// al., arXiv 2104.09864 ("rotate half" form).
void rope(const OpContext& context, Activations x, int64_t tokens, int64_t heads, int64_t head_dim,
          const int32_t* positions, const RopeTable& table);

// out = silu(gate) * up, element by element; out may be gate. Shazeer, arXiv 2002.05202.
void swiglu(const OpContext& context, ConstActivations gate, ConstActivations up, int64_t count,
            Activations out);

// Token ids in this machine's memory, and a copy of them on the GPU where there is one already.
struct TokenIds {
  std::span<const int32_t> ids;
  const int32_t* on_gpu = nullptr;

  TokenIds(std::span<const int32_t> here, const int32_t* there = nullptr) : ids(here), on_gpu(there) {}
  TokenIds(const std::vector<int32_t>& here) : ids(here) {}
};

// out[t] = table[ids[t]]; table: floating [vocab, width] or quantized; out: [tokens, width]. An id
// outside [0, vocab) is kInvalidArgument.
void embedding(const OpContext& context, const Weight& table, const TokenIds& ids, float* out);
// How kernels take such a table, which lies as weights_gpu.h says.
GpuEmbeddingTable gpu_embedding_table(const Weight& table);

std::vector<KernelListing> elementwise_kernels();

}  // namespace lowbit
