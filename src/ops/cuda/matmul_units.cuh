// What the kernels that stream weights for few rows of x share: how a warp brings a unit of a tile to shared
// memory, makes operands of it, and multiplies.
#pragma once

#include "ops/cuda/device.cuh"
#include "ops/cuda/fragments.h"

namespace lowbit {
namespace {

// The inputs are cut into units of 128 (of 64 where the weight is BF16) that warps take. Weights come through
// a ring of units in shared memory, one for each warp, which runs ahead of the arithmetic.
constexpr int kMostWarps = 16;
constexpr int unit_inputs(int bits) { return bits == 16 ? 64 : 128; }

// Groups of 128 inputs; of 32; of 64, and codes that point into a table; of 64, and codes that are floats.
enum class Codes { kWide, kFine, kTable, kFloats };

// How the kernels differ. kRowBlocks: of eight rows of x. kShared:
// x comes through shared memory (prepare_x), otherwise straight from where it is. kOneRow: there is only one
// row.
template <int kBits_, Codes kCodes_, int kTiles_, int kRowBlocks_, bool kShared_, bool kOneRow_ = false>
struct Kind {
  static constexpr int kBits = kBits_, kTiles = kTiles_, kRowBlocks = kRowBlocks_;
  static constexpr bool kFine = kCodes_ == Codes::kFine, kTable = kCodes_ == Codes::kTable;
  static constexpr bool kFloats = kCodes_ == Codes::kFloats, kValues = kTable || kFloats;  // no zero points
  static constexpr bool kShared = kShared_, kOneRow = kOneRow_;
  // Codes of 4 bits have 128 added to them, which the sums of x take off again.
  static constexpr bool kSums = kBits == 4 && !kTable;

  static constexpr int kInputs = unit_inputs(kBits), kBlocks = kInputs / kBlockInputs;
  static constexpr int kLoads = kBlocks * kBits / 8;  // of 16 bytes that a thread does for a tile's unit
  static constexpr int kGroupBlocks = kFine ? 1 : kValues ? kTableGroup / kBlockInputs : kBlocks;
  static constexpr int kGroups = kBits == 16 ? 0 : kBlocks / kGroupBlocks;
  static constexpr int kGroupWords = kValues ? 1 : 2;  // of a group and thread: scales; zeros
  static constexpr int kUnitBytes =
      (kLoads * 16 + kGroups * kGroupWords * 4) * 32;  // of a tile: pieces; scales and zeros by group
  // Units that are on their way while one is worked on, about 5 KB for each warp; less beside a table.
  static constexpr int kAhead = kOneRow      ? (kTable && kTiles > 1 ? 2 : (kBits == 4 ? 6 : 4) / kTiles)
                                : kBits == 8 ? (kTiles > 1 ? 2 : 3)
                                             : 4 / kTiles;
  static constexpr int kGroupTiles = kTiles;  // of a block, which makes them at once
};

// With SwiGLU a block has the same tiles of two matrices: so many of each.
template <class K>
constexpr int kPairs = K::kGroupTiles > 1 ? K::kGroupTiles / 2 : 1;

// Where a thread reads what comes next of a tile.
struct Tile {
  const char *codes, *codes8;  // codes8: BF16 only, of row g + 8
  const char *scales, *zeros;  // of rows g and g + 8, 4 bytes; those of the next group stand 32 bytes behind
};

// What a thread has of a tile's unit.
template <class K>
struct Loaded {
  uint4 data[K::kLoads];
  uint32_t scale[K::kGroups + 1], zeros[K::kGroups + 1];
};

// A thread copies what it will read itself, so that no barrier is needed. room: the warp's for this tile's
// unit.
template <class K>
__device__ inline void fetch_unit(const Tile& tile, char* room, bool has_zeros, int unit, int in) {
  const int lane = threadIdx.x % 32;
  char* const pieces = room + lane * 16;
  if constexpr (K::kBits == 16) {
#pragma unroll
    for (int block = 0; block < K::kBlocks; ++block) {
      const bool is_there = unit * K::kInputs + block * kBlockInputs + 8 * (lane % 4) < in;
      copy_16(pieces + 2 * block * 512, is_there ? tile.codes + block * 64 : tile.codes, is_there);
      copy_16(pieces + (2 * block + 1) * 512, is_there ? tile.codes8 + block * 64 : tile.codes8, is_there);
    }
  } else {
#pragma unroll
    for (int i = 0; i < K::kLoads; ++i) copy_16(pieces + i * 512, tile.codes + i * 512);
    char* const words = room + K::kLoads * 512 + lane * 4;
#pragma unroll
    for (int i = 0; i < K::kGroups; ++i) {
      copy_4(words + K::kGroupWords * i * 128, tile.scales + i * 32);
      if (!K::kValues && has_zeros) copy_4(words + (2 * i + 1) * 128, tile.zeros + i * 32);
    }
  }
}

template <class K>
__device__ inline void read_unit(const char* room, bool has_zeros, uint32_t middle, Loaded<K>& to) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < K::kLoads; ++i)
    to.data[i] = *reinterpret_cast<const uint4*>(room + lane * 16 + i * 512);
  const char* const words = room + K::kLoads * 512 + lane * 4;
#pragma unroll
  for (int i = 0; i < K::kGroups; ++i) {
    to.scale[i] = *reinterpret_cast<const uint32_t*>(words + K::kGroupWords * i * 128);
    to.zeros[i] = middle;
    if (!K::kValues && has_zeros) to.zeros[i] = *reinterpret_cast<const uint32_t*>(words + (2 * i + 1) * 128);
  }
}

