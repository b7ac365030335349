// The methods on one matrix: round to nearest, and GPTQ. Every choice of codes goes through ops/; this
// decides order, group parameters and rescues. Sources: Frantar et al., GPTQ, arXiv 2210.17323; Gafni et al.,
// group-aware order, arXiv 2505.14638.
#pragma once

#include "quantize/column_order.h"
#include "quantize/group_grids.h"
#include "quantize/hessian.h"
#include "quantize/matrix.h"
#include "quantize/refine.h"

#include <map>
#include <optional>

namespace lowbit {

struct QuantizedMatrix {
  QuantizedTensor weight;
  std::string method;  // "gptq", or "rtn" after a fall back
  std::string note;
  double damp_percent = 0;               // that was needed; 0 for rtn
  double loss = 0;                       // tr(dW (H + damping) dW^T), as the loop sums it up; 0 for rtn
  std::optional<double> relative_error;  // where the method knows it already
};

// The factors of one Hessian for the linears that share it: q, k and v are ordered alike, so one factor
// serves all.
class FactorCache {
 public:
  FactorCache(const OpContext& ops, Hessian hessian) : ops_(ops), hessian_(std::move(hessian)) {}
  const Hessian& hessian() const { return hessian_; }
  // Of the Hessian only its diagonal is needed from now on: no other order of columns will be asked for.
  void forget_values() { hessian_.values = Tensor(); }
  // Null when the Hessian cannot be inverted. The latest factor only is kept.
  const InverseFactor* factor(const std::vector<int32_t>& order, const Inversion& inversion);
  // The Hessian of the latest factor, which must exist, for refine().
  const DampedHessian& damped();

 private:
  const OpContext& ops_;
  Hessian hessian_;
  std::vector<int32_t> order_;
  Inversion inversion_;
  std::optional<InverseFactor> factor_;
  std::optional<DampedHessian> damped_;
};

// Never throws for a Hessian that is zero, singular or not finite: that matrix is rounded to nearest, with a
// note.
QuantizedMatrix quantize_gptq(const OpContext& ops, const MatrixProblem& problem, FactorCache& factors);
// On the CPU.
QuantizedMatrix quantize_rtn(const OpContext& ops, const MatrixProblem& problem);

// |X dW^T|_F / |X W^T|_F, from H = X^T X; without a finite H that of the weights, |dW|_F / |W|_F.
double relative_error(const OpContext& ops, const Tensor& weight, const QuantizedTensor& quantized,
                      const Hessian* hessian);

}  // namespace lowbit
