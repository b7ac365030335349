// Packing and running of one product piece, shared by gemm.cc, gram.cc and inverse_cholesky.cc.
#pragma once

#include "ops/gemm_args.h"
#include "ops/parallel.h"

namespace lowbit {

template <class T>
struct GemmPanels {
  static constexpr int64_t kColumns = kGemmPanelColumns * 4 / static_cast<int64_t>(sizeof(T));
  static constexpr int64_t kTileColumns = kGemmTileColumns * 4 / static_cast<int64_t>(sizeof(T));
};

constexpr int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

template <class T>
size_t packed_a_bytes(int64_t rows, int64_t depth) {
  return static_cast<size_t>(round_up(rows, kGemmTileRows) * depth) * sizeof(T);
}
template <class T>
size_t packed_b_bytes(int64_t columns, int64_t depth) {
  return static_cast<size_t>(round_up(columns, GemmPanels<T>::kTileColumns) * depth) * sizeof(T);
}

template <class T>
int64_t gemm_tiles(int64_t rows, int64_t columns) {
  return round_up(rows, kGemmTileRows) / kGemmTileRows *
         (round_up(columns, GemmPanels<T>::kTileColumns) / GemmPanels<T>::kTileColumns);
}

// Element (r, d) of a lies at a[r * row_stride + d * depth_stride]; element (d, c) of b at b[d * stride + c].
template <class T>
void pack_a(const OpContext& context, const T* a, int64_t row_stride, int64_t depth_stride, int64_t rows,
            int64_t depth, T* out);
template <class T>
void pack_b(const OpContext& context, const T* b, int64_t stride, int64_t columns, int64_t depth, T* out);

// Tiles per chunk: a product of less than about 50 microseconds stays on the calling thread.
template <class T>
int64_t gemm_chunk(const GemmArgs& args) {
  return args.rows * args.columns * args.depth < (1 << 21) ? gemm_tiles<T>(args.rows, args.columns) : 1;
}

// The product of packed factors with the best kernel for T (args.a and args.b are T).
template <class T>
void multiply_packed(const OpContext& context, const GemmArgs& args);

}  // namespace lowbit
