#include "ops/gemm.h"

#include "ops/cuda/libraries.h"
#include "ops/gemm_internal.h"
#include "ops/gram.h"

#include <cstring>

namespace lowbit {
namespace {

constexpr Kernel<GemmArgs> kTable[] = {
    {"avx512", Isa::kAvx512, nullptr, gemm_avx512},
    {"avx2", Isa::kAvx2, nullptr, gemm_avx2},
    {"ref", Isa::kRef, nullptr, gemm_ref},
};
constexpr Kernel<GemmArgs> kDoubleTable[] = {
    {"avx512", Isa::kAvx512, nullptr, gemm_double_avx512},
    {"avx2", Isa::kAvx2, nullptr, gemm_double_avx2},
    {"ref", Isa::kRef, nullptr, gemm_double_ref},
};

}  // namespace

template <class T>
void pack_a(const OpContext& context, const T* a, int64_t row_stride, int64_t depth_stride, int64_t rows,
            int64_t depth, T* out) {
  const int64_t panels = round_up(rows, kGemmTileRows) / kGemmPanelRows;
  split_work(
      context, panels, chunk_for(depth * kGemmPanelRows, 1 << 16), [&](int64_t begin, int64_t end, int) {
        for (int64_t panel = begin; panel < end; ++panel) {
          T* to = out + panel * depth * kGemmPanelRows;
          const int64_t first = panel * kGemmPanelRows,
                        have = std::clamp<int64_t>(rows - first, 0, kGemmPanelRows);
          const T* from = a + first * row_stride;
          if (have == kGemmPanelRows && row_stride == 1) {
            for (int64_t d = 0; d < depth; ++d) {
              std::memcpy(to + d * kGemmPanelRows, from + d * depth_stride, kGemmPanelRows * sizeof(T));
            }
          } else if (have == kGemmPanelRows) {
            for (int64_t d = 0; d < depth; ++d) {
              for (int64_t r = 0; r < kGemmPanelRows; ++r)
                to[d * kGemmPanelRows + r] = from[r * row_stride + d * depth_stride];
            }
          } else {
            std::fill(to, to + depth * kGemmPanelRows, T{0});
            for (int64_t d = 0; d < depth; ++d) {
              for (int64_t r = 0; r < have; ++r)
                to[d * kGemmPanelRows + r] = from[r * row_stride + d * depth_stride];
            }
          }
        }
      });
}

template <class T>
void pack_b(const OpContext& context, const T* b, int64_t stride, int64_t columns, int64_t depth, T* out) {
  constexpr int64_t kColumns = GemmPanels<T>::kColumns;
  const int64_t panels = round_up(columns, GemmPanels<T>::kTileColumns) / kColumns;
  split_work(context, panels, chunk_for(depth * kColumns, 1 << 16), [&](int64_t begin, int64_t end, int) {
    for (int64_t panel = begin; panel < end; ++panel) {
      T* to = out + panel * depth * kColumns;
      const int64_t first = panel * kColumns, have = std::clamp<int64_t>(columns - first, 0, kColumns);
      if (have == kColumns) {
        for (int64_t d = 0; d < depth; ++d)
          std::memcpy(to + d * kColumns, b + d * stride + first, kColumns * sizeof(T));
        continue;
      }
      std::fill(to, to + depth * kColumns, T{0});
      for (int64_t d = 0; d < depth && have > 0; ++d) {
        std::memcpy(to + d * kColumns, b + d * stride + first, static_cast<size_t>(have) * sizeof(T));
      }
    }
  });
}

template <class T>
void multiply_packed(const OpContext& context, const GemmArgs& args) {
  const int64_t tiles = gemm_tiles<T>(args.rows, args.columns);
  if constexpr (sizeof(T) == sizeof(float)) {
    run_kernel(context, choose_kernel<GemmArgs>(context, "gemm", kTable, args), args, tiles,
               gemm_chunk<T>(args));
  } else {
    run_kernel(context, choose_kernel<GemmArgs>(context, "gemm_double", kDoubleTable, args), args, tiles,
               gemm_chunk<T>(args));
  }
}

template void pack_a(const OpContext&, const float*, int64_t, int64_t, int64_t, int64_t, float*);
template void pack_a(const OpContext&, const double*, int64_t, int64_t, int64_t, int64_t, double*);
template void pack_b(const OpContext&, const float*, int64_t, int64_t, int64_t, float*);
template void pack_b(const OpContext&, const double*, int64_t, int64_t, int64_t, double*);
template void multiply_packed<float>(const OpContext&, const GemmArgs&);
template void multiply_packed<double>(const OpContext&, const GemmArgs&);

void gemm_subtract(const OpContext& context, const GemmOperands& operands) {
  const int64_t piece = std::min(operands.depth, kGemmDepth);
  if (piece <= 0 || operands.rows <= 0 || operands.columns <= 0) return;
  if constexpr (kHasCuda) {
    if (context.gpu) {
      return context.libraries->add_product({.dtype = DType::kF32,
                                             .a = operands.a,
                                             .b = operands.b,
                                             .c = operands.c,
                                             .a_stride = operands.a_stride,
                                             .b_stride = operands.b_stride,
                                             .c_stride = operands.c_stride,
                                             .rows = operands.rows,
                                             .columns = operands.columns,
                                             .depth = operands.depth,
                                             .scale = -1});
    }
  }
  const OpScratch a(context, packed_a_bytes<float>(operands.rows, piece));
  const OpScratch b(context, packed_b_bytes<float>(operands.columns, piece));
  for (int64_t first = 0; first < operands.depth; first += piece) {
    const int64_t depth = std::min(piece, operands.depth - first);
    pack_a(context, operands.a + first * operands.a_stride, 1, operands.a_stride, operands.rows, depth,
           a.as<float>());
    pack_b(context, operands.b + first * operands.b_stride, operands.b_stride, operands.columns, depth,
           b.as<float>());
    multiply_packed<float>(context, {a.as<float>(), b.as<float>(), operands.c, operands.c_stride,
                                     operands.rows, operands.columns, depth, depth, true, false});
  }
}

std::vector<KernelListing> gemm_kernels() {
  std::vector<KernelListing> list;
  append_listing<GemmArgs>(list, "gemm", kTable);
  append_listing<GemmArgs>(list, "gemm_double", kDoubleTable);
  return list;
}

}  // namespace lowbit
