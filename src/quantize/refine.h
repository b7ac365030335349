// Coordinate descent over the codes and scales that GPTQ chose: each code in turn becomes the best one given
// all others, each scale the best one given its codes, both for the same objective, tr((W - Q) H (W - Q)^T).
// The loop of GPTQ decides each column once, before it knows what the later ones can mend; this looks again.
// Sources: Behdin et al., QuantEase, arXiv 2309.01885 (codes). The scale is the least-squares one of its
// group.
#pragma once

#include "ops/context.h"
#include "quantize/column_order.h"
#include "quantize/hessian.h"

namespace lowbit {

// Matrices are [steps][rows], steps in the order of work; scales and zero_points [groups][rows].
struct RefineProblem {
  const ColumnOrder* order = nullptr;
  const float* hessian = nullptr;  // [steps, steps], damped, in the order of work
  const float* weights = nullptr;  // the original ones
  int64_t rows = 0;
  int max_code = 15;
  uint8_t* codes = nullptr;
  float* scales = nullptr;
  const float* zero_points = nullptr;
};

void refine(const OpContext& ops, const RefineProblem& problem, int sweeps);

// H in the order of the columns, with damp_percent of the mean diagonal added.
Tensor damped_in_order(const Hessian& hessian, std::span<const int32_t> columns, double damp_percent);

}  // namespace lowbit
