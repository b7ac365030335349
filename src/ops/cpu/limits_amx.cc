#include "ops/cpu/limits_kernels.h"

#include <immintrin.h>

namespace lowbit {

namespace {
#include "ops/cpu/amx.inc"

// Four sums and two operands each, as in a block of 2 x 2 tiles; all tiles stay where they are.
constexpr double kTileProducts = 4.0;

void zero_tiles() {
  _tile_loadconfig(&kTiles);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
}

void keep_tile(float* sink) {
  alignas(64) static thread_local float tile[256];
  _tile_stored(0, tile, 64);
  memory_barrier();
  *sink = tile[0];
  _tile_release();
}

}  // namespace

double multiply_tiles_bf16_amx(int64_t rounds, float* sink) noexcept {
  zero_tiles();
  for (int64_t round = 0; round < rounds; ++round) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  keep_tile(sink);
  return kTileProducts * 2 * 16 * 16 * 32;
}

double multiply_tiles_int8_amx(int64_t rounds, float* sink) noexcept {
  zero_tiles();
  for (int64_t round = 0; round < rounds; ++round) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  keep_tile(sink);
  return kTileProducts * 2 * 16 * 16 * 64;
}

}  // namespace lowbit
