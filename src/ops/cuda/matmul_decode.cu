#include "ops/cuda/matmul_decode.h"
#include "ops/cuda/matmul_units.cuh"

#include <algorithm>
#include <climits>
#include <map>
#include <mutex>
#include <utility>

namespace lowbit {
namespace {

// A block makes one group of kTiles tiles of 16 outputs after the other; its warps take the units of the
// inputs in turn.

// By the weights' sizes alone, so that the order of the sums is the same for any rows. Where there are few
// tiles, many warps share one.
int warps_of(int64_t in, int64_t tiles, int bits) {
  const int64_t units = (in + unit_inputs(bits) - 1) / unit_inputs(bits);
  int warps = 4;
  while (warps < kMostWarps && warps < units && warps * tiles < 2048) warps *= 2;
  return static_cast<int>(std::min<int64_t>(warps, units));
}

// What is the same for all blocks of a launch, worked out once.
struct Plan {
  int units, groups;               // of inputs; of tiles, of all matrices
  int first_group[kMostMatrices];  // of each matrix
  int last_tile[kMostMatrices];
  int tile_bytes, tile_groups_bytes;  // from tile to tile: codes; scales or zero points
  int slots;                          // of a warp's ring
};

// Elements from row to row of x in shared memory: rows begin in different banks. Sums over groups, and sums
// of squares: F32 [rows][stride].
__host__ __device__ constexpr int shared_stride(int in) { return static_cast<int>(padded_inputs(in)) + 8; }
__host__ __device__ constexpr int sums_stride(int in) {
  return static_cast<int>(padded_inputs(in)) / kBlockInputs;
}
__host__ __device__ constexpr int squares_stride(int in) {
  return (static_cast<int>(padded_inputs(in)) + kSquaresInputs - 1) / kSquaresInputs;
}
constexpr int shared_x_bytes(int64_t rows, int64_t in) {
  const int width = static_cast<int>(in);
  return static_cast<int>(rows) *
         (shared_stride(width) * 2 + (sums_stride(width) + squares_stride(width)) * 4);
}

// Eight columns of x from `i` on, in the weight's order: of the hidden state (with the norm's weight), or of
// x.
struct Eight {
  float values[8];
};
__device__ inline int column_of(const GpuDecodeArgs& args, int i) {
  return args.column_order ? __ldg(args.column_order + i) : i;
}
__device__ inline Eight read_eight(const float* from, const GpuDecodeArgs& args, int i) {
  Eight eight;
  if (args.column_order) {
#pragma unroll
    for (int j = 0; j < 8; ++j) eight.values[j] = from[column_of(args, i + j)];
  } else {
#pragma unroll
    for (int j = 0; j < 8; j += 4)
      *reinterpret_cast<float4*>(eight.values + j) = *reinterpret_cast<const float4*>(from + i + j);
  }
  return eight;
}

// Times the norm's weights. The norm's factor comes last of all, to the products.
__device__ inline uint4 weighted(const Eight& values, const Eight& weights) {
  uint4 eight;
  uint32_t* const pairs = &eight.x;
#pragma unroll
  for (int j = 0; j < 4; ++j)
    pairs[j] = bf16_pair(values.values[2 * j] * weights.values[2 * j],
                         values.values[2 * j + 1] * weights.values[2 * j + 1]);
  return eight;
}

// Of a row of x that is not normed, in the weight's order.
__device__ inline uint4 plain_eight(const GpuDecodeArgs& args, int64_t row, int i) {
  const uint16_t* const from = args.x + row * args.in;
  if (!args.column_order) return *reinterpret_cast<const uint4*>(from + i);
  uint4 eight;
  uint32_t* const pairs = &eight.x;
#pragma unroll
  for (int j = 0; j < 4; ++j)
    pairs[j] = from[column_of(args, i + 2 * j)] | static_cast<uint32_t>(from[column_of(args, i + 2 * j + 1)])
                                                      << 16;
  return eight;
}

// To its place, with the sums over groups; by whole warps, whose lanes have neighbouring columns.
template <class K>
__device__ inline void keep_eight(const uint4& eight, int row, int i, int in, uint16_t* x, float* sums) {
  const int padded = static_cast<int>(padded_inputs(in));
  if (i < padded) *reinterpret_cast<uint4*>(x + row * shared_stride(in) + i) = eight;
  if constexpr (K::kBits == 4) {
    float sum = with_neighbour(with_neighbour(sum_of_eight(eight), 1), 2);
    if constexpr (!K::kFine) sum = with_neighbour(with_neighbour(sum, 4), 8);
    constexpr int kLanes = K::kFine ? 4 : 16;
    if (i < padded && threadIdx.x % kLanes == 0) sums[row * sums_stride(in) + i / (kLanes * 8)] = sum;
  }
}

// x of a block in shared memory.
struct SharedX {
  uint16_t* x;
  float *sums, *squares;
};

// The norm's weights for this thread's first columns are fetched while the predecessor is at work.
constexpr int kNormPieces = 2, kPieces = 4;  // of eight columns, that a thread asks for at once
struct NormPieces {
  Eight piece[kNormPieces];
};
__device__ inline NormPieces read_norm(const GpuDecodeArgs& args) {
  NormPieces norm = {};
#pragma unroll
  for (int p = 0; p < kNormPieces; ++p) {
    const int i = (threadIdx.x + p * blockDim.x) * 8;
    if (i < args.in) norm.piece[p] = read_eight(args.norm_weight, args, i);
  }
  return norm;
}

// The one row, by all warps.
template <class K>
__device__ inline void prepare_row(const GpuDecodeArgs& args, const NormPieces& norm, const SharedX& to) {
  const int in = static_cast<int>(args.in), padded = static_cast<int>(padded_inputs(in));
  const int lane = threadIdx.x % 32, mine = threadIdx.x * 8, stride = blockDim.x * 8;
  if (args.hidden) {
#pragma unroll 1
    for (int first = mine; first - lane * 8 < padded; first += kNormPieces * stride) {
      Eight values[kNormPieces] = {};
#pragma unroll
      for (int p = 0; p < kNormPieces; ++p)
        if (first + p * stride < in) values[p] = read_eight(args.hidden, args, first + p * stride);
#pragma unroll
      for (int p = 0; p < kNormPieces; ++p) {
        const int i = first + p * stride;
        if (i - lane * 8 >= padded) break;  // whole warps
        Eight weights = norm.piece[p];
        if (first != mine && i < in) weights = read_eight(args.norm_weight, args, i);
        keep_eight<K>(weighted(values[p], weights), 0, i, in, to.x, to.sums);
        const float squares = sum_of_squares(values[p].values);
        if (lane == 0) to.squares[i / kSquaresInputs] = squares;
      }
    }
  } else {
#pragma unroll 1
    for (int first = mine; first - lane * 8 < padded; first += kPieces * stride) {
      uint4 values[kPieces] = {};
#pragma unroll
      for (int p = 0; p < kPieces; ++p)
        if (first + p * stride < in) values[p] = plain_eight(args, 0, first + p * stride);
#pragma unroll
      for (int p = 0; p < kPieces; ++p) {
        const int i = first + p * stride;
        if (i - lane * 8 >= padded) break;
        keep_eight<K>(values[p], 0, i, in, to.x, to.sums);
      }
    }
  }
  __syncthreads();
}

// Several rows, each by a warp. What it does to a row is what prepare_row does.
template <class K>
__device__ inline void prepare_rows(const GpuDecodeArgs& args, const SharedX& to) {
  const int in = static_cast<int>(args.in), padded = static_cast<int>(padded_inputs(in));
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
#pragma unroll 1
  for (int row = threadIdx.x / 32; row < args.rows; row += warps) {
    const float* const hidden = args.hidden ? args.hidden + row * args.in : nullptr;
#pragma unroll 2
    for (int i = lane * 8; i - lane * 8 < padded; i += 256) {
      uint4 eight = {};
      if (hidden) {
        Eight values = {};
        if (i < in) {
          values = read_eight(hidden, args, i);
          eight = weighted(values, read_eight(args.norm_weight, args, i));
        }
        const float squares = sum_of_squares(values.values);
        if (lane == 0) to.squares[row * squares_stride(in) + i / kSquaresInputs] = squares;
      } else if (i < in) {
        eight = plain_eight(args, row, i);
      }
      keep_eight<K>(eight, row, i, in, to.x, to.sums);
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

// Which matrix a group of tiles belongs to, and its first tile there.
struct Place {
  int matrix, first_tile;
};
template <class K>
__device__ inline Place place_of(const GpuDecodeArgs& args, const Plan& plan, int group) {
  if (args.swiglu) return {0, group * K::kPairs};
  const int matrix = (group >= plan.first_group[1]) + (group >= plan.first_group[2]);
  return {matrix, (group - plan.first_group[matrix]) * K::kTiles};
}

// What a warp fetches, unit by unit, through all groups of its block.
template <class K>
struct Fetcher {
  const GpuDecodeArgs& args;
  const Plan& plan;
  const int warp, warps;
  char* const ring;
  int group, unit, slot = 0;
  bool has_zeros = false;
  Tile tiles[K::kTiles];

  __device__ void begin_group() {
    const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    const Place place = place_of<K>(args, plan, group);
    has_zeros = args.matrix[place.matrix].zero_points != nullptr;
#pragma unroll
    for (int t = 0; t < K::kTiles; ++t) {
      const GpuMatrix& matrix = args.matrix[args.swiglu ? t / K::kPairs : place.matrix];
      // A tile behind the last one repeats it; its outputs are not written.
      const int tile =
          min(place.first_tile + (args.swiglu ? t % K::kPairs : t), plan.last_tile[place.matrix]);
      const char* const weight = static_cast<const char*>(matrix.weight);
      if constexpr (K::kBits == 16) {
        const int last = static_cast<int>(matrix.out) - 1, in = static_cast<int>(args.in);
        const int64_t row = min(tile * 16 + g, last), row8 = min(tile * 16 + g + 8, last);
        const int first = unit * K::kInputs + 8 * c;
        tiles[t].codes = weight + (row * in + first) * 2;
        tiles[t].codes8 = weight + (row8 * in + first) * 2;
      } else {
        tiles[t].codes = weight + static_cast<int64_t>(tile) * plan.tile_bytes +
                         unit * (K::kLoads * kPieceBytes) + threadIdx.x % 32 * 16;
        const int64_t first =
            static_cast<int64_t>(tile) * plan.tile_groups_bytes + unit * (K::kGroups * 32) + g * 4;
        tiles[t].scales = static_cast<const char*>(matrix.scales) + first;
        if (has_zeros) tiles[t].zeros = static_cast<const char*>(matrix.zero_points) + first;
      }
    }
  }

  // What is left of the group comes closer while the predecessor is at work.
  __device__ void ask_for_rest() const {
    if (group >= plan.groups) return;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int t = 0; t < K::kTiles; ++t) {
      const char *codes = tiles[t].codes, *codes8 = tiles[t].codes8;
#pragma unroll 1
      for (int u = unit; u < plan.units; u += warps) {
        if constexpr (K::kBits == 16) {
          if (lane % 4 == 0) ask_for_line(codes), ask_for_line(codes8);
          codes += warps * K::kInputs * 2, codes8 += warps * K::kInputs * 2;
        } else {
          if (lane % 8 == 0) {
#pragma unroll
            for (int i = 0; i < K::kLoads; ++i) ask_for_line(codes + i * kPieceBytes);
          }
          codes += warps * K::kLoads * kPieceBytes;
        }
      }
    }
  }

  __device__ void next() {
    if (group < plan.groups) {
#pragma unroll
      for (int t = 0; t < K::kTiles; ++t) {
        fetch_unit<K>(tiles[t], ring + (slot * K::kTiles + t) * K::kUnitBytes, has_zeros, unit,
                      static_cast<int>(args.in));
        const int step = K::kBits == 16 ? warps * K::kInputs * 2 : warps * K::kLoads * kPieceBytes;
        tiles[t].codes += step;
        if constexpr (K::kBits == 16) {
          tiles[t].codes8 += step;
        } else {
          tiles[t].scales += warps * K::kGroups * 32;
          if (has_zeros) tiles[t].zeros += warps * K::kGroups * 32;
        }
      }
      unit += warps;
      if (unit >= plan.units) {
        unit = warp;
        group += gridDim.x;
        if (group < plan.groups) begin_group();
      }
    }
    commit_copies();
    slot = slot + 1 == plan.slots ? 0 : slot + 1;
  }
};

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
      if constexpr (K::kBits == 4)
        sums[block] = with_neighbour(with_neighbour(sum_of_eight(x.data[b][block]), 1), 2);
    }
    if constexpr (K::kBits == 4) {
#pragma unroll
      for (int group = 0; group < K::kGroups; ++group) {
        const float sum = K::kFine ? sums[group] : (sums[0] + sums[1]) + (sums[2] + sums[3]);
        x.sums[b][group][0] = __shfl_sync(0xffffffffu, sum, 8 * c);
        x.sums[b][group][1] = __shfl_sync(0xffffffffu, sum, 8 * c + 4);
      }
    }
  }
}

// More threads than a block has, where kernels that follow each other are to share a multiprocessor's
// registers: five blocks of gate and up; the products of one row, of which the next waits beside the last.
template <class K>
constexpr int kBound = K::kTiles == 2 && K::kRowBlocks == 1 && K::kShared ? 640
                       : K::kOneRow && !K::kFine                          ? 896
                                                                          : kMostWarps * 32;

template <class K>
__global__ void __launch_bounds__(kBound<K>, 1)
    decode_kernel(const __grid_constant__ GpuDecodeArgs args, const __grid_constant__ Plan plan) {
  extern __shared__ __align__(16) char shared[];
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
  const int in = static_cast<int>(args.in), rows = K::kOneRow ? 1 : static_cast<int>(args.rows);
  const Room room = room_of<K>(warps, plan.slots, rows, 0);

  Fetcher<K> fetcher{args,
                     plan,
                     warp,
                     warps,
                     shared + warp * plan.slots * K::kTiles * K::kUnitBytes,
                     warp < plan.units ? static_cast<int>(blockIdx.x) : plan.groups,
                     warp};
  if (fetcher.group < plan.groups) fetcher.begin_group();
#pragma unroll 1
  for (int i = 0; i < K::kAhead; ++i) fetcher.next();
  NormPieces norm;
  if constexpr (K::kOneRow) {
    if (args.hidden) norm = read_norm(args);
  }
  fetcher.ask_for_rest();

  // What is added to an output.
  struct Addends {
    float bias, old;
  };
  const int outputs = (args.swiglu ? K::kPairs : K::kTiles) * kTileOutputs;  // of a group
  auto addends_of = [&](int group, int output, int row) {
    Addends addends = {};
    if (output >= outputs) return addends;
    const Place place = place_of<K>(args, plan, group);
    const GpuMatrix& matrix = args.matrix[place.matrix];
    const int64_t n = place.first_tile * kTileOutputs + output;
    if (n >= matrix.out) return addends;
    if (matrix.bias) addends.bias = matrix.bias[n];
    if (matrix.add_to) addends.old = matrix.add_to[row * matrix.out + n];
    return addends;
  };

  // Behind q, k and v comes attention, which reads what is older than they are.
  const bool is_early = args.swiglu || args.matrix[0].add_to;
  if (is_early) let_successor_begin();
  wait_for_predecessor();
  if (!is_early) let_successor_begin();

  SharedX in_shared{reinterpret_cast<uint16_t*>(shared + room.x)};
  in_shared.sums = reinterpret_cast<float*>(in_shared.x + rows * shared_stride(in));
  in_shared.squares = in_shared.sums + rows * sums_stride(in);
  [[maybe_unused]] Addends addends = {};  // of this thread's output of the one row
  if constexpr (K::kOneRow) {
    addends = addends_of(blockIdx.x, threadIdx.x, 0);
    prepare_row<K>(args, norm, in_shared);
  } else if constexpr (K::kShared) {
    prepare_rows<K>(args, in_shared);
  }

  int slot = 0, turn = 0;
#pragma unroll 1
  for (int group = blockIdx.x; group < plan.groups; group += gridDim.x, turn ^= 1) {
    const Place place = place_of<K>(args, plan, group);
    const GpuMatrix& matrix = args.matrix[place.matrix];
    const bool has_zeros = matrix.zero_points != nullptr;
    const uint32_t middle = 0x10001u << (args.bits - 1);
    float total[K::kTiles][K::kRowBlocks][4] = {};
    const uint4* x_at =
        reinterpret_cast<const uint4*>(in_shared.x + min(g, rows - 1) * shared_stride(in) + 8 * c) +
        warp * (K::kInputs / 8);
    const float* sums_at = in_shared.sums + min(2 * c, rows - 1) * sums_stride(in) + warp * K::kGroups;
    const int next_row = 2 * c + 1 < rows ? sums_stride(in) : 0;
#pragma unroll 1
    for (int unit = warp; unit < plan.units; unit += warps) {
      X<K> x;
      if constexpr (K::kShared) {
#pragma unroll
        for (int block = 0; block < K::kBlocks; ++block) x.data[0][block] = x_at[block * (kBlockInputs / 8)];
        x_at += warps * (K::kInputs / 8);
        if constexpr (K::kBits == 4) {
#pragma unroll
          for (int i = 0; i < K::kGroups; ++i)
            x.sums[0][i][0] = sums_at[i], x.sums[0][i][1] = sums_at[i + next_row];
          sums_at += warps * K::kGroups;
        }
      } else {
        read_x_from_memory<K>(args, unit, x);
      }
      wait_for_copies<K::kAhead - 1>();
      Loaded<K> now[K::kTiles];
#pragma unroll
      for (int t = 0; t < K::kTiles; ++t)
        read_unit<K>(fetcher.ring + (slot * K::kTiles + t) * K::kUnitBytes, has_zeros, middle, now[t]);
      multiply_unit<K>(now, x, total);
      fetcher.next();
      slot = slot + 1 == plan.slots ? 0 : slot + 1;
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
    auto factor_of = [&](int row) {
      if (args.factors) return args.factors[row];
      return args.hidden ? norm_factor(in_shared.squares + row * squares_stride(in), in, args.epsilon) : 1.0f;
    };
    [[maybe_unused]] float factor = 1;
    if constexpr (K::kOneRow) {
      if (static_cast<int>(threadIdx.x) < outputs) factor = factor_of(0);
    }
    __syncthreads();  // the next group's sums go to the other half
    constexpr int kOutputs = K::kTiles * kTileOutputs;
    auto sum_of = [&](int output, int row) {
      float value = 0;
#pragma unroll 4
      for (int w = 0; w < warps; ++w) value += partial[(w * kOutputs + output) * rows + row];
      return value;
    };
    auto finish = [&](int output, int row, float factor, const Addends& addends) {
      const int64_t n = place.first_tile * kTileOutputs + output;
      if (n >= matrix.out || output >= outputs) return;
      float value = sum_of(output, row) * factor + addends.bias;
      if (args.swiglu) {
        // As rounded as if both had been written.
        const float* const bias = args.matrix[1].bias;
        const float up = sum_of(output + K::kPairs * kTileOutputs, row) * factor + (bias ? bias[n] : 0.0f);
        value = silu_times(bf16_to_f32(f32_to_bf16(value)), bf16_to_f32(f32_to_bf16(up)));
      }
      const int64_t at = row * matrix.out + n;
      if (matrix.add_to) {
        matrix.add_to[at] = addends.old + value;
      } else {
        store_output(matrix, at, value);
      }
    };
    if constexpr (K::kOneRow) {
      if (static_cast<int>(threadIdx.x) < outputs) finish(threadIdx.x, 0, factor, addends);
      if (group + gridDim.x < plan.groups) addends = addends_of(group + gridDim.x, threadIdx.x, 0);
    } else {
#pragma unroll 1
      for (int i = threadIdx.x; i < kOutputs * rows; i += blockDim.x)
        finish(i % kOutputs, i / kOutputs, factor_of(i / kOutputs),
               addends_of(group, i % kOutputs, i / kOutputs));
    }
  }
}

// Of the device that is current at the first launch: all are used as it is.
struct Device {
  int multiprocessors = 0, shared_per_block = 0;
};
const Device& device() {
  static const Device found = [] {
    Device device;
    int index = 0;
    cudaGetDevice(&index);
    cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, index);
    cudaDeviceGetAttribute(&device.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
    return device;
  }();
  return found;
}

int64_t tiles_of(const GpuDecodeArgs& args) {
  int64_t tiles = 0;
  for (int i = 0; i < args.matrices; ++i) tiles += tile_count(args.matrix[i].out);
  return tiles;
}

template <class K>
Plan plan_of(const GpuDecodeArgs& args) {
  Plan plan{};
  plan.units = static_cast<int>((args.in + K::kInputs - 1) / K::kInputs);
  for (int i = 0; i < kMostMatrices; ++i) {
    plan.first_group[i] = i < args.matrices || i == 0 ? plan.groups : INT_MAX;
    if (i >= args.matrices) continue;
    const int tiles = static_cast<int>(tile_count(args.matrix[i].out));
    const int together = args.swiglu ? K::kPairs : K::kTiles;
    plan.last_tile[i] = tiles - 1;
    if (!args.swiglu || i == 0) plan.groups += (tiles + together - 1) / together;
  }
  if (K::kBits != 16) {
    plan.tile_bytes = static_cast<int>(piece_count(args.in, K::kBits) * kPieceBytes);
    plan.tile_groups_bytes =
        static_cast<int>(kept_groups(args.in, K::kFine ? kBlockInputs : kUnitInputs) * 32);
  }
  return plan;
}

// Blocks that a multiprocessor runs at once. The driver takes longer to say it than a launch takes.
template <class K>
int blocks_at_once(int warps, int shared_bytes) {
  static std::mutex mutex;
  static std::map<std::pair<int, int>, int> known;
  const std::lock_guard lock(mutex);
  int& blocks = known[{warps, shared_bytes}];
  if (blocks == 0) {
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, decode_kernel<K>, warps * 32,
                                                  static_cast<size_t>(shared_bytes));
    blocks = std::max(1, blocks);
  }
  return blocks;
}

template <class K>
void launch_kind(const GpuDecodeArgs& args, void* stream) {
  Plan plan = plan_of<K>(args);
  int warps = warps_of(args.in, tiles_of(args), K::kBits);
  plan.slots = K::kAhead;
  auto shared_bytes = [&] {
    return room_of<K>(warps, plan.slots, static_cast<int>(args.rows),
                      K::kShared ? shared_x_bytes(args.rows, args.in) : 0)
        .total;
  };
  while (warps > 1 && shared_bytes() > device().shared_per_block) warps /= 2;
  allow_shared_memory<decode_kernel<K>>(device().shared_per_block);
  prefer_shared_memory<decode_kernel<K>>();
  const int blocks =
      std::min(plan.groups, device().multiprocessors * blocks_at_once<K>(warps, shared_bytes()));
  if (blocks == plan.groups)
    plan.slots = std::min(K::kAhead, (plan.units + warps - 1) / warps);  // never used again

  launch(decode_kernel<K>, dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(warps * 32)),
         static_cast<size_t>(shared_bytes()), stream, args, plan);
}

