#include "ops/gram.h"

#include "ops/gemm_internal.h"

namespace lowbit {
void gram_accumulate(const OpContext& context, const float* x, int64_t tokens, int64_t width, float* h) {
  if (tokens <= 0 || width <= 0) return;
  const int64_t piece = std::min(tokens, kGemmDepth);
  const OpScratch a(context, packed_a_bytes<float>(width, piece));
  const OpScratch b(context, packed_b_bytes<float>(width, piece));
  for (int64_t first = 0; first < tokens; first += piece) {
    const int64_t count = std::min(piece, tokens - first);
    pack_a(context, x + first * width, 1, width, width, count, a.as<float>());
    pack_b(context, x + first * width, width, width, count, b.as<float>());
    multiply_packed<float>(context, {a.as<float>(), b.as<float>(), h, width, width, width, count, false, true});
  }
}

}  // namespace lowbit
