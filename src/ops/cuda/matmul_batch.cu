// The product of two to 32 rows on Hopper: decoding several sequences. x of all rows lies in shared memory,
// normed on the way where that is asked for. Up to eight rows are multiplied by mma.sync, more by wgmma,
// whose second operand the tensor cores read there themselves; codes become the first operand in registers,
// 16 outputs for a warp.
//
// Where outputs are few, a block has eight tiles of them and two warps share a tile's inputs; the blocks of a
// cluster share the inputs once more (Split). Every warp sends its sums to the block whose outputs they are.
// Where they are many (kMany), a block has all inputs, and goes from group to group of tiles.
#include "ops/cuda/cluster.cuh"
#include "ops/cuda/matmul_batch.h"
#include "ops/cuda/matmul_fetch.cuh"
#include "ops/cuda/wgmma.cuh"

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
  static constexpr int kSumsOfUnit = kBits_ != 4 ? 0 : 1;  // of 128 inputs of x
};

// Bytes in shared memory.
struct Room {
  int partial, x, of_blocks, squares_of_blocks, sums, squares, factors, received, old, barrier, total;
};
// x of up to eight rows: [row][stride] BF16. Two rows are 64 bytes apart in the banks.
__host__ __device__ constexpr int row_stride(int units) { return units * kUnitInputs + 32; }
// The tiles that a block's sums are sent to it for: of each four, one of the first half of the group and one
// of the second.
constexpr int kUnitsOfOutput = kFewTiles / 2;
__host__ __device__ constexpr int owned_units(int rank, int blocks) {
  return (kUnitsOfOutput - rank + blocks - 1) / blocks;
}
template <class K>
constexpr int kPairsOfUnit = K::kRowBlocks * 64;  // float2, of one of its two tiles

// Many outputs: sums that warps give each other, a float for each lane. [tile warp][span][of a thread], or
// with wgmma [two groups in turn][tile of the second half][of a thread].
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
  room.squares = room.sums + most * K::kSumsOfUnit * K::kRows * 4;
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

