// x of two to 32 rows as matmul_batch.cu has it in shared memory, its sums, and where what lies there.
#pragma once

#include "ops/cuda/cluster.cuh"
#include "ops/cuda/matmul_fetch.cuh"
#include "ops/cuda/wgmma.cuh"

namespace lowbit {
namespace {

// How a weight's outputs and inputs are divided. A block has all inputs of tiles, and goes from group to
// group of them (kMany; kManyLong: by half as many warps, which leave room for longer rows); or the blocks of
// a cluster share the inputs of a group (kFew; kFewBeside: by half as many warps, which leave room for what
// follows).
enum class Outputs { kFew, kFewBeside, kMany, kManyLong };
constexpr bool are_many(Outputs outputs) { return outputs >= Outputs::kMany; }
template <int kBits_, Codes kCodes_, int kRowBlocks_, Outputs kOutputs_>
struct BatchKind : Kind<kBits_, kCodes_, are_many(kOutputs_) && kRowBlocks_ != 4 ? 2 : 1, kRowBlocks_, true> {
  static constexpr bool kMany = are_many(kOutputs_), kPieces = kRowBlocks_ > 1;  // see GpuKeptRows
  static constexpr int kRows = 8 * kRowBlocks_;                      // with those that x is filled up with
  static constexpr int kUnitSums = kCodes_ == Codes::kFine ? 4 : 1;  // of a row's x over a unit
  static constexpr bool kWgmma = kRowBlocks_ == 4 && kOutputs_ != Outputs::kFewBeside;
  static constexpr int kTiles = kMany && !kWgmma ? 2 : 1, kGroupTiles = !kMany ? kFewTiles : kWgmma ? 12 : 10;
  // Warps that share a tile. Of 4 bits and few rows so many that all their units are on their way at once.
  static constexpr bool kSplitsMore =
      kOutputs_ == Outputs::kMany && kBits_ == 4 && kCodes_ == Codes::kWide && kRowBlocks_ == 1;
  static constexpr int kParts = kOutputs_ == Outputs::kFewBeside || (kMany && kWgmma) ? 1
                                : kSplitsMore                                         ? 4
                                                                                      : 2;
  static constexpr bool kOneSpan = kParts == (kMany ? 4 : 2);  // of a warp
  static constexpr int kTileWarps = kGroupTiles / kTiles, kWarps = kTileWarps * kParts,
                       kThreads = kWarps * 32;
  // More threads than there are, for fewer registers.
  static constexpr int kBound = kOutputs_ == Outputs::kFewBeside ? 2 * kThreads : kThreads;
  static constexpr int kAhead = kBits_ == 4                       ? (kMany && kWgmma ? 4 : 3)
                                : kBits_ == 8 || kRowBlocks_ == 4 ? 2
                                                                  : 3;
};

// Units that spans begin with, and the last one ends with, again and again.
struct Spans {
  uint16_t first[kMostBlocks * kMostParts + 2];
};
template <class K>
Spans spans_of(int64_t in, const Split& split) {
  Spans spans{};
  for (int i = 0; i < kMostBlocks * kMostParts + 2; ++i)
    spans.first[i] =
        static_cast<uint16_t>(first_unit<K>(static_cast<int>(in), std::min(i, split.spans()), split.spans()));
  return spans;
}

// Bytes in shared memory. barriers: of the cluster's sums, of x.
struct Room {
  int received, x, sums, factors, bases, barriers, total;
};
// x of up to eight rows: [row][stride] BF16. Two rows are 64 bytes apart in the banks.
__host__ __device__ constexpr int row_stride(int units) { return units * kUnitInputs + 32; }
// Units of outputs (Exchange) that a block of a cluster writes: the first 1 << shift blocks share them.
constexpr int kOwners = kFewTiles / 2;
template <class K>
__host__ __device__ constexpr int owned_units(int rank, int shift) {
  return (K::kGroupTiles / 2 - 1 - rank + (1 << shift)) >> shift;
}

// How a tile's sums come together: so many warps each have those of a part of one of `blocks`, or of all of
// it. Where a block has all inputs, its warps have what elsewhere blocks have.
struct Senders {
  int blocks, each;
};
template <class K>
__host__ __device__ constexpr Senders senders_of(const Split& split) {
  if (!K::kMany) return {split.blocks, split.parts < K::kParts ? split.parts : K::kParts};
  if (K::kParts == 1 || (K::kParts == 2 && split.blocks > 1)) return {split.blocks, 1};
  return {split.blocks, split.parts};
}

template <class K>
Room room_of(int64_t in, const Split& split, int slots) {
  const int units = static_cast<int>((in + kUnitInputs - 1) / kUnitInputs);
  const int blocks = K::kMany ? 1 : split.blocks, most = (units + blocks - 1) / blocks;     // of a block
  const int outputs = (K::kGroupTiles / 2 + blocks - 1) / blocks * 2 * K::kRowBlocks * 64;  // of two rows
  const Senders senders = senders_of<K>(split);
  Room room{};
  room.received = K::kWarps * slots * K::kTiles * K::kUnitBytes;
  room.x = room.received + senders.blocks * senders.each * outputs * 8;
  room.sums = room.x + (K::kPieces ? most * kUnitInputs : row_stride(most)) * K::kRows * 2;
  room.factors = room.sums + (K::kSums ? most * K::kRows * 4 * K::kUnitSums : 0);
  room.bases = room.factors + K::kRows * 4;
  room.barriers = room.bases + (K::kMany ? 0 : outputs * 16);
  room.total = room.barriers + 16;
  return room;
}

// x comes to shared memory, units [first, first + units) of 128 inputs, as GpuKeptRows says: up to eight rows
// as they are, more in four pieces for each half of each of the two steps of fragments.h.

// By bulk copies, of rows that lie so; lanes of a warp. `barrier` counts the bytes.
template <class K>
__device__ inline void copy_x(const GpuDecodeArgs& args, int first, int units, char* x, uint64_t* barrier) {
  const int in = static_cast<int>(args.in), lane = threadIdx.x % 32;
  if constexpr (K::kPieces) {
    constexpr int kBytes = kUnitInputs * K::kRows * 2;  // of a unit
    for (int unit = lane; unit < units; unit += 32)
      copy_bulk(shared_address(x + unit * kBytes),
                reinterpret_cast<const char*>(args.kept.x) + (first + unit) * kBytes, kBytes, barrier);
  } else if (lane < static_cast<int>(args.rows)) {
    const uint16_t* const from = (args.kept.x ? args.kept.x : args.x) + lane * args.in + first * kUnitInputs;
    copy_bulk(shared_address(x + lane * row_stride(units) * 2), from,
              min(units * kUnitInputs, in - first * kUnitInputs) * 2, barrier);
  }
}
template <class K>
__device__ inline int bytes_of_x(const GpuDecodeArgs& args, int first, int units) {
  if (K::kPieces) return units * kUnitInputs * K::kRows * 2;
  return static_cast<int>(args.rows) *
         min(units * kUnitInputs, static_cast<int>(args.in) - first * kUnitInputs) * 2;
}
// What no copy brings: inputs behind the last one.
template <class K>
__device__ inline void clear_tail(const GpuDecodeArgs& args, int first, int units, char* x) {
  const int begin = static_cast<int>(args.in) - first * kUnitInputs, count = units * kUnitInputs - begin;
  for (int i = threadIdx.x; i < count * 8; i += K::kThreads)
    reinterpret_cast<uint16_t*>(x)[i / count * row_stride(units) + begin + i % count] = 0;
}

// By all threads, to pieces, of rows [rows][in].
template <class K>
__device__ inline void stage_x(const GpuDecodeArgs& args, int first, int units, char* x) {
  constexpr int kItems = K::kMany ? 4 : 3;  // of a unit and eight rows, that a warp asks for at once
  const int in = static_cast<int>(args.in), rows = static_cast<int>(args.rows);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, c = lane % 4;
  const int items = units * K::kRowBlocks;
#pragma unroll 1
  for (int begin = warp; begin < items; begin += kItems * K::kWarps) {
    uint4 eights[kItems][4];
#pragma unroll
    for (int p = 0; p < kItems; ++p) {
      const int item = begin + p * K::kWarps, row = item % K::kRowBlocks * 8 + lane / 4;
      const int column = (first + item / K::kRowBlocks) * kUnitInputs + 8 * c;
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        const int i = column + b * kBlockInputs;
        const bool is_there = item < items && row < rows && i < in;
        const int64_t from = is_there ? static_cast<int64_t>(row) * in + i : 0;  // no branch around a load
        const uint4 eight = *reinterpret_cast<const uint4*>(args.x + from);
        eights[p][b] = is_there ? eight : uint4{};
      }
    }
#pragma unroll
    for (int p = 0; p < kItems; ++p) {
      const int item = begin + p * K::kWarps, row = item % K::kRowBlocks * 8 + lane / 4;
      if (item >= items) break;  // the whole warp
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        char* const to = x + (item / K::kRowBlocks * 4 + b) * (4 * K::kRows * 16) + row * 16 + c * 4;
#pragma unroll
        for (int i = 0; i < 4; ++i)
          *reinterpret_cast<uint32_t*>(to + i * (K::kRows * 16)) = word_of(eights[p][b], i);
      }
    }
  }
}

