// X^T X over calibration tokens and what GPTQ needs of it: the factor of its damped inverse, with a ladder of
// rescues when it is not positive definite.
#pragma once

#include "ops/gram.h"
#include "tensor/tensor.h"

#include <optional>
#include <span>
#include <string>
#include <vector>

namespace lowbit {

struct Hessian {
  Tensor values;                // F32 [width, width], symmetric, where the operators compute
  std::vector<float> diagonal;  // of values, here
  int64_t tokens = 0;           // rows of X

  int64_t width() const { return values.size(0); }
  bool is_finite() const;  // of the diagonal, which a non-finite activation always reaches
};

// values: symmetric.
Hessian make_hessian(const OpContext& ops, Tensor values, int64_t tokens);

// Sums X^T X in pieces of a fixed number of rows, counted over the whole stream, so that the bits do not
// depend on how callers cut it; on a GPU the pieces are the callers'. One Hessian and, on the CPU, a buffer
// of kChunkTokens rows are held.
class HessianAccumulator {
 public:
  static constexpr int64_t kChunkTokens = 2048;

  HessianAccumulator(const OpContext& ops, int64_t width);
  void add(ConstActivations x, int64_t tokens);  // x: [tokens, width]
  Hessian finish();

 private:
  const OpContext* ops_;
  int64_t width_, buffered_ = 0;
  Hessian hessian_;
  Tensor buffer_;
};

// The factor of one column order. `values` [width, width]: on and above the diagonal U with inverse(H +
// damping) = U^T U, below it nothing of use.
struct InverseFactor {
  Tensor values;
  double damp_percent = 0;  // that was needed
  std::string note;         // how, when the first try failed
};

struct Inversion {
  double damp_percent = 0.05;
  FactorPrecision precision = FactorPrecision::kFloat;  // of the first tries
  float dead_diagonal = 0;  // put in place of zero diagonal elements; 0: their mean

  bool operator==(const Inversion&) const = default;
};

// H with rows and columns in the order given, its zero diagonal elements replaced by the mean (such columns
// stand alone anyway), damped and factored. First damp_percent, then more in growing steps below 1, then a
// floor under the diagonal, then double precision; nothing when all of that fails (H is not finite, or not a
// Gram matrix).
std::optional<InverseFactor> invert(const OpContext& ops, const Hessian& hessian,
                                    std::span<const int32_t> order, const Inversion& inversion);

}  // namespace lowbit