__device__ inline uint32_t word_of(const uint4& data, int i) {
  return i == 0 ? data.x : i == 1 ? data.y : i == 2 ? data.z : data.w;
}

// Two floats that BF16 holds exactly.
__device__ inline uint32_t upper_halves(float first, float second) {
  return __byte_perm(__float_as_uint(first), __float_as_uint(second), 0x7632);
}

// Of four bytes of two words, their signs in all of their bits; the selector's highest bits ask for signs.
// (__byte_perm is free to ignore them.)
template <uint32_t kSelector>
__device__ inline uint32_t signs_of_bytes(uint32_t first, uint32_t second) {
  uint32_t signs;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(signs) : "r"(first), "r"(second), "n"(kSelector));
  return signs;
}

// The table's values of the codes in a word: of all four pairs. Each byte of a value is looked up of its own,
// in the lower and in the upper half of the table.
__device__ inline void look_up(uint32_t word, const CodeTable& table, uint32_t (&pairs)[4]) {
  const uint32_t index = word & 0x77777777u, even = word << 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t four = half == 0 ? index : index >> 16;
    const uint32_t is_above =
        half == 0 ? signs_of_bytes<0xd9c8>(even, word) : signs_of_bytes<0xfbea>(even, word);
    auto chosen = [&](const uint32_t(&bytes)[4]) {
      const uint32_t below = __byte_perm(bytes[0], bytes[1], four),
                     above = __byte_perm(bytes[2], bytes[3], four);
      return (above & is_above) | (below & ~is_above);
    };
    const uint32_t lower = chosen(table.lower), upper = chosen(table.upper);
    pairs[2 * half] = __byte_perm(lower, upper, 0x5140);
    pairs[2 * half + 1] = __byte_perm(lower, upper, 0x7362);
  }
}

// The values of all 256 pairs of codes in shared memory, as often as there are lanes: each reads from a bank
// of its own, while the table in registers keeps the integer units busy with 21 instructions a word.
struct PairTable {
  static constexpr int kBytes = 256 * 128;
  const char* pairs;

