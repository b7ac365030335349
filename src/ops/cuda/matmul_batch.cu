// The product of two to 32 rows on Hopper: decoding several sequences. x of all rows lies in shared memory,
// normed on the way where that is asked for. Up to eight rows are multiplied by mma.sync, more by wgmma,
// whose second operand the tensor cores read there themselves; codes become the first operand in registers,
// 16 outputs for a warp.
//
// Where outputs are few, a block has eight tiles of them and two warps share a tile's inputs; the blocks of a
// cluster share the inputs once more (Split). Every warp sends its sums to the block whose outputs they are.
// Where they are many (kMany), a block has all inputs, and goes from group to group of tiles.
#include "ops/cuda/matmul_batch.h"
#include "ops/cuda/matmul_batch_outputs.cuh"
#include "ops/cuda/matmul_batch_x.cuh"
#include "ops/cuda/wgmma.cuh"

namespace lowbit {
namespace {

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
    for (int i = 0; i < K::kGroups; ++i) read_sums<K>(unit.sums, 2 * c, i, x.sums[0][i]);
  }
  multiply_unit<K>(now, x, total);
}
// A unit is made operands of as a whole, and until the products are done nothing else is: the assembler does
// not keep the registers that they still read.
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

template <class K>
__global__ void __launch_bounds__(K::kThreads, 1)
    batch_kernel(const __grid_constant__ GpuDecodeArgs args, const __grid_constant__ Plan plan,
                 const __grid_constant__ Room room) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(128) char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
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
    int span = first_span, end_of_span = first_unit<K>(in, span + 1, spans);
#pragma unroll 1
    for (int unit = share.begin; unit < share.end; ++unit) {
      const int i = unit - block_begin;
      const UnitOfX unit_of_x{x + i * K::kInputs * 2, x_operand + i * (K::kInputs * K::kRows * 2 / 16),
                              (K::kFine ? sums_of_blocks : sums) + i * K::kRows * (K::kFine ? 4 : 1)};
      wait_for_copies<K::kAhead - 1>();
      Loaded<K> now[K::kTiles];
      fetcher.read(slot, has_zeros, middle, now);
      slot = fetcher.following(slot);
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
      write_by_wgmma<K>(args, place, share.tile, sum[0], partial, factors);
    } else {
      __syncthreads();
      write_by_mma<K>(args, place, share.tile, part, parts, partial, factors);
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

bool has_gpu_batch() { return has_own_code<batch_kernel<BatchKind<4, false, 4, false>>>(); }

bool gpu_matmul_batch(const GpuDecodeArgs& args, void* stream) {
  if (!has_gpu_batch() || args.column_order) return false;
  return with_kind(args.bits, args.group_size,
                   [&]<int kBits, bool kFine>() { return launch_for<kBits, kFine>(args, stream); });
}

bool fits_gpu_batch(int64_t in, int64_t tiles, int bits, int64_t group_size) {
  if (!has_gpu_batch() || !fits_gpu_decode(in, bits, group_size)) return false;
  return with_kind(bits, group_size, [&]<int kBits, bool kFine>() {
    return has_room<kBits, kFine, 1>(in, split_of(in, tiles), has_many_tiles(tiles), true);
  });
}

bool norms_in_batch(int64_t rows, int64_t tiles) { return rows <= 8 || !has_many_tiles(tiles); }

}  // namespace lowbit
