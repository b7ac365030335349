// The products of 1 to 32 rows, but for what matmul_row.cu and matmul_batch.cu do.
#include "ops/cuda/matmul_batch.h"
#include "ops/cuda/matmul_decode.h"
#include "ops/cuda/matmul_fetch.cuh"
#include "ops/cuda/matmul_row.h"

namespace lowbit {
namespace {

// Elements from row to row of x in shared memory: rows begin in different banks. Sums over groups: F32
// [rows][stride].
__host__ __device__ constexpr int shared_stride(int in) { return static_cast<int>(padded_inputs(in)) + 8; }
__host__ __device__ constexpr int sums_stride(int in) {
  return static_cast<int>(padded_inputs(in)) / kBlockInputs;
}
__host__ __device__ constexpr int squares_stride(int in) {
  return static_cast<int>(padded_inputs(in)) / kSquaresInputs;
}
// With the squares' sums, and a factor for each row.
constexpr int shared_x_bytes(int64_t rows, int64_t in) {
  const int width = static_cast<int>(in);
  return static_cast<int>(rows) *
         (shared_stride(width) * 2 + (sums_stride(width) + squares_stride(width) + 1) * 4);
}

// Of a row of x that is not normed, in the weight's order.
__device__ inline uint4 plain_eight(const GpuDecodeArgs& args, int64_t row, int i) {
  const uint16_t* const from = args.x + row * args.in;
  if (!args.column_order) return *reinterpret_cast<const uint4*>(from + i);
  const uint2 low = read_four(from, args.column_order, i), high = read_four(from, args.column_order, i + 4);
  return {low.x, low.y, high.x, high.y};
}

// x of all rows to shared memory, as the kernel for one row has it: 256 columns of a row for a warp, kItems
// of them at once.
template <class K>
__device__ inline void prepare_x(const GpuDecodeArgs& args, uint16_t* x, float* sums, float* squares) {
  constexpr int kItems = 4, kColumns = 256;
  constexpr int kLanes = (K::kFine ? kBlockInputs : kUnitInputs) / 8;  // of a group
  const int in = static_cast<int>(args.in), padded = static_cast<int>(padded_inputs(in));
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int pieces = (padded + kColumns - 1) / kColumns, items = static_cast<int>(args.rows) * pieces;
#pragma unroll 1
  for (int first = warp; first < items; first += kItems * warps) {
    int row[kItems], column[kItems];
    uint4 eights[kItems];
    float squared[kItems], added[kItems];
#pragma unroll
    for (int p = 0; p < kItems; ++p) {
      const int item = first + p * warps;
      row[p] = item / pieces;
      column[p] = (item - row[p] * pieces) * kColumns + lane * 8;
      if (item >= items || column[p] >= padded) column[p] = -1;
      const bool is_there = column[p] >= 0 && column[p] < in;
      eights[p] = {};
      squared[p] = 0;
      if (args.hidden) {
        float4 values[2] = {}, weights[2] = {};
        if (is_there) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            values[j] = read_four(args.hidden + row[p] * args.in, args.column_order, column[p] + 4 * j);
            weights[j] = read_four(args.norm_weight, args.column_order, column[p] + 4 * j);
          }
        }
        const uint2 low = weighted(values[0], weights[0]), high = weighted(values[1], weights[1]);
        eights[p] = {low.x, low.y, high.x, high.y};
        squared[p] = squares_of_four(values[0]) + squares_of_four(values[1]);
      } else if (is_there) {
        eights[p] = plain_eight(args, row[p], column[p]);
      }
    }
#pragma unroll
    for (int p = 0; p < kItems; ++p) {
      if (column[p] >= 0) *reinterpret_cast<uint4*>(x + row[p] * shared_stride(in) + column[p]) = eights[p];
      added[p] = sum_of_eight(eights[p]);
    }
    if constexpr (K::kSums) {
      add_up<kLanes>(added);
#pragma unroll
      for (int p = 0; p < kItems; ++p)
        if (column[p] >= 0 && lane % kLanes == 0)
          sums[row[p] * sums_stride(in) + column[p] / (8 * kLanes)] = added[p];
    }
    if (args.hidden) {
      add_up<kSquaresInputs / 8>(squared);
#pragma unroll
      for (int p = 0; p < kItems; ++p)
        if (column[p] >= 0 && lane % (kSquaresInputs / 8) == 0)
          squares[row[p] * squares_stride(in) + column[p] / kSquaresInputs] = squared[p];
    }
  }
  __syncthreads();
}

// Where things lie in shared memory: the rings, sums of two groups of tiles, x and its sums.
struct Room {
  int partial, x, total;
};
template <class K>
__host__ __device__ constexpr Room room_of(int warps, int slots, int rows, int x_bytes) {
  const int partial = warps * slots * K::kTiles * K::kUnitBytes;
  const int x = partial + 2 * warps * K::kTiles * kTileOutputs * rows * 4;
  return {partial, x, x + x_bytes};
}

