#include "ops/gram.h"

#include "ops/gemm_internal.h"

namespace lowbit {
namespace {

// The FP32 kernels are those of ops/gemm.h: they touch the upper triangle alone when told so.
constexpr Kernel<GemmArgs> kTable[] = {
    {"avx512", Isa::kAvx512, nullptr, gemm_avx512},
    {"avx2", Isa::kAvx2, nullptr, gemm_avx2},
    {"ref", Isa::kRef, nullptr, gemm_ref},
};

}  // namespace
void gram_accumulate(const OpContext& context, const float* x, int64_t tokens, int64_t width, float* h) {
  if (tokens <= 0 || width <= 0) return;
  const GemmArgs wanted{nullptr, nullptr, h, width, width, width, tokens, false, true};
  const auto& kernel = choose_kernel<GemmArgs>(context, "gram", kTable, wanted);
  const int64_t piece = std::min(tokens, kGemmDepth);
  const OpScratch a(context, packed_a_bytes<float>(width, piece));
  const OpScratch b(context, packed_b_bytes<float>(width, piece));
  for (int64_t first = 0; first < tokens; first += piece) {
    const int64_t count = std::min(piece, tokens - first);
    pack_a(context, x + first * width, 1, width, width, count, a.as<float>());
    pack_b(context, x + first * width, width, width, count, b.as<float>());
    const GemmArgs args{a.as<float>(), b.as<float>(), h, width, width, width, count, false, true};
    run_kernel(context, kernel, args, gemm_tiles<float>(width, width), 1);
  }
}

std::vector<KernelListing> gram_kernels() {
  std::vector<KernelListing> list;
  append_listing<GemmArgs>(list, "gram", kTable);
  return list;
}

}  // namespace lowbit