// total += the product of a warp's tiles over a unit.
template <class K>
__device__ inline void multiply_by_mma(const Loaded<K> (&now)[K::kTiles], const UnitOfX& unit, int stride,
                                       float (&total)[K::kTiles][1][4]) {
  const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
  X<K> x;
  const uint4* const from = reinterpret_cast<const uint4*>(unit.at + (g * stride + 8 * c) * 2);
#pragma unroll
  for (int block = 0; block < K::kBlocks; ++block) x.data[0][block] = from[block * (kBlockInputs / 8)];
  if constexpr (K::kBits == 4) {
#pragma unroll
    for (int i = 0; i < K::kGroups; ++i) {
      read_sums<K>(unit.sums, 2 * c, i, x.sums[0][i]);
    }
  }
  multiply_unit<K>(now, x, total);
}
// A unit is made operands of as a whole; until the products are done, nothing else may take their registers.
template <class K>
__device__ inline void multiply_by_wgmma(const Loaded<K>& unit, const UnitOfX& x,
                                         float (&total)[K::kRowBlocks][4]) {
  constexpr uint32_t upper = piece_upper(128);
  constexpr int kSteps = 2 * K::kBlocks, kGroupSteps = K::kGroups > 1 ? kSteps / K::kGroups : kSteps;
  const int c = threadIdx.x % 4;
#pragma unroll
  for (int group = 0; group < kSteps / kGroupSteps; ++group) {
    const uint32_t zeros = unit.zeros[group];
    Operand a[kGroupSteps];
#pragma unroll
    for (int i = 0; i < kGroupSteps; ++i)
      a[i] = operand<K>(unit.data, group * kGroupSteps + i, 8388608.0f + static_cast<float>(zeros & 0xffffu),
                        8388608.0f + static_cast<float>(zeros >> 16));
    float own[K::kRowBlocks][4] = {};
    auto& sum = K::kBits == 16 ? total : own;
    begin_products();
#pragma unroll
    for (int i = 0; i < kGroupSteps; ++i)
      multiply_few(sum, a[i], with_upper(x.operand + (group * kGroupSteps + i) * (2 * K::kRows), upper),
                   K::kBits == 16 || i > 0);
    commit_products();
    wait_for_products<0>();
    pin(sum);
    if constexpr (K::kBits != 16) {
#pragma unroll
      for (int b = 0; b < K::kRowBlocks; ++b) {
        float x_sums[2] = {};
        if constexpr (K::kBits == 4) read_sums<K>(x.sums, b * 8 + 2 * c, group, x_sums);
        fold<K>(total[b], sum[b], x_sums, unit.scale[group], zeros);
      }
    }
  }
}

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
      } else if (y.dtype == DType::kF32) {
        static_cast<float*>(y.data)[at] = values[i];
      } else {
        static_cast<uint16_t*>(y.data)[at] = f32_to_bf16(values[i]);
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
// becomes outputs. span: of the warp, or -1.
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

template <class K>
__global__ void __launch_bounds__(K::kThreads, 1)
    batch_kernel(const __grid_constant__ GpuDecodeArgs args, const __grid_constant__ Plan plan,
                 const __grid_constant__ Room room) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(128) char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  const int in = static_cast<int>(args.in), rows = static_cast<int>(args.rows);
  const int parts = plan.split.parts, spans = plan.split.spans();
  const int blocks = K::kMany ? 1 : plan.split.blocks, rank = static_cast<int>(blockIdx.x) % blocks;
  const int part = warp / K::kTileWarps;

  // Spans of the block, and of them those of the warp.
  const int block_span = rank * parts, first_span = block_span + part * parts / K::kParts,
            end_span = block_span + (part + 1) * parts / K::kParts;
  const int block_begin = first_unit<K>(in, block_span, spans),
            block_end = first_unit<K>(in, block_span + parts, spans);
  const Share share{static_cast<int>(blockIdx.x) / blocks, static_cast<int>(gridDim.x) / blocks,
                    warp % K::kTileWarps, first_unit<K>(in, first_span, spans),
                    first_unit<K>(in, end_span, spans)};
  constexpr int kUnitsOf128 = kUnitInputs / K::kInputs;
  const int first_of_x = block_begin / kUnitsOf128,
            units_of_x = (block_end - block_begin + kUnitsOf128 - 1) / kUnitsOf128;

  char* const x = shared + room.x;
  float* const sums = reinterpret_cast<float*>(shared + room.sums);        // [unit or 32 inputs][row]
  float* const squares = reinterpret_cast<float*>(shared + room.squares);  // [unit, of all][row]
  const Exchange<K> exchange{args,
                             place_of<K>(args, plan, share.group),
                             rank,
                             blocks,
                             spans,
                             reinterpret_cast<float2*>(shared + room.received),
                             reinterpret_cast<uint64_t*>(shared + room.barrier)};
  const int items = K::kMany ? 0 : owned_units(rank, blocks) * Exchange<K>::kItems;
  if (blocks > 1) {
    if (threadIdx.x == 0) {
      const int others = (in + kUnitInputs - 1) / kUnitInputs - units_of_x;  // units that they have
      expect_bytes(exchange.barrier, spans * items * 2 * static_cast<int>(sizeof(float2)) +
                                         (args.hidden ? others * K::kRows * 4 : 0));
    }
    arrive_in_cluster();
  }
  Fetcher<K, !K::kMany> fetcher(args, plan, share, shared);

  wait_for_predecessor();

  float(*const old)[2] = reinterpret_cast<float(*)[2]>(shared + room.old) + threadIdx.x * 2;
  if constexpr (!K::kMany) {  // they come with the next unit's copies
    if (static_cast<int>(threadIdx.x) < items) {
      const OutputPair outputs = exchange.outputs(threadIdx.x);
      outputs.first.fetch_old(exchange.row_of(threadIdx.x), rows, old[0]);
      if (!args.swiglu) outputs.second.fetch_old(exchange.row_of(threadIdx.x), rows, old[1]);
    }
  }
  float* const sums_of_blocks = reinterpret_cast<float*>(shared + room.of_blocks);
  float* const squares_of_blocks = reinterpret_cast<float*>(shared + room.squares_of_blocks);
  if (args.hidden) {
    stage_x<K, true>(args, first_of_x, units_of_x, x, sums_of_blocks, squares_of_blocks);
  } else {
    stage_x<K, false>(args, first_of_x, units_of_x, x, sums_of_blocks, nullptr);
  }
  if constexpr (K::kWgmma) show_to_products();
  __syncthreads();
  if (K::kBits == 4 && !K::kFine) join_sums<K>(sums_of_blocks, units_of_x, sums);
  if (args.hidden) join_sums<K>(squares_of_blocks, units_of_x, squares + first_of_x * K::kRows);
  if (K::kBits == 4 || args.hidden) __syncthreads();
  let_successor_begin();
  if (blocks > 1) wait_for_cluster();  // all have begun: they may be sent to
  float* const own_factors = reinterpret_cast<float*>(shared + room.factors);
  const float* const factors = args.hidden ? own_factors : args.factors;
  if (args.hidden) {
    if constexpr (K::kMany) {
      find_factors<K>(args, squares, own_factors);
    } else if (blocks > 1) {
      send_squares<K>(squares, first_of_x, units_of_x, rank, blocks, exchange.barrier);
    }
  }

  const uint32_t x_operand = piece_lower(shared_address(x), K::kRows * 16);
  const int stride = row_stride(units_of_x);
  const uint32_t middle = 0x10001u << (args.bits - 1);
  char* slot = fetcher.ring;
  int turn = 0;
#pragma unroll 1
  for (int group = share.group; group < plan.groups; group += share.stride, turn ^= 1) {
    const Place place = place_of<K>(args, plan, group);
    const bool has_zeros = args.matrix[place.matrix].zero_points != nullptr;
    float* const partial = reinterpret_cast<float*>(shared + room.partial) + lane +
                           (K::kWgmma ? turn * (partial_floats<K> / 2) : 0);
    float sum[K::kTiles][K::kRowBlocks][4] = {};
    float total[K::kTiles][K::kRowBlocks][4] = {};
    auto read_next = [&](Loaded<K>(&next)[K::kTiles]) {
      wait_for_copies<K::kAhead - 1>();
#pragma unroll
      for (int t = 0; t < K::kTiles; ++t) read_unit<K>(slot + t * K::kUnitBytes, has_zeros, middle, next[t]);
      slot = fetcher.following(slot);
    };
    int span = first_span, end_of_span = first_unit<K>(in, span + 1, spans);
#pragma unroll 1
    for (int unit = share.begin; unit < share.end; ++unit) {
      const int i = unit - block_begin;
      const UnitOfX unit_of_x{x + i * K::kInputs * 2, x_operand + i * (K::kInputs * K::kRows * 2 / 16),
                              (K::kFine ? sums_of_blocks : sums) + i * K::kRows * (K::kFine ? 4 : 1)};
      Loaded<K> now[K::kTiles];
      read_next(now);
      if constexpr (K::kWgmma) {
        fetcher.next();
        multiply_by_wgmma<K>(now[0], unit_of_x, total[0]);
      } else {
        multiply_by_mma<K>(now, unit_of_x, stride, total);
        fetcher.next();
      }
      if (unit + 1 < end_of_span) continue;
#pragma unroll
      for (int t = 0; t < K::kTiles; ++t) {
#pragma unroll
        for (int b = 0; b < K::kRowBlocks; ++b) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if constexpr (K::kMany && !K::kWgmma) {
              partial[(((share.tile * kMostParts + span) * K::kTiles + t) * 4 + j) * 32] = total[t][b][j];
            } else {
              sum[t][b][j] += total[t][b][j];
            }
            total[t][b][j] = 0;
          }
        }
      }
      end_of_span = first_unit<K>(in, ++span + 1, spans);
    }

    if constexpr (!K::kMany) {
      if (first_span < end_span) exchange.send_sums(first_span, share.tile, sum[0]);
      const OutputPair first_outputs = exchange.outputs(threadIdx.x);
      wait_for_copies<0>();
      if (blocks > 1) {
        wait_for_bytes(exchange.barrier);
      } else {
        __syncthreads();
      }
      if (args.hidden) {
        find_factors<K>(args, squares, own_factors);
        __syncthreads();
      }
#pragma unroll 1
      for (int item = threadIdx.x; item < items; item += K::kThreads) {
        const int row = exchange.row_of(item);
        const bool is_first = item < K::kThreads;
        float2 all[2];
        float factor[2];
        exchange.add_up(item, parts, all);
        read_factors(factors, row, rows, factor);
        (is_first ? first_outputs : exchange.outputs(item))
            .write(args.swiglu, row, rows, factor, all[0], all[1], is_first ? old[0] : nullptr);
      }
    } else if constexpr (K::kWgmma) {
      // A warp and that of the tile's partner give each other the half of the rows that the other one writes.
      constexpr int kHalf = K::kGroupTiles / 2, kBlocks = K::kRowBlocks / 2;
      const bool is_second = share.tile >= kHalf;
      const int tile = is_second ? share.tile - kHalf : share.tile;
      float* const given = partial + (tile * 2 + (is_second ? 0 : 1)) * (kBlocks * 4 * 32);
      const float* const got = partial + (tile * 2 + (is_second ? 1 : 0)) * (kBlocks * 4 * 32);
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
        for (int j = 0; j < 4; ++j)
          given[(b * 4 + j) * 32] = is_second ? sum[0][b][j] : sum[0][kBlocks + b][j];
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
          first[b][j] = is_second ? other : sum[0][b][j];
          second[b][j] = is_second ? sum[0][kBlocks + b][j] : other;
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
    } else {
      __syncthreads();
      float2 all[2] = {};  // each part writes eight outputs of each tile
      for (int span = 0; span < parts; ++span) {
#pragma unroll
        for (int t = 0; t < 2; ++t) {
          const float* const from =
              partial + (((share.tile * kMostParts + span) * 2 + t) * 4 + 2 * part) * 32;
          all[t].x += from[0], all[t].y += from[32];
        }
      }
      float factor[2];
      read_factors(factors, 2 * c, rows, factor);
      OutputPair::of<K>(args, place, share.tile, g + part * 8)
          .write(args.swiglu, 2 * c, rows, factor, all[0], all[1]);
      if (group + share.stride < plan.groups) __syncthreads();  // before the next sums
    }
  }
