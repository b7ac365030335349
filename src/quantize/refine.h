// Coordinate descent over the codes and scales that GPTQ chose: each code in turn becomes the best one given
// all others, each scale the best one given its codes, both for the same objective, tr((W - Q) H (W - Q)^T).
// The loop of GPTQ decides each column once, before it knows what the later ones can mend; this looks again.
// Sources: Behdin et al., QuantEase, arXiv 2309.01885 (codes). The scale is the least-squares one of its
// group.
#pragma once

#include "format/levels.h"
#include "ops/context.h"
#include "ops/packed_gemm.h"
#include "quantize/column_order.h"
#include "quantize/hessian.h"

namespace lowbit {

// H in the order of work with damp_percent of its mean diagonal added, zero diagonal elements replaced by
// that mean.
struct DampedHessian {
  Tensor values;        // F32 [steps, steps]; on a GPU what lies near the diagonal: permuted_gram_band
  Tensor damping;       // F32 [steps], what was added to the diagonal
  PackedFactor packed;  // values again, for products with slabs

  DampedHessian(const OpContext& ops, const Hessian& source, std::span<const int32_t> columns,
                double damp_percent);

  // Of up to kGramBand / 2 steps from `begin` on: element (i, j) at [i * stride + j].
  struct Block {
    const float* data;
    int64_t stride;
  };
  Block block(int64_t begin) const;

 private:
  bool is_band_ = false;
};

// Matrices are [steps][rows], steps in the order of work; scales and zero_points [groups][rows]. All pointers
// but `order` and `hessian` are to where the operators compute.
struct RefineProblem {
  const ColumnOrder* order = nullptr;
  const int32_t* groups = nullptr;  // order->groups
  const DampedHessian* hessian = nullptr;
  const float* weights = nullptr;  // the original ones
  int64_t rows = 0;
  int max_code = 15;
  uint8_t* codes = nullptr;
  float* scales = nullptr;
  const float* zero_points = nullptr;
  const Levels* levels = nullptr;  // of a codebook: neither max_code nor zero_points are read
};

// tr((W - Q) H (W - Q)^T) and tr(W H W^T) of these rows, of the H without damping.
struct RefineResult {
  double error = 0, size = 0;
};
RefineResult refine(const OpContext& ops, const RefineProblem& problem, int sweeps);

}  // namespace lowbit
