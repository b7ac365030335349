// The small ops between the products: norms, RoPE, activations, embeddings. Rows are independent.
#pragma once

#include "format/weight.h"
#include "ops/context.h"
#include "ops/cuda/elementwise_gpu.h"
#include "ops/elementwise_args.h"
#include "ops/kernel_table.h"
#include "tensor/activations.h"

#include <optional>
#include <span>
#include <vector>

namespace lowbit {

// y[r] = x[r] / sqrt(mean(x[r]^2) + epsilon) * weight; x, y: [rows, width], weight: F32 [width]; y may be
// x. Zhang and Sennrich, arXiv 1910.07467.
void rms_norm(const OpContext& context, ConstActivations x, int64_t rows, const Tensor& weight, float epsilon,
              Activations y);

// y[r] = (x[r] - mean) / sqrt(variance + epsilon) * weight + bias; weight, bias: F32 [width]; y may be x. Ba
// et al., arXiv 1607.06450.
void layer_norm(const OpContext& context, ConstActivations x, int64_t rows, const Tensor& weight,
                const Tensor& bias, float epsilon, Activations y);

// Cosines and sines for positions 0 ... n-1: F32 [n, rotary_dim / 2] each.
struct RopeTable {
  Tensor cosines, sines;
};

// Rotates pairs (i, i + rotary_dim/2) of each head by the angle of its token's position. x: [tokens, heads *
// head_dim]; positions: [tokens], all below the table's length (on a GPU that is the caller's promise). Su et
// al., arXiv 2104.09864 ("rotate half" form).
void rope(const OpContext& context, Activations x, int64_t tokens, int64_t heads, int64_t head_dim,
          const int32_t* positions, const RopeTable& table);

// out = f(x), element by element; out may be x. gelu: Hendrycks and Gimpel, arXiv 1606.08415, with erf or
// with tanh.
void activate(const OpContext& context, Activation f, ConstActivations x, int64_t count, Activations out);
// out = f(gate) * up; out may be gate. Shazeer, arXiv 2002.05202.
void activate_gated(const OpContext& context, Activation f, ConstActivations gate, ConstActivations up,
                    int64_t count, Activations out);
inline void swiglu(const OpContext& context, ConstActivations gate, ConstActivations up, int64_t count,
                   Activations out) {
  activate_gated(context, Activation::kSilu, gate, up, count, out);
}

// Takes the product of fused weights apart. A row of x is `repeats` times the columns of all parts; out of a
// part: [tokens, repeats * width], may not overlap x. At most three parts.
struct ColumnPart {
  int64_t width = 0;
  Activations out;
};
void split_columns(const OpContext& context, ConstActivations x, int64_t tokens, int64_t repeats,
                   std::span<const ColumnPart> parts);

void add(const OpContext& context, ConstActivations x, int64_t count, float* to);  // to += x
void scale(const OpContext& context, float factor, int64_t count, float* x);       // x *= factor

// y = x in the type of activations; y may be x where x has that type.
void convert(const OpContext& context, ConstActivations x, int64_t count, Activations y);

// Floats as a product reads them: themselves, or a copy as activations.
class ActivationInput {
 public:
  ActivationInput(const OpContext& context, const float* x, int64_t count) : rows_(x) {
    if (context.activations() == DType::kF32) return;
    convert(context, x, count, copied_.emplace(context, count).rows());
    rows_ = copied_->rows();
  }
  ConstActivations rows() const { return rows_; }

 private:
  std::optional<ActivationScratch> copied_;
  ConstActivations rows_;
};

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
// hidden[t] += table[positions[t] + offset]; table: floating [rows, width], on a GPU BF16; positions null:
// all are 0. A position beyond it is kInvalidArgument; on a GPU that there is none is the caller's promise.
void add_positions(const OpContext& context, const Tensor& table, int64_t offset, const int32_t* positions,
                   int64_t tokens, float* hidden);
// How kernels take such a table, which lies as weights_gpu.h says.
GpuEmbeddingTable gpu_embedding_table(const Weight& table);

std::vector<KernelListing> elementwise_kernels();

}  // namespace lowbit
