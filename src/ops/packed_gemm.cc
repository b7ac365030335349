#include "ops/packed_gemm.h"

#include "ops/cuda/gram_gpu.h"
#include "ops/gemm_internal.h"

namespace lowbit {
namespace {

constexpr Kernel<GemmArgs> kTable[] = {
    {"amx_bf16x3", Isa::kAmxBf16, nullptr, packed_gemm_amx},
    {"avx512", Isa::kAvx512, nullptr, gemm_avx512},
    {"avx2", Isa::kAvx2, nullptr, gemm_avx2},
    {"ref", Isa::kRef, nullptr, gemm_ref},
};

Tensor allocate_bytes(size_t bytes) { return Tensor::allocate(DType::kU8, {static_cast<int64_t>(bytes)}); }

}  // namespace

PackedFactor::PackedFactor(const OpContext& context, const float* a, int64_t stride, int64_t rows,
                           int64_t depth)
    : rows_(rows), depth_(depth) {
  if constexpr (kHasCuda) {
    if (context.gpu) {
      packed_ = pack_factor_on_gpu(context, a, stride, rows, depth);
      return;
    }
  }
  kernel_ = &choose_kernel<GemmArgs>(context, "packed_gemm", kTable, GemmArgs{});
  if (kernel_->isa == Isa::kAmxBf16) {
    const int64_t blocks = (rows + 31) / 32;
    packed_ = allocate_bytes(static_cast<size_t>(blocks * split_panel_bytes(depth)));
    char* to = static_cast<char*>(packed_.mutable_bytes());
    split_work(context, blocks, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * 32;
        pack_split_amx(a + first, stride, depth, std::min<int64_t>(32, rows - first), true,
                       to + block * split_panel_bytes(depth));
      }
    });
    return;
  }
  packed_ = allocate_bytes(packed_a_bytes<float>(rows, depth));
  pack_a(context, a, 1, stride, rows, depth, static_cast<float*>(packed_.mutable_bytes()));
}

PackedFactor::PackedFactor(const OpContext& context, const PermuteGramArgs& gram)
    : rows_(gram.width), depth_(gram.width) {
  LOWBIT_ASSERT(context.gpu);
  if constexpr (kHasCuda) packed_ = pack_permuted_gram_on_gpu(context, gram);
}

void PackedFactor::subtract_product(const OpContext& context, int64_t begin, int64_t end, const float* b,
                                    int64_t b_stride, float* c, int64_t c_stride, int64_t columns) const {
  if constexpr (kHasCuda) {
    if (context.gpu) {
      return subtract_product_on_gpu(
          context, packed_, {nullptr, b, c, 0, b_stride, c_stride, rows_, columns, end - begin}, begin);
    }
  }
  const bool in_tiles = kernel_->isa == Isa::kAmxBf16;
  const int64_t piece = std::min(end - begin, kGemmDepth);
  if (piece <= 0 || columns <= 0) return;
  const int64_t panels = (columns + 31) / 32;
  // A piece that begins inside a step of 32 reaches into one step more.
  const OpScratch scratch(context, in_tiles ? static_cast<size_t>(panels * split_panel_bytes(piece + 31))
                                            : packed_b_bytes<float>(columns, piece));
  for (int64_t first = begin; first < end; first += piece) {
    const int64_t depth = std::min(piece, end - first);
    const float* from = b + (first - begin) * b_stride;
    GemmArgs args{.a = nullptr,
                  .b = scratch.as<float>(),
                  .c = c,
                  .c_stride = c_stride,
                  .rows = rows_,
                  .columns = columns,
                  .depth = depth,
                  .a_depth = depth_,
                  .subtract = true};
    if (in_tiles) {
      const int64_t lead = first % 32;
      args.depth = (lead + depth + 31) / 32 * 32;
      args.a = static_cast<const char*>(packed_.bytes()) + first / 32 * split_panel_bytes(32);
      for (int64_t panel = 0; panel < panels; ++panel) {
        pack_split_amx(from + panel * 32, b_stride, depth, std::min<int64_t>(32, columns - panel * 32), false,
                       scratch.as<char>() + panel * split_panel_bytes(args.depth), lead);
      }
      const int64_t blocks = (rows_ + 31) / 32;
      run_kernel(context, *kernel_, args, blocks, chunk_for(32 * args.depth * columns, 1 << 21));
    } else {
      args.a = static_cast<const float*>(packed_.bytes()) + first * kGemmPanelRows;
      pack_b(context, from, b_stride, columns, depth, scratch.as<float>());
      run_kernel(context, *kernel_, args, gemm_tiles<float>(rows_, columns), gemm_chunk<float>(args));
    }
  }
}

std::vector<KernelListing> packed_gemm_kernels() {
  std::vector<KernelListing> list;
  append_listing<GemmArgs>(list, "packed_gemm", kTable);
  return list;
}

}  // namespace lowbit
