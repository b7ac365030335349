// h += x^T x with x rounded to BF16: products are exact, sums FP32 in tiles, at most kGramAmxDepth tokens
// before they are added to h, which costs as much memory traffic as half a thousand tokens do work. Both
// factors are packed by panels of 32 columns; a panel holds, for each 32 tokens,
// two tiles of 1 KiB:
//   a, tile of columns c ... c + 15: row i = column c + i, its 32 tokens as 16 pairs
//   b, tile of columns c ... c + 15: row i = tokens 2 i and 2 i + 1 side by side, for 16 columns
// so a tile of a is that of b with its 32-bit elements transposed.
#include "ops/gemm_args.h"

#include <immintrin.h>

namespace lowbit {
namespace {
// In this order.
// clang-format off
#include "ops/cpu/amx.inc"
// clang-format on

constexpr int64_t kPanel = 32, kTileBytes = 1024;

inline __m512 load_columns(const float* x, int64_t tokens, int64_t width, int64_t token, int64_t column) {
  if (token >= tokens || column >= width) return _mm512_setzero_ps();
  const int64_t count = width - column;
  const __mmask16 mask = static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << count) - 1);
  return _mm512_maskz_loadu_ps(mask, x + token * width + column);
}

constexpr int64_t kSlice = 16;  // steps whose 32 columns of a stay in L1

// sums (+)= the 32 x 32 block at panels `row` and `column`, over steps [first, last).
inline void multiply_block(const GemmArgs& args, int64_t row, int64_t column, int64_t steps, int64_t first,
                           int64_t last, float* sums, int64_t stride) {
  const char* a = static_cast<const char*>(args.a) + (row * steps + first) * 2 * kTileBytes;
  const char* b = static_cast<const char*>(args.b) + (column * steps + first) * 2 * kTileBytes;
  float* below = sums + 16 * stride;
  if (first == 0) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, stride * 4);
    _tile_loadd(1, sums + 16, stride * 4);
    _tile_loadd(2, below, stride * 4);
    _tile_loadd(3, below + 16, stride * 4);
  }
  for (int64_t step = first; step < last; ++step, a += 2 * kTileBytes, b += 2 * kTileBytes) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    _tile_loadd(7, b + kTileBytes, 64);
    _tile_loadd(5, a + kTileBytes, 64);
    multiply_two_by_two();
  }
  _tile_stored(0, sums, stride * 4);
  _tile_stored(1, sums + 16, stride * 4);
  _tile_stored(2, below, stride * 4);
  _tile_stored(3, below + 16, stride * 4);
}

// The rows x columns part of h that begins at (row, column) += sums, on and above the diagonal.
inline void add_upper(const GemmArgs& args, int64_t row, int64_t column, int64_t rows, int64_t columns,
                      const float* sums, int64_t stride) {
  float* h = static_cast<float*>(args.c) + row * args.c_stride + column;
  for (int64_t r = 0; r < rows; ++r, h += args.c_stride, sums += stride) {
    int64_t j = row + r > column ? row + r - column : 0;
    for (; j < columns && (j % 16 != 0 || columns - j < 16); ++j) h[j] += sums[j];
    for (; j + 16 <= columns; j += 16) {
      _mm512_storeu_ps(h + j, _mm512_add_ps(_mm512_loadu_ps(h + j), _mm512_loadu_ps(sums + j)));
    }
    for (; j < columns; ++j) h[j] += sums[j];
  }
}
}  // namespace

void gram_amx_pack(const float* x, int64_t tokens, int64_t width, void* a, void* b, int64_t begin,
                   int64_t end) noexcept {
  const int64_t steps = (tokens + 31) / 32;
  for (int64_t panel = begin; panel < end; ++panel) {
    char* to_a = static_cast<char*>(a) + panel * steps * 2 * kTileBytes;
    char* to_b = static_cast<char*>(b) + panel * steps * 2 * kTileBytes;
    for (int64_t step = 0; step < steps; ++step) {
      for (int64_t half = 0; half < 2; ++half, to_a += kTileBytes, to_b += kTileBytes) {
        const int64_t column = panel * kPanel + half * 16;
        __m512i rows[16];
        for (int i = 0; i < 16; ++i) {
          const int64_t token = step * 32 + 2 * i;
          rows[i] = bf16_pairs(load_columns(x, tokens, width, token, column),
                               load_columns(x, tokens, width, token + 1, column));
          _mm512_storeu_si512(to_b + i * 64, rows[i]);
        }
        transpose16(rows);
        for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to_a + i * 64, rows[i]);
      }
    }
  }
}

void gram_amx_bf16(const GemmArgs& args, int64_t begin, int64_t end, void* scratch) noexcept {
  const int64_t steps = (args.depth + 31) / 32, size = args.tile;
  const int64_t column_tiles = (args.columns + size - 1) / size, panels = (args.columns + 31) / 32;
  float* sums = static_cast<float*>(scratch);
  _tile_loadconfig(&kTiles);
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first_row = tile / column_tiles * size, first_column = tile % column_tiles * size;
    if (first_row > first_column) continue;
    const int64_t row_panels = first_row / 32, column_panels = first_column / 32, most = size / 32;
    for (int64_t step = 0; step < steps; step += kSlice) {
      const int64_t last = steps < step + kSlice ? steps : step + kSlice;
      for (int64_t r = 0; r < most && row_panels + r < panels; ++r) {
        for (int64_t c = first_row == first_column ? r : 0; c < most && column_panels + c < panels; ++c) {
          multiply_block(args, row_panels + r, column_panels + c, steps, step, last,
                         sums + r * 32 * size + c * 32, size);
        }
      }
    }
    const int64_t rows = args.rows - first_row < size ? args.rows - first_row : size;
    const int64_t columns = args.columns - first_column < size ? args.columns - first_column : size;
    add_upper(args, first_row, first_column, rows, columns, sums, size);
  }
  _tile_release();
}

}  // namespace lowbit
