// From the sums of matmul_batch.cu's warps to outputs. What runs once for each group of tiles costs as much
// for being fetched, instruction by instruction, as for being done: it is one loop, whatever the outputs are.
#pragma once

#include "ops/cuda/matmul_batch_x.cuh"

namespace lowbit {
namespace {

// What two neighbours of eight lanes' outputs n have of rows `row` and `row` + 1, as GpuKeptRows has it: an
// even lane keeps both outputs of the first row, an odd lane those of the second. By whole warps.
template <class K>
__device__ inline void keep_pair(const GpuKeptRows& next, int out, int n, int row, int rows, float first,
                                 float second) {
  const uint32_t pair = bf16_pair(first, second), other = __shfl_xor_sync(0xffffffffu, pair, 4);
  const bool is_odd = n % 2;
  const uint32_t both = is_odd ? __byte_perm(other, pair, 0x7632) : __byte_perm(pair, other, 0x5410);
  const int own_row = row + is_odd, k = n & ~1;
  if (own_row >= rows) return;
  const int at = K::kPieces ? (k / 32 * 4 + k % 8 / 2) * (K::kRows * 8) + own_row * 8 + k % 32 / 8 * 2
                            : own_row * out + k;
  *reinterpret_cast<uint32_t*>(next.x + at) = both;
}
// Of the same outputs the squares, in the order of squares_of_four.
__device__ inline void keep_squares(const GpuKeptRows& next, int out, int n, int row, int rows,
                                    const float (&values)[2]) {
  float sums[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float4 four{values[i], 0, 0, 0};
    four.y = __shfl_down_sync(0xffffffffu, values[i], 4);
    four.z = __shfl_down_sync(0xffffffffu, values[i], 8);
    four.w = __shfl_down_sync(0xffffffffu, values[i], 12);
    sums[i] = with_neighbour(squares_of_four(four), 16);
  }
  if (n % 8 != 0) return;
#pragma unroll
  for (int i = 0; i < 2; ++i)
    if (row + i < rows) next.squares[(row + i) * (out / 8) + n / 8] = sums[i];
}

// Besides its sum, what an output is made of, of two rows.
struct Basis {
  float old[2], bias, norm_weight;
};

// What a block's warps have summed up goes to the blocks whose outputs it is, and what has come becomes
// outputs.
//
// Tile t of the first half of a group and tile t of the second are unit t of the outputs; a block of the
// cluster writes both. An item is what a thread writes at a time: output g or g + 8 of a tile, of two
// rows. With SwiGLU the tiles of the second half, up, have no items of their own.
template <class K>
struct Exchange {
  const GpuDecodeArgs& args;
  const int rank, shift;  // in its cluster; 1 << shift of its blocks write
  const Senders senders;
  float2* const received;  // [block][sender][unit][half of the group][block of rows][half of the tile][lane]
  Basis* const bases;      // few outputs: [item]
  uint64_t* const barrier;

  static constexpr int kItems = K::kRowBlocks * 64;  // of a tile

  __device__ int units() const { return owned_units<K>(rank, shift); }
  __device__ int items() const { return units() * (args.swiglu ? 1 : 2) * kItems; }
  __device__ int received_bytes() const { return senders.blocks * senders.each * units() * 2 * kItems * 8; }

  struct Item {
    int unit, is_upper, row, n;
  };
  __device__ Item item_at(const Place& place, int item) const {
    const int tile = item / kItems, unit = args.swiglu ? tile : tile / 2,
              is_upper = args.swiglu ? 0 : tile % 2;
    const int index = rank + (unit << shift) + is_upper * (K::kGroupTiles / 2);
    return {unit, is_upper, item % kItems / 64 * 8 + static_cast<int>(threadIdx.x) % 4 * 2,
            (place.first_tile + index) * kTileOutputs + item % 64 / 4};
  }

