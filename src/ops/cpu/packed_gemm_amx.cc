// c -= a^T b with both factors split into two BF16 numbers each: x = high + low up to 2^-17 of x. Three
// products of tiles stand for one of FP32; low times low, below that, is left out. Sums are FP32.
// A panel is 32 columns of a factor; it holds for each 32 rows (a step, the depth of a product) four tiles of
// 1 KiB: high and low of its first 16 columns, then of the others. For b a row of a tile is two rows of the
// factor side by side, [16 columns][2]; for a it is one column, [32 rows]: the transpose in 32-bit elements.
#include "ops/gemm_args.h"

#include <immintrin.h>

namespace lowbit {
namespace {
// In this order.
// clang-format off
#include "ops/cpu/amx.inc"
// clang-format on

constexpr int64_t kTileBytes = 1024, kStepBytes = 4 * kTileBytes;

// Row d - lead of x, zeros outside [0, depth).
inline __m512 load_row(const float* x, int64_t stride, int64_t depth, int64_t row, __mmask16 mask) {
  if (row < 0 || row >= depth) return _mm512_setzero_ps();
  return _mm512_maskz_loadu_ps(mask, x + row * stride);
}

inline __m512 low_part(__m512 x) {
  const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16_row(x)), 16);
  return _mm512_sub_ps(x, _mm512_castsi512_ps(high));
}

inline void store_tile(const __m512i (&rows)[16], bool as_a, char* to) {
  __m512i tile[16];
  for (int i = 0; i < 16; ++i) tile[i] = rows[i];
  if (as_a) transpose16(tile);
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * 64, tile[i]);
}

// sums [32][32] = panels a and b over `steps`.
inline void multiply_panels(const char* a, const char* b, int64_t steps, float* sums) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < steps; ++step, a += kStepBytes, b += kStepBytes) {
    _tile_loadd(4, a, 64);
    _tile_loadd(5, a + 2 * kTileBytes, 64);
    _tile_loadd(6, b + kTileBytes, 64);
    _tile_loadd(7, b + 3 * kTileBytes, 64);
    multiply_two_by_two();  // high low
    _tile_loadd(6, b, 64);
    _tile_loadd(7, b + 2 * kTileBytes, 64);
    multiply_two_by_two();  // high high
    _tile_loadd(4, a + kTileBytes, 64);
    _tile_loadd(5, a + 3 * kTileBytes, 64);
    multiply_two_by_two();  // low high
  }
  _tile_stored(0, sums, 128);
  _tile_stored(1, sums + 16, 128);
  _tile_stored(2, sums + 16 * 32, 128);
  _tile_stored(3, sums + 16 * 32 + 16, 128);
  memory_barrier();
}

}  // namespace

void pack_split_amx(const float* x, int64_t stride, int64_t depth, int64_t columns, bool as_a, char* to,
                    int64_t lead) noexcept {
  for (int64_t step = -lead; step < depth; step += 32) {
    for (int64_t half = 0; half < 2; ++half, to += 2 * kTileBytes) {
      const int64_t have = columns - half * 16;
      const __mmask16 mask = static_cast<__mmask16>(have >= 16 ? 0xffff : have > 0 ? (1 << have) - 1 : 0);
      const float* from = x + (have > 0 ? half * 16 : 0);
      __m512i high[16], low[16];
      for (int i = 0; i < 16; ++i) {
        const __m512 first = load_row(from, stride, depth, step + 2 * i, mask);
        const __m512 second = load_row(from, stride, depth, step + 2 * i + 1, mask);
        high[i] = bf16_pairs(first, second);
        low[i] = bf16_pairs(low_part(first), low_part(second));
      }
      store_tile(high, as_a, to);
      store_tile(low, as_a, to + kTileBytes);
    }
  }
}

void packed_gemm_amx(const GemmArgs& args, int64_t begin, int64_t end, void*) noexcept {
  const int64_t steps = args.depth / 32, a_panel = split_panel_bytes(args.a_depth);
  alignas(64) float sums[32 * 32];
  _tile_loadconfig(&kTiles);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t rows = args.rows - block * 32 < 32 ? args.rows - block * 32 : 32;
    for (int64_t column = 0; column < args.columns; column += 32) {
      multiply_panels(static_cast<const char*>(args.a) + block * a_panel,
                      static_cast<const char*>(args.b) + column / 32 * split_panel_bytes(args.depth), steps,
                      sums);
      float* c = static_cast<float*>(args.c) + block * 32 * args.c_stride + column;
      const int64_t columns = args.columns - column < 32 ? args.columns - column : 32;
      for (int64_t r = 0; r < rows; ++r, c += args.c_stride) {
        for (int64_t j = 0; j < columns; j += 16) {
          const __mmask16 mask =
              static_cast<__mmask16>(columns - j >= 16 ? 0xffff : (1 << (columns - j)) - 1);
          const __m512 old = _mm512_maskz_loadu_ps(mask, c + j);
          _mm512_mask_storeu_ps(c + j, mask, _mm512_sub_ps(old, _mm512_load_ps(sums + r * 32 + j)));
        }
      }
    }
  }
  _tile_release();
}

}  // namespace lowbit
