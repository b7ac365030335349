// h += x^T x with x rounded to BF16: products are exact, sums FP32 in tiles, at most kGemmDepth tokens before
// they are added to h. Both factors are packed by panels of 32 columns; a panel holds, for each 32 tokens,
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

// The 32 x 32 block of h at (row, column), row <= column, both multiples of 32.
inline void multiply_block(const GemmArgs& args, int64_t row, int64_t column, int64_t steps, float* sums) {
  const char* a = static_cast<const char*>(args.a) + row / kPanel * steps * 2 * kTileBytes;
  const char* b = static_cast<const char*>(args.b) + column / kPanel * steps * 2 * kTileBytes;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < steps; ++step, a += 2 * kTileBytes, b += 2 * kTileBytes) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    _tile_loadd(7, b + kTileBytes, 64);
    _tile_loadd(5, a + kTileBytes, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, 128);
  _tile_stored(1, sums + 16, 128);
  _tile_stored(2, sums + 16 * 32, 128);
  _tile_stored(3, sums + 16 * 32 + 16, 128);
  float* c = static_cast<float*>(args.c) + row * args.c_stride + column;
  const int64_t rows = args.rows - row < 32 ? args.rows - row : 32;
  const int64_t columns = args.columns - column < 32 ? args.columns - column : 32;
  for (int64_t r = 0; r < rows; ++r, c += args.c_stride) {
    if (row == column || columns < 32) {
      for (int64_t j = row == column ? r : 0; j < columns; ++j) c[j] += sums[r * 32 + j];
      continue;
    }
    for (int64_t j = 0; j < 32; j += 16) {
      _mm512_storeu_ps(c + j, _mm512_add_ps(_mm512_loadu_ps(c + j), _mm512_loadu_ps(sums + r * 32 + j)));
    }
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

void gram_amx_bf16(const GemmArgs& args, int64_t begin, int64_t end, void*) noexcept {
  const int64_t steps = (args.depth + 31) / 32, size = gram_tile(args.columns);
  const int64_t column_tiles = (args.columns + size - 1) / size;
  alignas(64) float sums[32 * 32];
  _tile_loadconfig(&kTiles);
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first_row = tile / column_tiles * size, first_column = tile % column_tiles * size;
    for (int64_t row = first_row; row < args.rows && row < first_row + size; row += 32) {
      for (int64_t column = row > first_column ? row : first_column;
           column < args.columns && column < first_column + size; column += 32) {
        multiply_block(args, row, column, steps, sums);
      }
    }
  }
  _tile_release();
}

}  // namespace lowbit