  // Constants, before the predecessor has ended; then what products are added to.
  __device__ void fetch_constants(const Place& place) const {
    const GpuMatrix& matrix = args.matrix[place.matrix];
#pragma unroll 1
    for (int i = threadIdx.x; i < items(); i += K::kThreads) {
      const Item item = item_at(place, i);
      Basis& basis = bases[i];
      if (matrix.bias && item.n < matrix.out) {
        copy_4(&basis.bias, matrix.bias + item.n);
      } else {
        basis.bias = 0;
      }
      if (matrix.next.norm_weight && item.n < matrix.out)
        copy_4(&basis.norm_weight, matrix.next.norm_weight + item.n);
    }
  }
  __device__ void fetch_old(const Place& place) const {
    const GpuMatrix& matrix = args.matrix[place.matrix];
    if (!matrix.add_to) return;
    const int out = static_cast<int>(matrix.out), rows = static_cast<int>(args.rows);
#pragma unroll 1
    for (int i = threadIdx.x; i < items(); i += K::kThreads) {
      const Item item = item_at(place, i);
      if (item.n >= out) continue;
#pragma unroll
      for (int j = 0; j < 2; ++j)
        if (item.row + j < rows) copy_4(&bases[i].old[j], matrix.add_to + (item.row + j) * out + item.n);
    }
  }
  __device__ Basis basis_of(const GpuMatrix& matrix, const Item& item, int rows, int i) const {
    if constexpr (!K::kMany) return bases[i];
    Basis basis{{}, 0, 1};
    if (item.n >= matrix.out) return basis;
    if (matrix.bias) basis.bias = matrix.bias[item.n];
    if (matrix.next.norm_weight) basis.norm_weight = matrix.next.norm_weight[item.n];
    if (matrix.add_to) {
#pragma unroll
      for (int j = 0; j < 2; ++j)
        if (item.row + j < rows) basis.old[j] = matrix.add_to[(item.row + j) * matrix.out + item.n];
    }
    return basis;
  }

  // Of tile `tile` of the group.
  __device__ void send_sums(int sender, int tile, const float (&sum)[K::kRowBlocks][4]) const {
    const int is_upper = tile >= K::kGroupTiles / 2 ? 1 : 0;
    const int unit = tile - is_upper * (K::kGroupTiles / 2), owner = unit & ((1 << shift) - 1);
    float2* const to = received +
                       ((sender * owned_units<K>(owner, shift) + (unit >> shift)) * 2 + is_upper) * kItems +
                       threadIdx.x % 32;
#pragma unroll
    for (int b = 0; b < K::kRowBlocks; ++b) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 pair{sum[b][2 * half], sum[b][2 * half + 1]};
        if (!K::kMany && senders.blocks > 1) {
          send(to + (b * 2 + half) * 32, owner, pair, barrier);
        } else {
          to[(b * 2 + half) * 32] = pair;
        }
      }
    }
  }
  // Of the item's place in one of the tiles of its unit.
  __device__ float2 add_up(int unit, int is_upper, int place) const {
    const int step = units() * 2 * kItems;
    const float2* const from = received + (unit * 2 + is_upper) * kItems + place;
    float2 sum{};
#pragma unroll
    for (int block = 0; block < (K::kMany ? 2 : kMostBlocks); ++block) {
      if (block >= senders.blocks) break;
      float2 of_block{};
#pragma unroll
      for (int sender = 0; sender < (K::kParts > 1 ? kMostParts : 1); ++sender) {
        if (sender >= senders.each) break;
        const float2 some = from[(block * senders.each + sender) * step];
        of_block.x += some.x, of_block.y += some.y;
      }
      sum.x += of_block.x, sum.y += of_block.y;
    }
    return sum;
  }

  __device__ void write(const Place& place, const float* factors) const {
    const GpuMatrix& matrix = args.matrix[place.matrix];
    const GpuKeptRows& next = matrix.next;
    const int out = static_cast<int>(matrix.out), rows = static_cast<int>(args.rows), count = items();
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += K::kThreads) {
      const Item item = item_at(place, i);
      if (item.n - item.n % 8 >= out) continue;  // the whole warp
      const float2 sum = add_up(item.unit, item.is_upper, i % kItems);
      const Basis basis = basis_of(matrix, item, rows, i);
      float factor[2] = {1, 1};
#pragma unroll
      for (int j = 0; j < 2; ++j)
        if (factors && item.row + j < rows) factor[j] = factors[item.row + j];
      float values[2] = {sum.x * factor[0] + basis.bias, sum.y * factor[1] + basis.bias};
      if (args.swiglu) {
        const float2 up = add_up(item.unit, 1, i % kItems);
        const float bias = args.matrix[1].bias && item.n < out ? args.matrix[1].bias[item.n] : 0;
        values[0] = gated(values[0], up.x * factor[0] + bias);
        values[1] = gated(values[1], up.y * factor[1] + bias);
      }
      if (matrix.add_to) values[0] += basis.old[0], values[1] += basis.old[1];
      if (matrix.add_to || !next.x) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          if (item.row + j >= rows || item.n >= out) continue;
          const int64_t at = static_cast<int64_t>(item.row + j) * out + item.n;
          if (matrix.add_to) {
            matrix.add_to[at] = values[j];
          } else {
            store_output(matrix.y, at, values[j]);
          }
        }
      }
      if (!next.x) continue;
      const float weight = next.norm_weight ? basis.norm_weight : 1;
      keep_pair<K>(next, out, item.n, item.row, rows, values[0] * weight, values[1] * weight);
      if (next.squares) keep_squares(next, out, item.n, item.row, rows, values);
    }
  }
};

}  // namespace
}  // namespace lowbit