  // By all threads of a block.
  static __device__ void fill(char* pairs, const CodeTable& table) {
    for (int pair = static_cast<int>(threadIdx.x); pair < 256; pair += static_cast<int>(blockDim.x)) {
      auto value = [&](int code) {
        const int place = code % 4 * 8;
        return (table.lower[code / 4] >> place & 0xffu) | (table.upper[code / 4] >> place & 0xffu) << 8;
      };
      const uint32_t both = value(pair % 16) | value(pair / 16) << 16;
#pragma unroll
      for (int i = 0; i < 8; ++i)
        *reinterpret_cast<uint4*>(pairs + pair * 128 + (pair + i) % 8 * 16) = {both, both, both, both};
    }
  }
};
__device__ inline void look_up(uint32_t word, const PairTable& table, uint32_t (&pairs)[4]) {
  const uint32_t column = static_cast<uint32_t>(__cvta_generic_to_shared(table.pairs)) + threadIdx.x % 32 * 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    // Byte i times 128, and the lane's column, in one instruction.
    const uint32_t place = __dp4a(word, 128u << (8 * i), column);
    pairs[i] = *static_cast<const uint32_t*>(__cvta_shared_to_generic(place));
  }
}

// Codes of 8 bits that are floats, of pair i: the upper bytes of two BF16 whose exponents are too short, so
// that what follows the sign goes down and the value by a factor up. CodeTable: as float_codes says.
__device__ inline uint32_t floats_of(uint32_t first, uint32_t second, int i, const CodeTable& table) {
  const uint32_t bytes = __byte_perm(first, second, static_cast<uint32_t>(i) * 0x1010u + 0x4000u);
  const uint32_t bits = (bytes & 0x80008000u) | (bytes & 0x7f007f00u) >> table.lower[0];
  __nv_bfloat162 values, factor;
  memcpy(&values, &bits, 4);
  memcpy(&factor, &table.upper[0], 4);
  values = __hmul2(values, factor);
  uint32_t pair;
  memcpy(&pair, &values, 4);
  return pair;
}

// The operand of step `step` (0 to 2 * kBlocks - 1). A table's: its values. 4 bits: 128 + code, which is
// 0x4300 | code in BF16; the 128 and the zero point are taken off the sums. 8 bits: code - zero point: 2^23 +
// code is 0x4b000000 | code in F32.
template <class K>
__device__ inline Operand operand(const uint4 (&data)[K::kLoads], int step, float zero, float zero8,
                                  const CodeTable& table) {
  if constexpr (K::kBits == 16) {
    const uint4 &row = data[step / 2 * 2], &row8 = data[step / 2 * 2 + 1];
    const int half = step % 2 * 2;
    return {{word_of(row, half), word_of(row8, half), word_of(row, half + 1), word_of(row8, half + 1)}};
  } else if constexpr (K::kTable) {
    Operand a;
    look_up(word_of(data[step / 4], step % 4), table, a.pair);
    return a;
  } else if constexpr (K::kBits == 4) {
    Operand a;
    const uint32_t word = word_of(data[step / 4], step % 4);
#pragma unroll
    for (int i = 0; i < 4; ++i)  // (word >> 4 i & 0x000f000f) | 0x43004300, which the compiler makes two of
      asm("lop3.b32 %0, %1, 0x000f000f, %2, 0xea;"
          : "=r"(a.pair[i])
          : "r"(word >> (4 * i)), "r"(0x43004300u));
    return a;
  } else if constexpr (K::kFloats) {
    Operand a;
    const uint4& some = data[step / 2];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      a.pair[i] = floats_of(word_of(some, step % 2 * 2), word_of(some, step % 2 * 2 + 1), i, table);
    return a;
  } else {
    Operand a;
    const uint4& some = data[step / 2];
    const uint32_t first = word_of(some, step % 2 * 2), second = word_of(some, step % 2 * 2 + 1);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float middle = i % 2 ? zero8 : zero;
      const uint32_t selector = 0x7440u | static_cast<uint32_t>(i);  // byte i below the bytes 0, 0, 0x4b
      a.pair[i] = upper_halves(__uint_as_float(__byte_perm(first, 0x4b000000u, selector)) - middle,
                               __uint_as_float(__byte_perm(second, 0x4b000000u, selector)) - middle);
    }
    return a;
  }
}

