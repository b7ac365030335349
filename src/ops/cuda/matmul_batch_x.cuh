// x of two to 32 rows as matmul_batch.cu has it in shared memory, its sums, and where what lies there.
#pragma once

#include "ops/cuda/cluster.cuh"
#include "ops/cuda/matmul_fetch.cuh"

namespace lowbit {
namespace {

template <int kBits_, bool kFine_, int kRowBlocks_, bool kMany_>
struct BatchKind : Kind<kBits_, kFine_, kMany_ && kRowBlocks_ == 1 ? 2 : 1, kRowBlocks_, true> {
  static constexpr bool kMany = kMany_, kWgmma = kRowBlocks_ > 1;
  static constexpr int kRows = 8 * kRowBlocks_;  // with those that x is filled up with
  static constexpr int kTiles = kMany && !kWgmma ? 2 : 1, kGroupTiles = !kMany ? kFewTiles : kWgmma ? 12 : 10;
  static constexpr int kParts = kMany && kWgmma ? 1 : 2;  // warps that share a tile
  static constexpr int kTileWarps = kGroupTiles / kTiles, kWarps = kTileWarps * kParts,
                       kThreads = kWarps * 32;
  static constexpr int kAhead = kBits_ == 4                       ? (kMany && kWgmma ? 4 : 3)
                                : kBits_ == 8 || kRowBlocks_ == 4 ? 2
                                                                  : 3;
};

// Bytes in shared memory.
struct Room {
  int partial, x, of_blocks, squares_of_blocks, sums, squares, factors, received, old, barrier, total;
};
// x of up to eight rows: [row][stride] BF16. Two rows are 64 bytes apart in the banks.
__host__ __device__ constexpr int row_stride(int units) { return units * kUnitInputs + 32; }
// Few outputs: tile t of the first half of a group and tile t of the second are written together, by block
// t % blocks of the cluster.
constexpr int kUnitsOfOutput = kFewTiles / 2;
__host__ __device__ constexpr int owned_units(int rank, int blocks) {
  return (kUnitsOfOutput - rank + blocks - 1) / blocks;
}
template <class K>
constexpr int kPairsOfUnit = K::kRowBlocks * 64;  // float2 of one of the two tiles

// Many outputs: sums that warps give each other, a float for each lane. [tile warp][span][of a thread], or
// with wgmma [two groups in turn][pair of tiles][which of the two][of a thread].
template <class K>
constexpr int partial_floats = 32 * 4 *
                               (K::kWgmma ? K::kGroupTiles * K::kRowBlocks
                                          : K::kTileWarps * kMostParts * K::kTiles);

template <class K>
Room room_of(int64_t in, const Split& split, int slots, bool has_hidden) {
  const int units = static_cast<int>((in + kUnitInputs - 1) / kUnitInputs);
  const int most = K::kMany ? units : (units + split.blocks - 1) / split.blocks;  // of a block
  Room room{};
  room.partial = K::kWarps * slots * K::kTiles * K::kUnitBytes;
  const int partial = K::kMany ? partial_floats<K> * 4 : 0;
  room.x = room.partial + partial;
  room.of_blocks = room.x + (K::kWgmma ? most * kUnitInputs : row_stride(most)) * K::kRows * 2;
  room.squares_of_blocks = room.of_blocks + (K::kBits == 4 ? most * K::kRows * 16 : 0);
  room.sums = room.squares_of_blocks + (has_hidden ? most * K::kRows * 16 : 0);
  room.squares = room.sums + (K::kBits == 4 ? most * K::kRows * 4 : 0);
  room.factors = room.squares + (has_hidden ? units * K::kRows * 4 : 0);
  room.received = room.factors + K::kRows * 4;
  room.old = room.received;
  if (!K::kMany) room.old += split.spans() * owned_units(0, split.blocks) * 2 * kPairsOfUnit<K> * 8;
  room.barrier = room.old + (K::kMany ? 0 : K::kThreads * 16);
  room.total = room.barrier + 16;
  return room;
}

// x of all rows to shared memory, units [first, first + units) of 128 inputs. A warp has eight rows and 32
// inputs at a time; lane 4 r + c reads the eight from 8 c on. Up to eight rows they stay as they are. For
// wgmma, of 32 inputs there are four pieces of kRows x 16 bytes, for each half of each of the two steps of
// fragments.h; a row's 16 bytes there are inputs 8 c + 2 i and 8 c + 2 i + 1, c = 0 ... 3, i the number of
// the piece. Sums go to sums_of_blocks and squares_of_blocks: [unit][row][4].
template <class K, bool kHidden>
__device__ inline void stage_x(const GpuDecodeArgs& args, int first, int units, char* x,
                               float* sums_of_blocks, float* squares_of_blocks) {
  // Items that a warp asks for at once, of so many blocks of 32 inputs.
  constexpr int kBlocks = kHidden || !K::kWgmma ? 1 : 4;
  constexpr int kItems = kHidden ? (K::kMany ? 5 : 2) : !K::kWgmma || K::kMany ? 4 : 3;
  const int in = static_cast<int>(args.in), rows = static_cast<int>(args.rows);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, c = lane % 4;
  const int items = units * (4 / kBlocks) * K::kRowBlocks;
#pragma unroll 1
  for (int begin = warp; begin < items; begin += kItems * K::kWarps) {
    uint4 eights[kItems][kBlocks];
    float squared[kItems][kBlocks];
#pragma unroll
    for (int p = 0; p < kItems; ++p) {
      const int item = begin + p * K::kWarps, row = item % K::kRowBlocks * 8 + lane / 4;
      const int column = first * kUnitInputs + item / K::kRowBlocks * (kBlocks * kBlockInputs) + 8 * c;
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        const int i = column + b * kBlockInputs;
        const bool is_there = item < items && row < rows && i < in;
        const int64_t from = is_there ? static_cast<int64_t>(row) * in + i : 0;  // no branch around a load
        auto kept_if_there = [is_there](uint4 eight) { return is_there ? eight : uint4{}; };
        if constexpr (kHidden) {
          const float4* const values = reinterpret_cast<const float4*>(args.hidden + from);
          const float4* const weights =
              reinterpret_cast<const float4*>(args.norm_weight + (is_there ? i : 0));
          const float4 low = values[0], high = values[1];
          const uint2 low_pairs = weighted(low, weights[0]), high_pairs = weighted(high, weights[1]);
          eights[p][b] = kept_if_there({low_pairs.x, low_pairs.y, high_pairs.x, high_pairs.y});
          const float sum = squares_of_four(low) + squares_of_four(high);
          squared[p][b] = is_there ? sum : 0;
        } else {
          eights[p][b] = kept_if_there(*reinterpret_cast<const uint4*>(args.x + from));
        }
      }
    }
#pragma unroll
    for (int p = 0; p < kItems; ++p) {
      const int item = begin + p * K::kWarps, row = item % K::kRowBlocks * 8 + lane / 4;
      if (item >= items) break;  // the whole warp
      float added[kBlocks];
      const int first_block = item / K::kRowBlocks * kBlocks;
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        const int block = first_block + b;
        if constexpr (K::kWgmma) {
          char* const to = x + block * (4 * K::kRows * 16) + row * 16 + c * 4;
#pragma unroll
          for (int i = 0; i < 4; ++i)
            *reinterpret_cast<uint32_t*>(to + i * (K::kRows * 16)) = word_of(eights[p][b], i);
        } else {
          *reinterpret_cast<uint4*>(x + (row * row_stride(units) + block * kBlockInputs + 8 * c) * 2) =
              eights[p][b];
        }
        added[b] = sum_of_eight(eights[p][b]);
      }
      auto keep_sums = [&](float(&of_eight)[kBlocks], float* to) {
        add_up<4>(of_eight);
        if (c != 0) return;
#pragma unroll
        for (int b = 0; b < kBlocks; ++b)
          to[((first_block + b) / 4 * K::kRows + row) * 4 + (first_block + b) % 4] = of_eight[b];
      };
      if constexpr (K::kBits == 4) keep_sums(added, sums_of_blocks);
      if constexpr (kHidden) keep_sums(squared[p], squares_of_blocks);
    }
  }
}
// Of blocks to those of units.
template <class K>
__device__ inline void join_sums(const float* of_blocks, int units, float* to) {
  for (int i = threadIdx.x; i < units * K::kRows; i += K::kThreads) {
    const float4 four = reinterpret_cast<const float4*>(of_blocks)[i];
    to[i] = (four.x + four.y) + (four.z + four.w);
  }
}

