// From the sums of matmul_batch.cu's warps to outputs.
#pragma once

#include "ops/cuda/matmul_batch_x.cuh"

namespace lowbit {
namespace {

// Where a thread's outputs go: output n of a matrix, of rows `row` and `row` + 1 and those it adds to them.
struct Output {
  float* add_to;  // or null, then y
  Activations y;
  int64_t out, n;
  float bias;

  __device__ static Output of(const GpuMatrix& matrix, int64_t n) {
    return {matrix.add_to, matrix.y, matrix.out, n, matrix.bias && n < matrix.out ? matrix.bias[n] : 0.0f};
  }
  // What the product is added to, asked for early.
  __device__ void fetch_old(int row, int rows, float (&to)[2]) const {
    if (!add_to || n >= out) return;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (row + i < rows) copy_4(&to[i], add_to + (row + i) * out + n);
  }
  __device__ void write(int row, int rows, const float (&values)[2], const float* old) const {
    if (n >= out) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (row + i >= rows) break;
      const int64_t at = (row + i) * out + n;
      if (add_to) {
        add_to[at] = (old ? old[i] : add_to[at]) + values[i];
      } else {
        store_output(y, at, values[i]);
      }
    }
  }
};

// The outputs of tile `tile` of a group's first half and of its partner in the second half: with SwiGLU the
// same of gate and up.
struct OutputPair {
  Output first, second;

  template <class K>
  __device__ static OutputPair of(const GpuDecodeArgs& args, const Place& place, int tile, int row_of_tile) {
    const GpuMatrix& matrix = args.matrix[place.matrix];
    const int64_t n = static_cast<int64_t>(place.first_tile + tile) * kTileOutputs + row_of_tile;
    if (args.swiglu) return {Output::of(matrix, n), Output::of(args.matrix[1], n)};
    return {Output::of(matrix, n), Output::of(matrix, n + K::kGroupTiles / 2 * kTileOutputs)};
  }
  __device__ void write(bool swiglu, int row, int rows, const float (&factor)[2], float2 a, float2 b,
                        const float* old = nullptr) const {
    float x[2] = {a.x * factor[0] + first.bias, a.y * factor[1] + first.bias};
    const float y[2] = {b.x * factor[0] + second.bias, b.y * factor[1] + second.bias};
    if (swiglu) x[0] = gated(x[0], y[0]), x[1] = gated(x[1], y[1]);
    first.write(row, rows, x, old);
    if (!swiglu) second.write(row, rows, y, old ? old + 2 : nullptr);
  }
};
// Of rows `row` and `row` + 1.
__device__ inline void read_factors(const float* factors, int row, int rows, float (&to)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) to[i] = factors && row + i < rows ? factors[row + i] : 1;
}

// Few outputs: what a block's warps have summed up goes to the blocks whose outputs it is, and what has come
// becomes outputs.
template <class K>
struct Exchange {
  const GpuDecodeArgs& args;
  const Place place;
  const int rank, blocks, spans;
  float2* const received;  // [span][unit][half of the group][block of rows][half of the tile][lane]
  uint64_t* const barrier;

  static constexpr int kItems = K::kRowBlocks * 64;  // of a unit: a thread's outputs

