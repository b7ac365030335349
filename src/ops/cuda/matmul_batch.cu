// The product of two to 32 rows on Hopper: decoding several sequences. Codes become the first operand of
// wgmma in registers, 16 outputs for each warp; the second one, x of all rows, lies in shared memory, where
// the tensor cores read it themselves.
//
// Where outputs are few, a block has four tiles of them, and its four warpgroups a part of the inputs each;
// the blocks of a cluster share the inputs once more (Split) and send each other their sums. Where they are
// many (kWide), three warpgroups have four tiles each over all inputs, and a block goes from group to group.
#include "ops/cuda/cluster.cuh"
#include "ops/cuda/hopper.cuh"
#include "ops/cuda/matmul_batch.h"
#include "ops/cuda/matmul_fetch.cuh"

namespace lowbit {
namespace {

template <int kBits_, bool kFine_, int kRowBlocks_, bool kWide_>
struct BatchKind : Kind<kBits_, kFine_, 1, kRowBlocks_, true> {
  static constexpr bool kWide = kWide_;
  static constexpr int kRows = 8 * kRowBlocks_;  // with those that x is filled up with
  static constexpr int kWarps = kWide ? 12 : 4 * kMostParts, kThreads = kWarps * 32;
  static constexpr int kGroupTiles = kWide ? 12 : 4, kOutputs = kGroupTiles * kTileOutputs;
  // Units on their way: as many as 32 rows of x leave room for.
  static constexpr int kAhead = kWide             ? (kBits_ == 4   ? 4
                                                     : kBits_ == 8 ? 2
                                                                   : 3)
                                : kRowBlocks_ < 4 ? (kBits_ == 4   ? 5
                                                     : kBits_ == 8 ? 3
                                                                   : 4)
                                                  : (kBits_ == 4 ? 3 : 2);
  static constexpr int kSumsOfUnit = kBits_ != 4 ? 0 : kFine_ ? 4 : 1;  // of 128 inputs of x
  // Floats from row to row of sums in shared memory: the lanes of a warp write to different banks.
  static constexpr int kStride = kOutputs + 4;
};

// Bytes in shared memory. Where a block has one group, its sums take the rings' place.
struct Room {
  int partial, x, sums, squares, factors, received, barrier, total;
};
template <class K>
Room room_of(int64_t in, const Split& split, int slots, bool has_hidden) {
  const int units = static_cast<int>((in + kUnitInputs - 1) / kUnitInputs);
  const int most = K::kWide ? units : (units + split.blocks - 1) / split.blocks;  // of a block
  const int ring = K::kWarps * slots * K::kUnitBytes;
  const int partial = (K::kWide ? 1 : kMostParts) * K::kRows * K::kStride * 4;
  Room room{};
  room.partial = K::kWide ? ring : 0;
  room.x = K::kWide ? ring + partial : std::max(ring, partial);
  room.sums = room.x + most * kUnitInputs * K::kRows * 2;
  room.squares = room.sums + most * K::kSumsOfUnit * K::kRows * 4;
  room.factors = room.squares + (has_hidden ? units * K::kRows * 4 : 0);
  room.received = room.factors + K::kRows * 4;
  // A pair of sums of each block for each pair that is a block's own.
  const int pairs = (K::kRows * K::kOutputs / 2 + split.blocks - 1) / split.blocks;
  room.barrier = room.received + (split.blocks > 1 ? split.blocks * pairs * 8 : 0);
  room.total = room.barrier + 16;
  return room;
}

// x of all rows to shared memory, units [first, first + units) of 128 inputs, as wgmma wants it and in the
// order of fragments.h: of 32 inputs four pieces of kRows x 16 bytes, for each half of each of the two steps;
// a row's 16 bytes there are inputs 8 c + 2 i and 8 c + 2 i + 1, c = 0 ... 3, i the number of the piece.
// A warp has eight rows and a unit at a time; lane 4 r + c reads of each 32 inputs the eight from 8 c on.
template <class K>
__device__ inline void stage_x(const GpuDecodeArgs& args, int first, int units, char* x, float* sums,
                               float* squares) {
  constexpr int kBlocks = 4, kItems = K::kRowBlocks == 1 ? 1 : 2;
  const int in = static_cast<int>(args.in), rows = static_cast<int>(args.rows);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, c = lane % 4;
  const int items = units * K::kRowBlocks;
#pragma unroll 1
  for (int begin = warp; begin < items; begin += kItems * K::kWarps) {
    uint4 eights[kItems][kBlocks];
    float squared[kItems][kBlocks];
#pragma unroll
    for (int p = 0; p < kItems; ++p) {
      const int item = begin + p * K::kWarps, row = item % K::kRowBlocks * 8 + lane / 4;
      const int column = (first + item / K::kRowBlocks) * kUnitInputs + 8 * c;
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        const int i = column + b * kBlockInputs;
        const bool is_there = item < items && row < rows && i < in;
        eights[p][b] = {};
        squared[p][b] = 0;
        if (!is_there) continue;
        if (args.hidden) {
          const float* const from = args.hidden + static_cast<int64_t>(row) * in;
          const float4 low = read_four(from, args.column_order, i),
                       high = read_four(from, args.column_order, i + 4);
          const uint2 low_pairs = weighted(low, read_four(args.norm_weight, args.column_order, i)),
                      high_pairs = weighted(high, read_four(args.norm_weight, args.column_order, i + 4));
          eights[p][b] = {low_pairs.x, low_pairs.y, high_pairs.x, high_pairs.y};
          squared[p][b] = squares_of_four(low) + squares_of_four(high);
        } else {
          eights[p][b] = plain_eight(args, row, i);
        }
      }
    }
#pragma unroll
    for (int p = 0; p < kItems; ++p) {
      const int item = begin + p * K::kWarps, unit = item / K::kRowBlocks,
                row = item % K::kRowBlocks * 8 + lane / 4;
      if (item >= items) break;
      float added[kBlocks];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        char* const to = x + (unit * kBlocks + b) * (4 * K::kRows * 16) + row * 16 + c * 4;
#pragma unroll
        for (int i = 0; i < 4; ++i)
          *reinterpret_cast<uint32_t*>(to + i * (K::kRows * 16)) = word_of(eights[p][b], i);
        added[b] = sum_of_eight(eights[p][b]);
      }
      if constexpr (K::kBits == 4) {
        add_up<4>(added);
        if (c == 0) {
          if constexpr (K::kFine) {
#pragma unroll
            for (int b = 0; b < kBlocks; ++b) sums[(unit * kBlocks + b) * K::kRows + row] = added[b];
          } else {
            sums[unit * K::kRows + row] = (added[0] + added[1]) + (added[2] + added[3]);
          }
        }
      }
      if (args.hidden) {
        add_up<4>(squared[p]);
        if (c == 0)
          squares[(first + unit) * K::kRows + row] =
              (squared[p][0] + squared[p][1]) + (squared[p][2] + squared[p][3]);
      }
    }
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

// total += the product of a warp's tile over a unit; x: the unit's operand. meanwhile() while the tensor
// cores are at work.
template <class K, class Meanwhile>
__device__ inline void multiply_unit(const Loaded<K>& now, uint64_t x, const float* sums,
                                     float (&total)[K::kRowBlocks][4], const Meanwhile& meanwhile) {
  constexpr int kSteps = 2 * K::kBlocks, kGroupSteps = K::kGroups > 1 ? kSteps / K::kGroups : kSteps;
  const int c = threadIdx.x % 4;
#pragma unroll
  for (int group = 0; group < kSteps / kGroupSteps; ++group) {
    const uint32_t zeros = now.zeros[group];
    Operand a[kGroupSteps];
#pragma unroll
    for (int step = 0; step < kGroupSteps; ++step)
      a[step] =
          operand<K>(now.data, group * kGroupSteps + step, 8388608.0f + static_cast<float>(zeros & 0xffffu),
                     8388608.0f + static_cast<float>(zeros >> 16));
    float own[K::kRowBlocks][4] = {};
    auto& sum = K::kBits == 16 ? total : own;
    begin_products();
#pragma unroll
    for (int step = 0; step < kGroupSteps; ++step)
      queue_product(sum, a[step], moved(x, (group * kGroupSteps + step) * (2 * K::kRows * 16)),
                    K::kBits == 16 || step > 0);
    commit_products();
    if (group == 0) meanwhile();
    wait_for_products<0>(sum);
    if constexpr (K::kBits != 16) {
#pragma unroll
      for (int b = 0; b < K::kRowBlocks; ++b) {
        float x_sums[2] = {};
        if constexpr (K::kBits == 4) {
          const float2 pair = *reinterpret_cast<const float2*>(sums + group * K::kRows + b * 8 + 2 * c);
          x_sums[0] = pair.x, x_sums[1] = pair.y;
        }
        fold<K>(total[b], sum[b], x_sums, now.scale[group], zeros);
      }
    }
  }
}

// Two neighbours of a row's outputs, or with SwiGLU the same of gate and up.
struct Pair2 {
  int row, first, second;  // within the group
};
template <class K>
__device__ inline Pair2 pair_of(bool swiglu, int index) {
  const int row = index / (K::kOutputs / 2), i = index % (K::kOutputs / 2);
  if (swiglu) return {row, i, i + K::kOutputs / 2};
  return {row, 2 * i, 2 * i + 1};
}

template <class K>
__device__ inline void write_pair(const GpuDecodeArgs& args, const Place& place, int index, float2 sums,
                                  const float* factors) {
  const Pair2 pair = pair_of<K>(args.swiglu, index);
  const GpuMatrix& matrix = args.matrix[place.matrix];
  const int64_t n = place.first_tile * kTileOutputs + pair.first, at = pair.row * matrix.out + n;
  if (n >= matrix.out) return;
  const float factor = factors ? factors[pair.row] : 1;
  auto finished = [&](const GpuMatrix& of, float sum, int64_t output) {
    return sum * factor + (of.bias ? of.bias[output] : 0.0f);
  };
  auto write = [&](int64_t to, float value) {
    if (matrix.add_to) {
      matrix.add_to[to] += value;
    } else {
      store_output(matrix, to, value);
    }
  };
  const float first = finished(matrix, sums.x, n);
  if (args.swiglu) return write(at, gated(first, finished(args.matrix[1], sums.y, n)));
  if (n + 1 >= matrix.out) return write(at, first);
  const float second = finished(matrix, sums.y, n + 1);
  if (at % 2 != 0) {
    write(at, first);
    write(at + 1, second);
  } else if (matrix.add_to || matrix.y.dtype == DType::kF32) {
    float2* const to =
        reinterpret_cast<float2*>((matrix.add_to ? matrix.add_to : static_cast<float*>(matrix.y.data)) + at);
    const float2 old = matrix.add_to ? *to : float2{};
    *to = matrix.add_to ? float2{old.x + first, old.y + second} : float2{first, second};
  } else {
    *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(matrix.y.data) + at) = bf16_pair(first, second);
  }
}

template <class K>
__global__ void __launch_bounds__(K::kThreads, 1)
    batch_kernel(const __grid_constant__ GpuDecodeArgs args, const __grid_constant__ Plan plan,
                 const __grid_constant__ Room room) {
#if LOWBIT_HAS_WGMMA
  extern __shared__ __align__(128) char shared[];
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
  const int in = static_cast<int>(args.in), rows = static_cast<int>(args.rows);
  const int parts = plan.split.parts, spans = plan.split.spans();
  const int blocks = K::kWide ? 1 : plan.split.blocks, rank = static_cast<int>(blockIdx.x) % blocks;
  const int part = K::kWide ? 0 : warp / 4;

  // Spans of the block, and of them those of the warp.
  const int block_span = rank * parts, first_span = block_span + part;
  const int own_spans = K::kWide ? parts : part < parts ? 1 : 0;
  const int block_begin = first_unit<K>(in, block_span, spans),
            block_end = first_unit<K>(in, block_span + parts, spans);
  const Share share{static_cast<int>(blockIdx.x) / blocks, static_cast<int>(gridDim.x) / blocks,
                    K::kWide ? warp : warp % 4, own_spans ? first_unit<K>(in, first_span, spans) : 0,
                    own_spans ? first_unit<K>(in, first_span + own_spans, spans) : 0};

  float* const partial = reinterpret_cast<float*>(shared + room.partial);  // [part][row][kStride]
  char* const x = shared + room.x;
  float* const sums = reinterpret_cast<float*>(shared + room.sums);        // [unit or 32 inputs][row]
  float* const squares = reinterpret_cast<float*>(shared + room.squares);  // [unit, of all][row]
  float2* const received = reinterpret_cast<float2*>(shared + room.received);
  uint64_t* const barrier = reinterpret_cast<uint64_t*>(shared + room.barrier);
  const int pairs = rows * (K::kOutputs / 2), piece = (pairs + blocks - 1) / blocks;
  const int mine = max(0, min(piece, pairs - rank * piece));
  constexpr int kUnitsOf128 = kUnitInputs / K::kInputs;
  const int first_of_x = block_begin / kUnitsOf128,
            units_of_x = (block_end - block_begin + kUnitsOf128 - 1) / kUnitsOf128;
  if (blocks > 1) {
    const int others = (in + kUnitInputs - 1) / kUnitInputs - units_of_x;  // units that they have
    if (threadIdx.x == 0)
      expect_bytes(barrier, blocks * mine * 8 + (args.hidden ? others * K::kRows * 4 : 0));
    arrive_in_cluster();
  }
  Fetcher<K, !K::kWide> fetcher(args, plan, share, shared);

  follow_predecessor(args);

  stage_x<K>(args, first_of_x, units_of_x, x, sums, squares);
  publish_shared();
  __syncthreads();
  const float* factors = args.factors;
  if (blocks > 1) wait_for_cluster();  // all have begun: they may be sent to
  if (args.hidden) {
    float* const own_factors = reinterpret_cast<float*>(shared + room.factors);
    factors = own_factors;
    if (blocks > 1) {
      send_squares<K>(squares, first_of_x, units_of_x, rank, blocks, barrier);
    } else {
      find_factors<K>(args, squares, own_factors);
    }
  }

  const uint64_t x_operand = plain_operand(shared_address(x), K::kRows * 16, 128);
  const uint32_t middle = 0x10001u << (args.bits - 1);
  int slot = 0;
#pragma unroll 1
  for (int group = share.group; group < plan.groups; group += share.stride) {
    const Place place = place_of<K>(args, plan, group);
    const bool has_zeros = args.matrix[place.matrix].zero_points != nullptr;
    float sum[K::kRowBlocks][4] = {};
#pragma unroll 1
    for (int span = first_span; span < first_span + own_spans; ++span) {
      float total[K::kRowBlocks][4] = {};
#pragma unroll 1
      for (int unit = first_unit<K>(in, span, spans); unit < first_unit<K>(in, span + 1, spans); ++unit) {
        wait_for_copies<K::kAhead - 1>();
        Loaded<K> now;
        read_unit<K>(fetcher.ring + slot * K::kUnitBytes, has_zeros, middle, now);
        const int unit_of_x = unit - block_begin;
        multiply_unit<K>(now, moved(x_operand, unit_of_x * K::kInputs * (K::kRows * 2)),
                         sums + unit_of_x * (K::kSumsOfUnit * K::kRows), total, [&] { fetcher.next(); });
        slot = slot + 1 == plan.slots ? 0 : slot + 1;
      }
#pragma unroll
      for (int b = 0; b < K::kRowBlocks; ++b) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[b][j] += total[b][j];
      }
    }

    __syncthreads();  // the rings, or the group before, are done with
#pragma unroll
    for (int b = 0; b < K::kRowBlocks; ++b) {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        partial[(part * K::kRows + b * 8 + 2 * c + j % 2) * K::kStride + share.tile * kTileOutputs + g +
                j / 2 * 8] = sum[b][j];
    }
    __syncthreads();
    const int sharing = K::kWide ? 1 : parts;
#pragma unroll 1
    for (int i = threadIdx.x; i < pairs; i += K::kThreads) {
      const Pair2 pair = pair_of<K>(args.swiglu, i);
      const float* const of_row = partial + pair.row * K::kStride;
      float2 both = {};
#pragma unroll
      for (int p = 0; p < kMostParts; ++p) {
        if (p >= sharing) break;
        both.x += of_row[p * K::kRows * K::kStride + pair.first];
        both.y += of_row[p * K::kRows * K::kStride + pair.second];
      }
      if (blocks > 1) {
        send(received + rank * piece + i % piece, i / piece, both, barrier);
      } else {
        write_pair<K>(args, place, i, both, factors);
      }
    }
    if (blocks > 1) {
      wait_for_bytes(barrier);
      if (args.hidden) {
        find_factors<K>(args, squares, reinterpret_cast<float*>(shared + room.factors));
        __syncthreads();
      }
      for (int i = threadIdx.x; i < mine; i += K::kThreads) {
        float2 all = {};
        for (int block = 0; block < blocks; ++block) {
          const float2 some = received[block * piece + i];
          all.x += some.x, all.y += some.y;
        }
        write_pair<K>(args, place, rank * piece + i, all, factors);
      }
    }
  }
#endif
}