#endif
}

template <class K>
void launch_kind(const GpuDecodeArgs& args, void* stream) {
  Plan plan = plan_of<K>(args);
  plan.slots = K::kMany ? K::kAhead : std::min(K::kAhead, most_units<K>(args.in, plan.split.spans()));
  const Room room = room_of<K>(args.in, plan.split, plan.slots, args.hidden != nullptr);
  constexpr auto kKernel = batch_kernel<K>;
  allow_shared_memory<kKernel>(device().shared_per_block);
  prefer_shared_memory<kKernel>();
  int blocks = plan.groups * plan.split.blocks, bytes = room.total;
  if (!K::kWgmma && blocks <= device().multiprocessors)  // none is to have two of them
    bytes = std::max(bytes, device().shared_per_multiprocessor / 2 - device().reserved_shared + 16);
  if (K::kMany)
    blocks = std::min(blocks, device().multiprocessors * blocks_at_once<kKernel>(K::kWarps, bytes));
  launch_clusters(kKernel, dim3(static_cast<unsigned>(blocks)), static_cast<unsigned>(plan.split.blocks),
                  dim3(K::kThreads), static_cast<size_t>(bytes), stream, args, plan, room);
}

template <int kBits, bool kFine, int kRowBlocks>
bool has_room(int64_t in, const Split& split, bool is_many, bool has_hidden) {
  using Many = BatchKind<kBits, kFine, kRowBlocks, true>;
  using Few = BatchKind<kBits, kFine, kRowBlocks, false>;
  const int bytes = is_many ? room_of<Many>(in, split, Many::kAhead, has_hidden).total
                            : room_of<Few>(in, split, Few::kAhead, has_hidden).total;
  return bytes <= device().shared_per_block;
}