// Sums of x over its units, or over blocks of 32: [unit][row], [unit][row][4].
template <class K>
__device__ inline void sum_x(const char* x, int units, float* sums) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if constexpr (K::kPieces) {  // a lane has a row's block, eight lanes eight rows
    const int block = lane / 8;
    for (int item = warp; item < units * K::kRowBlocks; item += K::kWarps) {
      const int unit = item / K::kRowBlocks, row = item % K::kRowBlocks * 8 + lane % 8;
      const char* const from = x + (unit * 4 + block) * (4 * K::kRows * 16) + row * 16;
      uint4 pieces[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) pieces[i] = *reinterpret_cast<const uint4*>(from + i * (K::kRows * 16));
      float of_eight[4];
#pragma unroll
      for (int c = 0; c < 4; ++c)
        of_eight[c] = sum_of_eight(
            {word_of(pieces[0], c), word_of(pieces[1], c), word_of(pieces[2], c), word_of(pieces[3], c)});
      const float sum = (of_eight[0] + of_eight[1]) + (of_eight[2] + of_eight[3]);
      if constexpr (K::kFine) {
        sums[(unit * K::kRows + row) * 4 + block] = sum;
      } else {
        const float of_unit = with_neighbour(with_neighbour(sum, 8), 16);
        if (block == 0) sums[unit * K::kRows + row] = of_unit;
      }
    }
  } else {  // lane 4 r + c has inputs 8 c ... 8 c + 7 of row r's blocks
    const int row = lane / 4;
    for (int unit = warp; unit < units; unit += K::kWarps) {
      const char* const from = x + (row * row_stride(units) + unit * kUnitInputs + lane % 4 * 8) * 2;
      float of_blocks[4];
#pragma unroll
      for (int b = 0; b < 4; ++b)
        of_blocks[b] = sum_of_eight(*reinterpret_cast<const uint4*>(from + b * (kBlockInputs * 2)));
      add_up<4>(of_blocks);
      if (lane % 4 != 0) continue;
      float* const to = sums + (unit * K::kRows + row) * K::kUnitSums;
      if constexpr (K::kFine) {
#pragma unroll
        for (int b = 0; b < 4; ++b) to[b] = of_blocks[b];
      } else {
        *to = (of_blocks[0] + of_blocks[1]) + (of_blocks[2] + of_blocks[3]);
      }
    }
  }
}