template <class K>
Room room_for(const GpuDecodeArgs& args, const Plan& plan) {
  return room_of<K>(args.in, plan.split, plan.slots, args.hidden != nullptr);
}

template <class K>
void launch_kind(const GpuDecodeArgs& args, void* stream) {
  Plan plan = plan_of<K>(args);
  plan.slots = K::kWide ? K::kAhead : std::min(K::kAhead, most_units<K>(args.in, plan.split.spans()));
  const Room room = room_for<K>(args, plan);
  constexpr auto kKernel = batch_kernel<K>;
  allow_shared_memory<kKernel>(device().shared_per_block);
  prefer_shared_memory<kKernel>();
  int blocks = plan.groups * plan.split.blocks;
  if (K::kWide)
    blocks = std::min(blocks, device().multiprocessors * blocks_at_once<kKernel>(K::kWarps, room.total));
  launch_clusters(kKernel, dim3(static_cast<unsigned>(blocks)), static_cast<unsigned>(plan.split.blocks),
                  dim3(K::kThreads), static_cast<size_t>(room.total), stream, args, plan, room);
}

template <int kBits, bool kFine, int kRowBlocks>
bool has_room(int64_t in, const Split& split, bool is_wide, bool has_hidden) {
  using Wide = BatchKind<kBits, kFine, kRowBlocks, true>;
  using Narrow = BatchKind<kBits, kFine, kRowBlocks, false>;
  const int bytes = is_wide ? room_of<Wide>(in, split, Wide::kAhead, has_hidden).total
                            : room_of<Narrow>(in, split, Narrow::kAhead, has_hidden).total;
  return bytes <= device().shared_per_block;
}

bool is_wide(int64_t tiles) { return tiles >= kWideTiles; }

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
  const Split split = split_of(args.in, tiles);
  auto fits = [&]<int kRowBlocks>() {
    return has_room<kBits, kFine, kRowBlocks>(args.in, split, is_wide(tiles), args.hidden != nullptr);
  };
  if (!fits.template operator()<1>()) return false;
  const int64_t most = fits.template operator()<4>() ? 32 : fits.template operator()<2>() ? 16 : 8;
  for (int64_t row = 0; row < args.rows; row += most) {
    const GpuDecodeArgs some = rows_of(args, row, std::min(most, args.rows - row));
    auto launch_rows = [&]<int kRowBlocks>() {
      if (is_wide(tiles)) {
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

bool fits_gpu_batch(int64_t in, int bits, int64_t group_size) {
  if (!device().has_wgmma || !fits_gpu_decode(in, bits, group_size)) return false;
  return with_kind(bits, group_size, [&]<int kBits, bool kFine>() {
    const Split whole{1, kMostParts};
    return has_room<kBits, kFine, 1>(in, whole, true, true) &&
           has_room<kBits, kFine, 1>(in, whole, false, true);
  });
}

}  // namespace lowbit