GpuDecodeArgs rows_of(GpuDecodeArgs args, int64_t first, int64_t count) {
  args.rows = count;
  if (args.x) args.x += first * args.in;
  if (args.hidden) args.hidden += first * args.in;
  if (args.factors) args.factors += first;
  for (GpuMatrix& matrix : args.matrix) {
    if (matrix.add_to) matrix.add_to += first * matrix.out;
    if (matrix.y.data) matrix.y = matrix.y.from(first * matrix.out);
  }
  return args;
}

template <int kBits, bool kFine>
bool launch_for(const GpuDecodeArgs& args, void* stream) {
  const int64_t tiles = tiles_of(args);
  const bool is_many = has_many_tiles(tiles);
  const Split split = split_of(args.in, tiles);
  auto fits = [&]<int kRowBlocks>() {
    return has_room<kBits, kFine, kRowBlocks>(args.in, split, is_many, args.hidden != nullptr);
  };
  if (!fits.template operator()<1>()) return false;
  const int64_t most = fits.template operator()<4>() ? 32 : fits.template operator()<2>() ? 16 : 8;
  for (int64_t row = 0; row < args.rows; row += most) {
    const GpuDecodeArgs some = rows_of(args, row, std::min(most, args.rows - row));
    auto launch_rows = [&]<int kRowBlocks>() {
      if (is_many) {
        launch_kind<BatchKind<kBits, kFine, kRowBlocks, true>>(some, stream);
      } else {
        launch_kind<BatchKind<kBits, kFine, kRowBlocks, false>>(some, stream);
      }
    };
    if (some.rows > 16) {
      launch_rows.template operator()<4>();
    } else if (some.rows > 8) {
      launch_rows.template operator()<2>();
    } else {
      launch_rows.template operator()<1>();
    }
  }
  return true;
}

}  // namespace

bool gpu_matmul_batch(const GpuDecodeArgs& args, void* stream) {
  if (!device().has_wgmma) return false;
  return with_kind(args.bits, args.group_size,
                   [&]<int kBits, bool kFine>() { return launch_for<kBits, kFine>(args, stream); });
}

bool fits_gpu_batch(int64_t in, int64_t tiles, int bits, int64_t group_size) {
  if (!device().has_wgmma || !fits_gpu_decode(in, bits, group_size)) return false;
  return with_kind(bits, group_size, [&]<int kBits, bool kFine>() {
    return has_room<kBits, kFine, 1>(in, split_of(in, tiles), has_many_tiles(tiles), true);
  });
}

bool norms_in_batch(int64_t rows, int64_t tiles) { return rows <= 8 || !has_many_tiles(tiles); }

}  // namespace lowbit
