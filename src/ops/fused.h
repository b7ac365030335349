// Operators that stand side by side in a block, as one: a single kernel where a GPU has it, otherwise one
// after the other. The numbers are those of the operators apart, but for their rounding.
#pragma once

#include "ops/matmul.h"

#include <optional>
#include <span>

namespace lowbit {

// Rows of hidden once more, as the product behind the next norm reads them fastest: a product that adds to
// hidden leaves them here, where a GPU has a kernel for it (GpuKeptRows), and that product takes them. Who
// changes hidden in any other way forgets them.
class KeptRows {
 public:
  // Room for few rows on a GPU; elsewhere, and for one row or many, nothing is ever kept.
  KeptRows(const OpContext& context, int64_t tokens, int64_t width);

  bool has_room() const { return memory_.has_value(); }
  void forget() { norm_ = nullptr; }
  void keep(const Tensor& norm) { norm_ = norm.bytes(); }  // they are there, for this norm
  bool are_for(const Tensor& norm) const { return norm_ && norm_ == norm.bytes(); }
  uint16_t* x() const { return memory_->as<uint16_t>(); }
  float* squares() const { return reinterpret_cast<float*>(memory_->as<char>() + squares_at_); }

 private:
  std::optional<Scratch> memory_;
  int64_t squares_at_ = 0;
  const void* norm_ = nullptr;
};

// rms_norm(hidden, weight, epsilon): the rows that a product reads.
struct NormedRows {
  const float* hidden = nullptr;   // F32 [tokens, in]
  const Tensor* weight = nullptr;  // F32 [in]
  float epsilon = 0;
  const KeptRows* kept = nullptr;  // perhaps the same rows
};

// matmul of the normed rows.
void matmul_normed(const OpContext& context, const NormedRows& x, int64_t tokens,
                   std::span<const MatmulOutput> outputs, MatmulMode mode);

// out = silu(gate(x)) * up(x), x the normed rows. gate and up: weights of one size, their y is not used; out:
// [tokens, out_features].
void matmul_gated(const OpContext& context, const NormedRows& x, int64_t tokens, const MatmulOutput& gate,
                  const MatmulOutput& up, Activations out, MatmulMode mode);

// Adds down(silu(gate(x)) * up(x)) to down.add_to.
void gated_mlp(const OpContext& context, const NormedRows& x, int64_t tokens, const MatmulOutput& gate,
               const MatmulOutput& up, const MatmulOutput& down, MatmulMode mode);

}  // namespace lowbit