// total += scale * (sum less what was added to the codes of 4 bits).
template <class K>
__device__ inline void fold(float (&total)[4], const float (&sum)[4], const float (&x_sum)[2],
                            uint32_t scale_bits, uint32_t zeros) {
  const float scale = __half2float(__ushort_as_half(static_cast<uint16_t>(scale_bits)));
  const float scale8 = __half2float(__ushort_as_half(static_cast<uint16_t>(scale_bits >> 16)));
#pragma unroll
  for (int j = 0; j < 4; j += K::kOneRow ? 2 : 1) {
    float value = sum[j];
    if constexpr (K::kSums) {
      value = fmaf(-static_cast<float>(128 + (j < 2 ? zeros & 0xffffu : zeros >> 16)), x_sum[j % 2], value);
    }
    total[j] = fmaf(j < 2 ? scale : scale8, value, total[j]);
  }
}

// A thread's part of x for a unit. sums: of columns 2 c and 2 c + 1 of the operand, over each group.
template <class K>
struct X {
  uint4 data[K::kRowBlocks][K::kBlocks];
  float sums[K::kRowBlocks][K::kGroups + 1][2];
};

template <class K>
__device__ inline void multiply_unit(const Loaded<K> (&now)[K::kTiles], const X<K>& x, const CodeTable& table,
                                     float (&total)[K::kTiles][K::kRowBlocks][4]) {
  constexpr int kGroupSteps = 2 * K::kGroupBlocks;
#pragma unroll
  for (int group = 0; group < 2 * K::kBlocks / kGroupSteps; ++group) {
    float sum[K::kTiles][K::kRowBlocks][4] = {};
#pragma unroll
    for (int step = group * kGroupSteps; step < (group + 1) * kGroupSteps; ++step) {
#pragma unroll
      for (int t = 0; t < K::kTiles; ++t) {
        const uint32_t zeros = now[t].zeros[group];
        const Operand a = operand<K>(now[t].data, step, 8388608.0f + static_cast<float>(zeros & 0xffffu),
                                     8388608.0f + static_cast<float>(zeros >> 16), table);
#pragma unroll
        for (int b = 0; b < K::kRowBlocks; ++b) {
          const uint4& some = x.data[b][step / 2];
          multiply_add(K::kBits == 16 ? total[t][b] : sum[t][b], a, step % 2 ? some.z : some.x,
                       step % 2 ? some.w : some.y);
        }
      }
    }
    if constexpr (K::kBits != 16) {
#pragma unroll
      for (int t = 0; t < K::kTiles; ++t) {
#pragma unroll
        for (int b = 0; b < K::kRowBlocks; ++b)
          fold<K>(total[t][b], sum[t][b], x.sums[b][group], now[t].scale[group], now[t].zeros[group]);
      }
    }
  }
}

// Sums of x are taken in this order wherever they are taken: four neighbours, then pairs of such fours, and
// pairs of those.
__device__ inline float sum_of_four(uint32_t first, uint32_t second) {
  return low_bf16(first) + high_bf16(first) + low_bf16(second) + high_bf16(second);
}
__device__ inline float sum_of_eight(const uint4& x) { return sum_of_four(x.x, x.y) + sum_of_four(x.z, x.w); }
__device__ inline float with_neighbour(float sum, int distance) {
  return sum + __shfl_xor_sync(0xffffffffu, sum, distance);
}

// The trees of several sums at once, over so many lanes.
template <int kLanes, int kCount>
__device__ inline void add_up(float (&sums)[kCount]) {
#pragma unroll
  for (int distance = 1; distance < kLanes; distance *= 2) {
#pragma unroll
    for (int p = 0; p < kCount; ++p) sums[p] = with_neighbour(sums[p], distance);
  }
}

}  // namespace
}  // namespace lowbit
