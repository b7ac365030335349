#include "ops/gram.h"

#include "ops/cuda/gram_gpu.h"
#include "ops/cuda/quantize_gpu.h"
#include "ops/gemm_internal.h"

#include <algorithm>

namespace lowbit {
namespace {

// The tiles of BF16 want x packed their own way. The FP32 kernels are those of ops/gemm.h: they touch the
// upper triangle alone when told so.
constexpr Kernel<GemmArgs> kTable[] = {
    {"amx_bf16", Isa::kAmxBf16, nullptr, gram_amx_bf16},
    {"avx512", Isa::kAvx512, nullptr, gemm_avx512},
    {"avx2", Isa::kAvx2, nullptr, gemm_avx2},
    {"ref", Isa::kRef, nullptr, gemm_ref},
};

// The largest tile of which the upper triangle of h has three for each thread.
int64_t tile_for(const OpContext& context, int64_t width) {
  for (int64_t tile = kGramTileMost; tile > kGramTileLeast; tile /= 2) {
    const int64_t tiles = round_up(width, tile) / tile;
    if (tiles * (tiles + 1) / 2 >= 3 * worker_count(context)) return tile;
  }
  return kGramTileLeast;
}

}  // namespace

void mirror_upper(const OpContext& context, float* matrix, int64_t width) {
  if constexpr (kHasCuda) {
    if (context.gpu) return gpu_mirror_upper(matrix, width, context.gpu->stream());
  }
  constexpr int64_t kTile = 64;
  split_work(context, (width + kTile - 1) / kTile, 1, [&](int64_t first, int64_t last, int) {
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t row_end = std::min(width, (tile + 1) * kTile);
      for (int64_t left = 0; left < row_end; left += kTile) {
        for (int64_t row = tile * kTile; row < row_end; ++row) {
          const int64_t end = std::min(row, left + kTile);
          for (int64_t column = left; column < end; ++column)
            matrix[row * width + column] = matrix[column * width + row];
        }
      }
    }
  });
}

std::vector<float> diagonal_of(const OpContext& context, const float* matrix, int64_t width) {
  std::vector<float> diagonal(static_cast<size_t>(width));
  if constexpr (kHasCuda) {
    if (context.gpu) {
      const size_t bytes = diagonal.size() * sizeof(float);
      const Scratch there = context.workspace->take(bytes);
      gpu_diagonal(matrix, width, there.as<float>(), context.gpu->stream());
      context.gpu->copy_out(diagonal.data(), there.as<void>(), bytes);
      return diagonal;
    }
  }
  for (int64_t i = 0; i < width; ++i) diagonal[static_cast<size_t>(i)] = matrix[i * (width + 1)];
  return diagonal;
}

void permute_gram(const OpContext& context, const PermuteGramArgs& args) {
  if constexpr (kHasCuda) {
    if (context.gpu) return gpu_permute_gram(args, context.gpu->stream());
  }
  split_work(context, args.rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const float* source = args.h + args.order[args.first + i] * args.width;
      float* to = args.to + i * args.width;
      for (int64_t column = 0; column < args.width; ++column) to[column] = source[args.order[column]];
      to[args.first + i] = args.diagonal[args.first + i];
    }
  });
}

void permuted_gram_band(const OpContext& context, const PermuteGramArgs& args, float* band) {
  LOWBIT_ASSERT(context.gpu);
  if constexpr (kHasCuda) gpu_permuted_gram_band(args, kGramBand, band, context.gpu->stream());
}

void gram_accumulate(const OpContext& context, ConstActivations rows, int64_t tokens, int64_t width,
                     float* h) {
  if (tokens <= 0 || width <= 0) return;
  if constexpr (kHasCuda) {
    if (context.gpu) return gram_accumulate_on_gpu(context, rows, tokens, width, h);
  }
  const float* const x = floats(rows);
  const GemmArgs wanted{nullptr, nullptr, h, width, width, width, tokens, tokens, false, true};
  const auto& kernel = choose_kernel<GemmArgs>(context, "gram", kTable, wanted);
  const bool in_tiles = kernel.isa == Isa::kAmxBf16;
  const int64_t piece = std::min(tokens, in_tiles ? kGramAmxDepth : kGemmDepth);
  const int64_t panels = round_up(width, 32) / 32, tile = tile_for(context, width);
  const size_t tiles_bytes = static_cast<size_t>(panels * gram_amx_panel_bytes(piece));
  const OpScratch a(context, in_tiles ? tiles_bytes : packed_a_bytes<float>(width, piece));
  const OpScratch b(context, in_tiles ? tiles_bytes : packed_b_bytes<float>(width, piece));
  for (int64_t first = 0; first < tokens; first += piece) {
    const int64_t count = std::min(piece, tokens - first);
    GemmArgs args{a.as<float>(), b.as<float>(), h, width, width, width, count, count, false, true};
    args.tile = tile;
    if (in_tiles) {
      split_work(context, panels, chunk_for(32 * count, 1 << 15), [&](int64_t begin, int64_t end, int) {
        gram_amx_pack(x + first * width, count, width, a.as<void>(), b.as<void>(), begin, end);
      });
      const int64_t tiles = round_up(width, tile) / tile;
      run_kernel(context, kernel, args, tiles * tiles, 1, static_cast<size_t>(tile * tile) * sizeof(float));
      continue;
    }
    pack_a(context, x + first * width, 1, width, width, count, a.as<float>());
    pack_b(context, x + first * width, width, width, count, b.as<float>());
    run_kernel(context, kernel, args, gemm_tiles<float>(width, width), 1);
  }
}

std::vector<KernelListing> gram_kernels() {
  std::vector<KernelListing> list;
  append_listing<GemmArgs>(list, "gram", kTable);
  return list;
}

}  // namespace lowbit