  // An item: unit, block of rows, half of the tile.
  __device__ OutputPair outputs(int item) const {
    const int unit = rank + item / kItems * blocks, half = item % 64 / 32;
    return OutputPair::of<K>(args, place, unit, threadIdx.x % 32 / 4 + half * 8);
  }
  __device__ static int row_of(int item) { return item % kItems / 64 * 8 + threadIdx.x % 4 * 2; }
  __device__ void send_sums(int span, int tile, const float (&sum)[K::kRowBlocks][4]) const {
    const int unit = tile % kUnitsOfOutput, owner = unit % blocks;
    float2* const to =
        received +
        ((span * owned_units(owner, blocks) + unit / blocks) * 2 + tile / kUnitsOfOutput) * kPairsOfUnit<K> +
        threadIdx.x % 32;
#pragma unroll
    for (int b = 0; b < K::kRowBlocks; ++b) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 pair{sum[b][2 * half], sum[b][2 * half + 1]};
        if (blocks > 1) {
          send(to + (b * 2 + half) * 32, owner, pair, barrier);
        } else {
          to[(b * 2 + half) * 32] = pair;
        }
      }
    }
  }
  // Of both halves of the group.
  __device__ void add_up(int item, int parts, float2 (&sums)[2]) const {
    const int step = owned_units(rank, blocks) * 2 * kPairsOfUnit<K>;
    const float2* const from = received + item / kItems * 2 * kPairsOfUnit<K> + item % kItems;
    sums[0] = sums[1] = {};
#pragma unroll
    for (int block = 0; block < kMostBlocks; ++block) {
      if (block >= blocks) break;
      float2 of_block[2] = {};
#pragma unroll
      for (int part = 0; part < kFewParts; ++part) {
        if (part >= parts) break;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float2 some = from[(block * parts + part) * step + half * kPairsOfUnit<K>];
          of_block[half].x += some.x, of_block[half].y += some.y;
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) sums[half].x += of_block[half].x, sums[half].y += of_block[half].y;
    }
  }
};

// Many outputs. partial: of the lane, see partial_floats.
//
// With wgmma a warp and that of its tile's partner give each other the half of the rows that the other one
// writes.
template <class K>
__device__ inline void write_by_wgmma(const GpuDecodeArgs& args, const Place& place, int own_tile,
                                      const float (&sum)[K::kRowBlocks][4], float* partial,
                                      const float* factors) {
  const int rows = static_cast<int>(args.rows), g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
  constexpr int kHalf = K::kGroupTiles / 2, kBlocks = K::kRowBlocks / 2;
  const bool is_second = own_tile >= kHalf;
  const int tile = is_second ? own_tile - kHalf : own_tile;
  float* const given = partial + (tile * 2 + (is_second ? 0 : 1)) * (kBlocks * 4 * 32);
  const float* const got = partial + (tile * 2 + (is_second ? 1 : 0)) * (kBlocks * 4 * 32);
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
    for (int j = 0; j < 4; ++j) given[(b * 4 + j) * 32] = is_second ? sum[b][j] : sum[kBlocks + b][j];
  }
  __syncthreads();  // the next group's sums go to the other half
  const int first_row = is_second ? 8 * kBlocks : 0;
  float factor[kBlocks][2], first[kBlocks][4], second[kBlocks][4];
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    read_factors(factors, first_row + b * 8 + 2 * c, rows, factor[b]);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float other = got[(b * 4 + j) * 32];
      first[b][j] = is_second ? other : sum[b][j];
      second[b][j] = is_second ? sum[kBlocks + b][j] : other;
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const auto outputs = OutputPair::of<K>(args, place, tile, g + half * 8);
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
      outputs.write(args.swiglu, first_row + b * 8 + 2 * c, rows, factor[b],
                    {first[b][2 * half], first[b][2 * half + 1]},
                    {second[b][2 * half], second[b][2 * half + 1]});
  }
}
// Without, what the warps of a tile have summed up lies there by spans; each part of them writes eight
// outputs of each of its tiles.
template <class K>
__device__ inline void write_by_mma(const GpuDecodeArgs& args, const Place& place, int tile, int part,
                                    int parts, const float* partial, const float* factors) {
  const int rows = static_cast<int>(args.rows), g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
  float2 all[2] = {};
  for (int span = 0; span < parts; ++span) {
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const float* const from = partial + (((tile * kMostParts + span) * 2 + t) * 4 + 2 * part) * 32;
      all[t].x += from[0], all[t].y += from[32];
    }
  }
  float factor[2];
  read_factors(factors, 2 * c, rows, factor);
  OutputPair::of<K>(args, place, tile, g + part * 8).write(args.swiglu, 2 * c, rows, factor, all[0], all[1]);
}

}  // namespace
}  // namespace lowbit