// The squares of a block's units to the other blocks of its cluster.
template <class K>
__device__ inline void send_squares(float* squares, int first, int units, int rank, int blocks,
                                    uint64_t* barrier) {
  constexpr int kPairs = K::kRows / 2;
  for (int i = threadIdx.x; i < units * kPairs * blocks; i += K::kThreads) {
    float2* const pair = reinterpret_cast<float2*>(squares) + first * kPairs + i / blocks;
    if (i % blocks != rank) send(pair, i % blocks, *pair, barrier);
  }
}

// norm_factor of each row.
template <class K>
__device__ inline void find_factors(const GpuDecodeArgs& args, const float* squares, float* factors) {
  for (int row = threadIdx.x / 32; row < static_cast<int>(args.rows); row += K::kWarps) {
    const float factor = norm_factor(squares + row, static_cast<int>(args.in), args.epsilon, K::kRows);
    if (threadIdx.x % 32 == 0) factors[row] = factor;
  }
}

// A unit's x: where its first input of row 0 stands, and the sums over it.
struct UnitOfX {
  const char* at;
  uint32_t operand;  // for wgmma: the lower half of its descriptor
  const float* sums;
};

// Of rows `row` and `row` + 1 over a group of the unit.
template <class K>
__device__ inline void read_sums(const float* of_unit, int row, int group, float (&to)[2]) {
  if constexpr (K::kFine) {
    to[0] = of_unit[row * 4 + group], to[1] = of_unit[row * 4 + 4 + group];
  } else {
    const float2 pair = *reinterpret_cast<const float2*>(of_unit + row);
    to[0] = pair.x, to[1] = pair.y;
  }
}

}  // namespace
}  // namespace lowbit