// The rows that a thread's lanes of the second operand stand for; what has no row repeats the last one, and
// its sums are not written.
template <class K>
__device__ inline void read_x_from_memory(const GpuDecodeArgs& args, int unit, X<K>& x) {
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4, rows = static_cast<int>(args.rows);
#pragma unroll
  for (int b = 0; b < K::kRowBlocks; ++b) {
    float sums[K::kBlocks];
#pragma unroll
    for (int block = 0; block < K::kBlocks; ++block) {
      const int k = unit * K::kInputs + block * kBlockInputs + 8 * c;
      const uint16_t* const from = args.x + min(b * 8 + g, rows - 1) * args.in + k;
      x.data[b][block] = k < args.in ? __ldcg(reinterpret_cast<const uint4*>(from)) : uint4{};
      if constexpr (K::kSums)
        sums[block] = with_neighbour(with_neighbour(sum_of_eight(x.data[b][block]), 1), 2);
    }
    if constexpr (K::kSums) {
#pragma unroll
      for (int group = 0; group < K::kGroups; ++group) {
        const float sum = K::kFine ? sums[group] : (sums[0] + sums[1]) + (sums[2] + sums[3]);
        x.sums[b][group][0] = __shfl_sync(0xffffffffu, sum, 8 * c);
        x.sums[b][group][1] = __shfl_sync(0xffffffffu, sum, 8 * c + 4);
      }
    }
  }
}

// For gate and up of few rows five blocks of four warps are to fit a multiprocessor: 96 registers.
template <class K>
constexpr int kBound = K::kTiles == 2 && K::kRowBlocks == 1 && K::kShared ? 640 : kMostWarps * 32;

template <class K>
__global__ void __launch_bounds__(kBound<K>, 1)
    decode_kernel(const __grid_constant__ GpuDecodeArgs args, const __grid_constant__ Plan plan) {
  extern __shared__ __align__(16) char shared[];
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
  const int in = static_cast<int>(args.in), rows = static_cast<int>(args.rows);
  const Room room = room_of<K>(warps, plan.slots, rows, 0);
  const Share share = share_of_span<K>(in, warp, warps, blockIdx.x, gridDim.x);
  Fetcher<K> fetcher(args, plan, share, shared);

  follow_predecessor(args);

  uint16_t* const x_shared = reinterpret_cast<uint16_t*>(shared + room.x);
  float* const sums_shared = reinterpret_cast<float*>(x_shared + rows * shared_stride(in));
  const float* factors = args.factors;
  if constexpr (K::kShared) {
    float* const squares = sums_shared + rows * sums_stride(in);
    prepare_x<K>(args, x_shared, sums_shared, squares);
    if (args.hidden) {
      float* const own_factors = squares + rows * squares_stride(in);
      for (int row = warp; row < rows; row += warps) {
        const float factor = norm_factor(squares + row * squares_stride(in), in, args.epsilon);
        if (threadIdx.x % 32 == 0) own_factors[row] = factor;  // read behind the next barrier
      }
      factors = own_factors;
    }
  }

  char* slot = fetcher.ring;
  int turn = 0;
#pragma unroll 1
  for (int group = blockIdx.x; group < plan.groups; group += gridDim.x, turn ^= 1) {
    const Place place = place_of<K>(args, plan, group);
    const GpuMatrix& matrix = args.matrix[place.matrix];
    const bool has_zeros = matrix.zero_points != nullptr;
    const uint32_t middle = 0x10001u << (args.bits - 1);
    float total[K::kTiles][K::kRowBlocks][4] = {};
    const uint4* x_at =
        reinterpret_cast<const uint4*>(x_shared + min(g, rows - 1) * shared_stride(in) + 8 * c) +
        share.begin * (K::kInputs / 8);
    const float* sums_at = sums_shared + min(2 * c, rows - 1) * sums_stride(in) + share.begin * K::kGroups;
    const int next_row = 2 * c + 1 < rows ? sums_stride(in) : 0;
#pragma unroll 1
    for (int unit = share.begin; unit < share.end; ++unit) {
      X<K> x;
      if constexpr (K::kShared) {
#pragma unroll
        for (int block = 0; block < K::kBlocks; ++block) x.data[0][block] = x_at[block * (kBlockInputs / 8)];
        x_at += K::kInputs / 8;
        if constexpr (K::kSums) {
#pragma unroll
          for (int i = 0; i < K::kGroups; ++i)
            x.sums[0][i][0] = sums_at[i], x.sums[0][i][1] = sums_at[i + next_row];
          sums_at += K::kGroups;
        }
      } else {
        read_x_from_memory<K>(args, unit, x);
      }
      wait_for_copies<K::kAhead - 1>();
      Loaded<K> now[K::kTiles];
      fetcher.read(slot, has_zeros, middle, now);
      multiply_unit<K>(now, x, args.table, total);
      fetcher.next();
      slot = fetcher.following(slot);
    }

    float* const partial =  // [warps][kTiles * 16][rows]
        reinterpret_cast<float*>(shared + room.partial) + turn * warps * K::kTiles * kTileOutputs * rows;
#pragma unroll
    for (int t = 0; t < K::kTiles; ++t) {
#pragma unroll
      for (int b = 0; b < K::kRowBlocks; ++b) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int row = b * 8 + 2 * c + j % 2, output = t * kTileOutputs + g + j / 2 * 8;
          if (row < rows) partial[(warp * K::kTiles * kTileOutputs + output) * rows + row] = total[t][b][j];
        }
      }
    }
    __syncthreads();  // the next group's sums go to the other half
    constexpr int kOutputs = K::kTiles * kTileOutputs;
    auto sum_of = [&](int output, int row) {
      return sum_over_spans(warps, plan.split.parts,
                            [&](int span) { return partial[(span * kOutputs + output) * rows + row]; });
    };
