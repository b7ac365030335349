#include "ops/gemm_args.h"

#include <algorithm>

namespace lowbit {
namespace {

template <class T>
void multiply(const GemmArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t kColumns = kGemmPanelColumns * 4 / static_cast<int64_t>(sizeof(T));
  constexpr int64_t kTile = kGemmTileColumns * 4 / static_cast<int64_t>(sizeof(T));
  const int64_t column_tiles = (args.columns + kTile - 1) / kTile;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first_row = tile / column_tiles * kGemmTileRows, first_column = tile % column_tiles * kTile;
    for (int64_t row = first_row; row < std::min(args.rows, first_row + kGemmTileRows); ++row) {
      const T* a = static_cast<const T*>(args.a) + row / kGemmPanelRows * args.a_depth * kGemmPanelRows +
                   row % kGemmPanelRows;
      for (int64_t column = first_column; column < std::min(args.columns, first_column + kTile); ++column) {
        if (args.only_upper && row > column) continue;
        const T* b =
            static_cast<const T*>(args.b) + column / kColumns * args.depth * kColumns + column % kColumns;
        T sum = 0;
        for (int64_t d = 0; d < args.depth; ++d) sum += a[d * kGemmPanelRows] * b[d * kColumns];
        T& c = static_cast<T*>(args.c)[row * args.c_stride + column];
        c = args.subtract ? c - sum : c + sum;
      }
    }
  }
}

}  // namespace

void gemm_ref(const GemmArgs& args, int64_t begin, int64_t end, void*) noexcept {
  multiply<float>(args, begin, end);
}
void gemm_double_ref(const GemmArgs& args, int64_t begin, int64_t end, void*) noexcept {
  multiply<double>(args, begin, end);
}

}  // namespace lowbit
