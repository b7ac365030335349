// Codes to the first operand of wgmma: a thread's weights of a step, scale * (code - zero_point) or scale *
// value as BF16, in registers. K: kBits; kTable, kFloats, kValues as in matmul_units.cuh.
//
// Products read their registers until the wait, which the assembler does not always know. Operands are
// therefore written under a condition that only the machine knows to be true (`is_ready`): what was there
// before stays alive until then, and nothing else gets its registers.
#pragma once

#include "ops/cuda/device.cuh"
#include "ops/cuda/matmul_units.cuh"

#include <cstdint>

namespace lowbit {
namespace {

// BF16 pairs are words here, too.
__device__ inline __nv_bfloat162 as_pair(uint32_t bits) {
  __nv_bfloat162 pair;
  memcpy(&pair, &bits, 4);
  return pair;
}
__device__ inline uint32_t as_word(__nv_bfloat162 pair) {
  uint32_t bits;
  memcpy(&bits, &pair, 4);
  return bits;
}

// The scale of a row in a group and what codes lose for its zero point. F16 has three bits more than BF16:
// the scale is a sum of two BF16, and with codes that BF16 holds exactly so is the rounded product
// (round(code * upper + code * lower), the last product being exact).
struct RowGrid {
  uint32_t upper, lower;     // twice each
  uint32_t offset;           // 4 bits: of codes plus 128, in BF16, twice
  float scale, wide_offset;  // 8 bits: of codes plus 2^23
};
template <class K>
__device__ inline RowGrid grid_of(float scale, uint32_t zero) {
  RowGrid grid = {};
  grid.scale = scale;
  if constexpr (K::kBits == 8 && !K::kFloats) {
    grid.wide_offset = 8388608.0f + static_cast<float>(zero);
  } else {
    grid.upper = bf16_pair(scale, scale);
    const float lower = scale - low_bf16(grid.upper);
    grid.lower = bf16_pair(lower, lower);
    if constexpr (!K::kValues) grid.offset = 0x43004300u | zero | zero << 16;
  }
  return grid;
}

// values * scale, rounded, to an operand. is_ready: not 0.
__device__ inline void set_scaled(uint32_t& to, uint32_t values, const RowGrid& grid, uint32_t is_ready) {
  const uint32_t rest = as_word(__hmul2(as_pair(values), as_pair(grid.lower)));
  asm volatile("{ .reg .pred ready; setp.ne.b32 ready, %4, 0; @ready fma.rn.bf16x2 %0, %1, %2, %3; }"
               : "+r"(to)
               : "r"(values), "r"(grid.upper), "r"(rest), "r"(is_ready));
}
__device__ inline void set_pair(uint32_t& to, float first, float second, uint32_t is_ready) {
  asm volatile("{ .reg .pred ready; setp.ne.b32 ready, %3, 0; @ready cvt.rn.bf16x2.f32 %0, %2, %1; }"
               : "+r"(to)
               : "f"(first), "f"(second), "r"(is_ready));
}

// The weights of a step. word, other: its codes, of 8 bits first and second elements.
template <class K>
__device__ inline void make_operand(uint32_t word, uint32_t other, const RowGrid (&grids)[2],
                                    const PairTable& table, const CodeTable& floats, uint32_t is_ready,
                                    Operand& to) {
  uint32_t pairs[4] = {};
  if constexpr (K::kTable) look_up(word, table, pairs);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const RowGrid& grid = grids[i % 2];
    if constexpr (K::kBits == 8 && !K::kFloats) {
      const uint32_t place = 0x7440u + i;
      const float first = __uint_as_float(__byte_perm(word, 0x4b000000u, place)) - grid.wide_offset,
                  second = __uint_as_float(__byte_perm(other, 0x4b000000u, place)) - grid.wide_offset;
      set_pair(to.pair[i], first * grid.scale, second * grid.scale, is_ready);
      continue;
    }
    if constexpr (K::kFloats) pairs[i] = floats_of(word, other, i, floats);
    if constexpr (!K::kValues) {
      uint32_t codes;
      asm("lop3.b32 %0, %1, 0x000f000f, %2, 0xea;" : "=r"(codes) : "r"(word >> (4 * i)), "r"(0x43004300u));
      pairs[i] = as_word(__hsub2(as_pair(codes), as_pair(grid.offset)));
    }
    set_scaled(to.pair[i], pairs[i], grid, is_ready);
  }
}

}  // namespace
}  // namespace lowbit
