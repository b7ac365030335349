#include "model/norm.h"

namespace lowbit {

void apply_norm(const OpContext& ops, const Norm& norm, ConstActivations x, int64_t rows, int64_t width,
                Activations y) {
  if (norm.is_rms()) return rms_norm(ops, x, rows, norm.weight, norm.epsilon, y);
  if (!norm.is_none()) return layer_norm(ops, x, rows, norm.weight, norm.bias, norm.epsilon, y);
  convert(ops, x, rows * width, y);
}

}  // namespace lowbit
