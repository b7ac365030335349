// What the products of prompts on Hopper share: which tiles of y a block makes, and the ring of slots in
// shared memory through which the operands come.
#pragma once

#include "ops/cuda/device.cuh"
#include "ops/cuda/wgmma.cuh"

#include <cstdint>

namespace lowbit {
namespace {

// Tiles of so many rows' tiles are taken before the next ones: their x and the outputs' w stay in the
// second-level cache.
constexpr int kRowTilesTogether = 16;

// A tile of y: kRows x kOutputs of one of the matrices that share x. Blocks take tiles in turn.
template <int kRows, int kOutputs>
struct TileList {
  struct Place {
    int matrix, row_tile, output_tile;
    __device__ int64_t row() const { return static_cast<int64_t>(row_tile) * kRows; }
    __device__ int64_t n() const { return static_cast<int64_t>(output_tile) * kOutputs; }
  };
  int row_tiles = 0, output_tiles[kMostMatrices] = {}, all_outputs = 0, matrices = 0;

  template <class Matrix>
  TileList(int64_t rows, const Matrix* matrix, int count)
      : row_tiles(static_cast<int>((rows + kRows - 1) / kRows)), matrices(count) {
    for (int i = 0; i < count; ++i) {
      output_tiles[i] = static_cast<int>((matrix[i].out + kOutputs - 1) / kOutputs);
      all_outputs += output_tiles[i];
    }
  }
  __host__ __device__ int count() const { return row_tiles * all_outputs; }
  __device__ Place at(int index) const {
    const int together = kRowTilesTogether * all_outputs, first = index / together * kRowTilesTogether;
    const int rows = min(kRowTilesTogether, row_tiles - first), rest = index % together;
    int output = rest / rows, matrix = 0;
    while (matrix + 1 < matrices && output >= output_tiles[matrix]) output -= output_tiles[matrix++];
    return {matrix, first + rest % rows, output};
  }
};

// Slots in turn: `filled` counts the bytes that come, `emptied` the warps that have read them.
template <int kSlots>
struct RingBarriers {
  uint64_t filled[kSlots], emptied[kSlots];

  // By one thread.
  __device__ void make(int readers, int fillers = 1) {
    for (int slot = 0; slot < kSlots; ++slot) {
      make_barrier(&filled[slot], fillers);
      make_barrier(&emptied[slot], readers);
    }
    show_to_products();
  }
};
template <int kSlots>
struct Ring {
  int slot = 0;
  uint32_t parity = 0;

  __device__ void advance() {
    if (++slot < kSlots) return;
    slot = 0;
    parity ^= 1;
  }
  __device__ int before(int count = 1) const { return slot < count ? slot + kSlots - count : slot - count; }
};

// A warp has read a slot: all of its lanes, which the first one's arrival alone would not say.
__device__ inline void release(uint64_t* emptied) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) arrive(emptied);
}

// *to += values, where nobody waits for what was there: the second-level cache adds (and takes denormal
// numbers for zeros).
__device__ inline void add_in_memory(float* to, float2 values) {
  asm volatile("red.global.add.v2.f32 [%0], {%1,%2};" ::"l"(to), "f"(values.x), "f"(values.y) : "memory");
}
__device__ inline void add_in_memory(float* to, float4 values) {
  asm volatile("red.global.add.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(to), "f"(values.x), "f"(values.y),
               "f"(values.z), "f"(values.w)
               : "memory");
}

}  // namespace
}  // namespace lowbit