// norm_factor of each row, of the squares that came with x.
template <class K>
__device__ inline void find_factors(const GpuDecodeArgs& args, float* factors) {
  constexpr int kEach = (K::kRows + K::kWarps - 1) / K::kWarps;  // rows of a warp, one kWarps further
  const int in = static_cast<int>(args.in), rows = static_cast<int>(args.rows);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float sums[kEach] = {};
  for (int unit = lane; unit < in / kSquaresInputs; unit += 32) {
    float4 squares[kEach][4];
#pragma unroll
    for (int p = 0; p < kEach; ++p) {
      const int row = warp + p * K::kWarps;
      const float4* const from =
          reinterpret_cast<const float4*>(args.kept.squares + row * (in / 8)) + unit * 4;
#pragma unroll
      for (int i = 0; i < 4; ++i) squares[p][i] = row < rows ? __ldcg(from + i) : float4{};
    }
#pragma unroll
    for (int p = 0; p < kEach; ++p) {
      float some[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        some[i] = (squares[p][i].x + squares[p][i].y) + (squares[p][i].z + squares[p][i].w);
      sums[p] += (some[0] + some[1]) + (some[2] + some[3]);
    }
  }
#pragma unroll
  for (int p = 0; p < kEach; ++p) {
    const int row = warp + p * K::kWarps;
    const float factor = norm_factor_of(sums[p], in, args.epsilon);
    if (lane == 0 && row < rows) factors[row] = factor;
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