// Whether x of so many rows has room beside the rings, whatever kernel of up to eight rows takes it.
template <int kBits, bool kFine>
bool has_room_for_x(int64_t rows, int64_t in) {
  return rows <= 8 && room_of<Kind<kBits, kFine, 2, 1, true>>(
                          warps_of(in, 1, kBits), Kind<kBits, kFine, 2, 1, true>::kAhead,
                          static_cast<int>(rows), shared_x_bytes(rows, in))
                              .total <= device().shared_per_block;
}

// More tiles in a block read x less often; but all processors of the GPU are to have a block.
template <int kBits, bool kFine>
void launch_for_rows(const GpuDecodeArgs& args, void* stream) {
  if (args.rows > 16) return launch_kind<Kind<kBits, kFine, 1, 4, false>>(args, stream);
  if (args.rows > 8) return launch_kind<Kind<kBits, kFine, 2, 2, false>>(args, stream);
  if (!has_room_for_x<kBits, kFine>(args.rows, args.in))
    return launch_kind<Kind<kBits, kFine, 2, 1, false>>(args, stream);
  if (args.rows > 1) return launch_kind<Kind<kBits, kFine, 2, 1, true>>(args, stream);
  if (args.swiglu) return launch_kind<Kind<kBits, kFine, 2, 1, true, true>>(args, stream);
  return launch_kind<Kind<kBits, kFine, 1, 1, true, true>>(args, stream);
}

constexpr bool is_fine(int64_t group_size) { return group_size == kBlockInputs; }

}  // namespace

bool prepares_in_decode(int64_t rows, int64_t in, int bits, int64_t group_size) {
  if (!fits_gpu_decode(in, bits, group_size)) return false;
  if (bits == 16) return has_room_for_x<16, false>(rows, in);
  if (bits == 8)
    return is_fine(group_size) ? has_room_for_x<8, true>(rows, in) : has_room_for_x<8, false>(rows, in);
  return is_fine(group_size) ? has_room_for_x<4, true>(rows, in) : has_room_for_x<4, false>(rows, in);
}

void gpu_matmul_decode(const GpuDecodeArgs& args, void* stream) {
  if (args.bits == 16) return launch_for_rows<16, false>(args, stream);
  if (args.bits == 8) {
    return is_fine(args.group_size) ? launch_for_rows<8, true>(args, stream)
                                    : launch_for_rows<8, false>(args, stream);
  }
  return is_fine(args.group_size) ? launch_for_rows<4, true>(args, stream)
                                  : launch_for_rows<4, false>(args, stream);
}

}  // namespace lowbit
