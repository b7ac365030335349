#include "ops/fused.h"

#include "ops/cuda/matmul_gpu.h"
#include "ops/elementwise.h"

namespace lowbit {

KeptRows::KeptRows(const OpContext& context, int64_t tokens, int64_t width) {
  if constexpr (kHasCuda) {
    if (!context.gpu || tokens < 2 || tokens > kDecodeRows) return;
    squares_at_ = kept_rows(tokens) * width * static_cast<int64_t>(sizeof(uint16_t));
    memory_.emplace(context.workspace->take(
        static_cast<size_t>(squares_at_ + tokens * (width / 8) * static_cast<int64_t>(sizeof(float)))));
  }
}

void matmul_normed(const OpContext& context, const NormedRows& x, int64_t tokens,
                   std::span<const MatmulOutput> outputs, MatmulMode mode) {
  if (tokens <= 0 || outputs.empty()) return;
  if constexpr (kHasCuda) {
    if (context.gpu && matmul_normed_on_gpu(context, x, tokens, outputs, mode)) return;
  }
  const ActivationScratch normed(context, tokens * x.weight->element_count());
  rms_norm(context, x.hidden, tokens, *x.weight, x.epsilon, normed.rows());
  matmul(context, normed.rows(), tokens, outputs, mode);
}

void matmul_gated(const OpContext& context, const NormedRows& x, int64_t tokens, const MatmulOutput& gate,
                  const MatmulOutput& up, Activations out, MatmulMode mode) {
  if (tokens <= 0) return;
  if constexpr (kHasCuda) {
    if (context.gpu && matmul_gated_on_gpu(context, x, tokens, gate, up, out, mode)) return;
  }
  const int64_t count = tokens * out_features(*gate.weight);
  const ActivationScratch second(context, count);
  const MatmulOutput outputs[] = {{gate.weight, gate.bias, out}, {up.weight, up.bias, second.rows()}};
  matmul_normed(context, x, tokens, outputs, mode);
  swiglu(context, out, second.rows(), count, out);
}

void gated_mlp(const OpContext& context, const NormedRows& x, int64_t tokens, const MatmulOutput& gate,
               const MatmulOutput& up, const MatmulOutput& down, MatmulMode mode) {
  if (tokens <= 0) return;
  if constexpr (kHasCuda) {
    if (context.gpu && gated_mlp_on_gpu(context, x, tokens, gate, up, down, mode)) return;
  }
  const ActivationScratch gated(context, tokens * out_features(*gate.weight));
  const ActivationScratch product(context, tokens * out_features(*down.weight));
  MatmulOutput last = down;
  last.y = product.rows();
  matmul_gated(context, x, tokens, gate, up, gated.rows(), mode);
  matmul(context, gated.rows(), tokens, std::span(&last, 1), mode);
}

}  // namespace lowbit