#pragma unroll 1
    for (int i = threadIdx.x; i < kOutputs * rows; i += blockDim.x) {
      const int output = i % kOutputs, row = i / kOutputs;
      const int64_t n = place.first_tile * kTileOutputs + output;
      if (n >= matrix.out || (args.swiglu && output >= kPairs<K> * kTileOutputs)) continue;
      const float factor = factors ? factors[row] : 1;
      float value = sum_of(output, row) * factor + (matrix.bias ? matrix.bias[n] : 0.0f);
      if (args.swiglu) {
        const float* const bias = args.matrix[1].bias;
        const float up = sum_of(output + kPairs<K> * kTileOutputs, row) * factor + (bias ? bias[n] : 0.0f);
        value = gated(value, up);
      }
      const int64_t at = row * matrix.out + n;
      if (matrix.add_to) {
        matrix.add_to[at] += value;
      } else {
        store_output(matrix.y, at, value);
      }
    }
  }
}

template <class K>
void launch_kind(const GpuDecodeArgs& args, void* stream) {
  const int rows = static_cast<int>(args.rows);
  auto bytes = [&](int warps, int slots) {
    return room_of<K>(warps, slots, rows, K::kShared ? shared_x_bytes(rows, args.in) : 0).total;
  };
  queue_launch<decode_kernel<K>>(launch_of<K, decode_kernel<K>>(args, bytes), args, stream);
}

// Whether x of so many rows has room beside the rings.
template <class K>
bool has_room_for_x(int64_t rows, int64_t in) {
  return rows <= 8 && room_of<K>(split_of(in, 1, K::kBits).spans(), K::kAhead, static_cast<int>(rows),
                                 shared_x_bytes(rows, in))
                              .total <= device().shared_per_block;
}

// More tiles in a block read x less often; but all processors of the GPU are to have a block.
template <int kBits, Codes kCodes>
void launch_for_rows(const GpuDecodeArgs& args, void* stream) {
  using One = Kind<kBits, kCodes, 1, 1, true>;
  using Two = Kind<kBits, kCodes, 2, 1, true>;
  if (!args.swiglu && tiles_of(args) < 2 * device().multiprocessors &&
      has_room_for_x<One>(args.rows, args.in))
    return launch_kind<One>(args, stream);
  if (has_room_for_x<Two>(args.rows, args.in)) return launch_kind<Two>(args, stream);
  if (args.rows > 16) return launch_kind<Kind<kBits, kCodes, 1, 4, false>>(args, stream);
  if (args.rows > 8) return launch_kind<Kind<kBits, kCodes, 2, 2, false>>(args, stream);
  launch_kind<Kind<kBits, kCodes, 2, 1, false>>(args, stream);
}
// Whatever kernel of up to eight rows takes it.
template <int kBits, Codes kCodes>
bool prepares(int64_t rows, int64_t in) {
  return has_room_for_x<Kind<kBits, kCodes, 1, 1, true>>(rows, in) &&
         has_room_for_x<Kind<kBits, kCodes, 2, 1, true>>(rows, in);
}

}  // namespace

int64_t gated_decode_rows(int64_t in, int64_t tiles, int bits, int64_t group_size) {
  return gpu_batch_rows(in, tiles, bits, group_size) > 0 ? kDecodeRows : 16;
}

bool prepares_in_decode(int64_t rows, int64_t in, int64_t tiles, int bits, int64_t group_size) {
  if (!fits_gpu_decode(in, bits, group_size)) return false;
  if (rows > 1 && gpu_batch_rows(in, tiles, bits, group_size) > 0) return false;
  return with_kind(bits, group_size,
                   [&]<int kBits, Codes kCodes>() { return prepares<kBits, kCodes>(rows, in); });
}

void gpu_matmul_decode(const GpuDecodeArgs& args, void* stream) {
  if (args.rows == 1 && !args.factors && gpu_matmul_row(args, stream)) return;
  if (gpu_matmul_batch(args, stream)) return;
  with_kind(args.bits, args.group_size,
            [&]<int kBits, Codes kCodes>() { launch_for_rows<kBits, kCodes>(args, stream); });
}

}  // namespace lowbit
