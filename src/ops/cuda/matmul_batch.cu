// The product of two to 32 rows on Hopper: decoding several sequences. x of all rows lies in shared memory;
// codes become operands in registers, 16 outputs for a warp.
//
// Where the product before has left x as it is to lie there (GpuKeptRows), it is copied as a whole, without
// an instruction for each piece.
//
// Where outputs are few, a block has eight tiles of them and two warps share a tile's inputs; the blocks of a
// cluster share the inputs once more (Split). Every warp sends its sums to the block whose outputs they are.
// Where they are many (kMany), a block has all inputs, and goes from group to group of tiles.
//
// Up to 16 rows are multiplied by mma.sync. More keep it busy for longer than the rest takes: wgmma
// multiplies four times as fast, but four warps must have four tiles, and all the same inputs.
#include "ops/cuda/matmul_batch.h"
#include "ops/cuda/matmul_batch_outputs.cuh"
#include "ops/cuda/matmul_batch_x.cuh"
#include "ops/cuda/wgmma.cuh"

namespace lowbit {
namespace {

// The second operands of eight rows over 32 inputs, two steps.
template <class K>
__device__ inline void read_x(const UnitOfX& unit, int stride, int block, int rows_block, uint32_t (&to)[4]) {
  const int lane = threadIdx.x % 32;
  if constexpr (K::kPieces) {
    load_matrices(
        to, shared_address(unit.at) + ((block * 4 + lane / 8) * K::kRows + rows_block * 8 + lane % 8) * 16);
  } else {
    const char* const from = unit.at + (lane / 4 * stride + lane % 4 * 8 + block * kBlockInputs) * 2;
    const uint4 four = *reinterpret_cast<const uint4*>(from);
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
  }
}
// total += the product of a warp's tiles over a unit.
template <class K>
__device__ inline void multiply(const Loaded<K> (&now)[K::kTiles], const UnitOfX& unit, int stride,
                                const CodeTable& table, float (&total)[K::kTiles][K::kRowBlocks][4]) {
  constexpr int kGroupBlocks = K::kGroupBlocks;
#pragma unroll
  for (int group = 0; group < K::kBlocks / kGroupBlocks; ++group) {
    float sum[K::kTiles][K::kRowBlocks][4] = {};
    auto& to = K::kBits == 16 ? total : sum;
#pragma unroll
    for (int block = group * kGroupBlocks; block < (group + 1) * kGroupBlocks; ++block) {
      uint32_t x[K::kRowBlocks][4];
#pragma unroll
      for (int b = 0; b < K::kRowBlocks; ++b) read_x<K>(unit, stride, block, b, x[b]);
#pragma unroll
      for (int t = 0; t < K::kTiles; ++t) {
        const uint32_t zeros = now[t].zeros[group];
#pragma unroll
        for (int step = 0; step < 2; ++step) {
          const Operand a =
              operand<K>(now[t].data, 2 * block + step, 8388608.0f + static_cast<float>(zeros & 0xffffu),
                         8388608.0f + static_cast<float>(zeros >> 16), table);
#pragma unroll
          for (int b = 0; b < K::kRowBlocks; ++b)
            multiply_add(to[t][b], a, x[b][2 * step], x[b][2 * step + 1]);
        }
      }
    }
    if constexpr (K::kBits != 16) {
#pragma unroll
      for (int b = 0; b < K::kRowBlocks; ++b) {
        float x_sums[2] = {};
        if constexpr (K::kSums)
          read_sums<K>(unit.sums, b * 8 + 2 * (static_cast<int>(threadIdx.x) % 4), group, x_sums);
#pragma unroll
        for (int t = 0; t < K::kTiles; ++t)
          fold<K>(total[t][b], sum[t][b], x_sums, now[t].scale[group], now[t].zeros[group]);
      }
    }
  }
}

// Until the products are done nothing else is: the assembler does not keep the registers that they still
// read. Looking codes up is so long that it would be begun for the next group; so all groups of a unit go at
// once.
template <class K>
__device__ inline void multiply_by_wgmma(const Loaded<K>& unit, const UnitOfX& x, const CodeTable& table,
                                         float (&total)[K::kRowBlocks][4]) {
  constexpr uint32_t upper = piece_upper(128);
  constexpr int kGroups = K::kGroups > 1 ? K::kGroups : 1, kGroupSteps = 2 * K::kBlocks / kGroups;
  constexpr int kAtOnce = K::kTable ? kGroups : 1, kSteps = kAtOnce * kGroupSteps;
  const int c = threadIdx.x % 4;
#pragma unroll
  for (int first = 0; first < kGroups; first += kAtOnce) {
    Operand a[kSteps];
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const uint32_t zeros = unit.zeros[first + i / kGroupSteps];
      a[i] = operand<K>(unit.data, first * kGroupSteps + i, 8388608.0f + static_cast<float>(zeros & 0xffffu),
                        8388608.0f + static_cast<float>(zeros >> 16), table);
    }
    float own[kAtOnce][K::kRowBlocks][4] = {};
    begin_products();
#pragma unroll
    for (int i = 0; i < kSteps; ++i)
      multiply_few(K::kBits == 16 ? total : own[i / kGroupSteps], a[i],
                   with_upper(x.operand + (first * kGroupSteps + i) * (2 * K::kRows), upper),
                   K::kBits == 16 || i % kGroupSteps > 0);
    commit_products();
    wait_for_products<0>();
    if constexpr (K::kBits == 16) {
      pin(total);
    } else {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        pin(own[i]);
        const int group = first + i;
#pragma unroll
        for (int b = 0; b < K::kRowBlocks; ++b) {
          float x_sums[2] = {};
          if constexpr (K::kSums) read_sums<K>(x.sums, b * 8 + 2 * c, group, x_sums);
          fold<K>(total[b], own[i][b], x_sums, unit.scale[group], unit.zeros[group]);
        }
      }
    }
  }
}

template <class K>
__global__ void __launch_bounds__(K::kBound, 1)
    batch_kernel(const __grid_constant__ GpuDecodeArgs args, const __grid_constant__ Plan plan,
                 const __grid_constant__ Room room, const __grid_constant__ Spans spans) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(128) char shared[];
  const int warp = threadIdx.x / 32;
  const InCluster place_in = in_cluster();
  const int rank = place_in.rank, part = K::kParts > 1 ? warp / K::kTileWarps : 0;
  const int blocks = K::kMany ? 1 : plan.split.blocks;
  const int parts = K::kMany ? plan.split.spans() : plan.split.parts;  // of a block

  // Spans of the block, and of them those of the warp.
  const int block_span = rank * parts, first_span = block_span + part * parts / K::kParts,
            end_span = block_span + (part + 1) * parts / K::kParts;
  const int block_begin = spans.first[block_span], block_end = spans.first[block_span + parts];
  const Share share{place_in.cluster, place_in.clusters, K::kParts > 1 ? warp % K::kTileWarps : warp,
                    spans.first[first_span], spans.first[end_span]};
  constexpr int kUnitsOf128 = kUnitInputs / K::kInputs;
  const int first_of_x = block_begin / kUnitsOf128,
            units_of_x = (block_end - block_begin + kUnitsOf128 - 1) / kUnitsOf128;

  char* const x = shared + room.x;
  float* const sums = reinterpret_cast<float*>(shared + room.sums);  // see sum_x
  uint64_t* const barriers = reinterpret_cast<uint64_t*>(shared + room.barriers);
  uint64_t* const x_barrier = barriers + 1;
  const Exchange<K> exchange{args,
                             rank,
                             blocks >= kOwners ? 2 : blocks - 1,
                             senders_of<K>(plan.split),
                             reinterpret_cast<float2*>(shared + room.received),
                             reinterpret_cast<Basis*>(shared + room.bases),
                             barriers};
  const Place first_place = place_of<K>(args, plan, share.group);
  const bool is_copied = !K::kPieces || args.kept.x;
  if (threadIdx.x == 0) {
    if (blocks > 1) expect_bytes(exchange.barrier, exchange.received_bytes());
    if (is_copied) expect_bytes(x_barrier, bytes_of_x<K>(args, first_of_x, units_of_x));
  }
  if (blocks > 1) arrive_in_cluster();
  if constexpr (!K::kPieces) clear_tail<K>(args, first_of_x, units_of_x, x);
  if constexpr (!K::kMany) exchange.fetch_constants(first_place);
  Fetcher<K, !K::kMany> fetcher(args, plan, share, shared);
  __syncthreads();  // the barrier of x is there

  wait_for_predecessor();

  if (is_copied && warp == 0) copy_x<K>(args, first_of_x, units_of_x, x, x_barrier);
  if constexpr (!K::kMany) exchange.fetch_old(first_place);  // they come with the next unit's copies
  float* const own_factors = reinterpret_cast<float*>(shared + room.factors);
  const float* const factors = args.kept.squares ? own_factors : args.factors;
  if (args.kept.squares) find_factors<K>(args, own_factors);
  if (is_copied) {
    wait_for_bytes(x_barrier);
  } else if constexpr (K::kPieces) {
    stage_x<K>(args, first_of_x, units_of_x, x);
    if constexpr (K::kWgmma) show_to_products();
  }
  let_successor_begin();
  if (!is_copied) __syncthreads();
  if constexpr (K::kSums) sum_x<K>(x, units_of_x, sums);
  if (K::kSums || args.kept.squares) __syncthreads();
  if (blocks > 1) wait_for_cluster();  // all have begun: they may be sent to

  const uint32_t x_operand = piece_lower(shared_address(x), K::kRows * 16);
  const int stride = row_stride(units_of_x);
  const uint32_t middle = 0x10001u << (args.bits - 1);
  char* slot = fetcher.ring;
#pragma unroll 1
  for (int group = share.group; group < plan.groups; group += share.stride) {
    const Place place = K::kMany ? place_of<K>(args, plan, group) : first_place;
    const bool has_zeros = args.matrix[place.matrix].zero_points != nullptr;
    float sum[K::kTiles][K::kRowBlocks][4] = {};
    float total[K::kTiles][K::kRowBlocks][4] = {};
    int span = first_span, end_of_span = spans.first[span + 1];
#pragma unroll 1
    for (int unit = share.begin; unit < share.end; ++unit) {
      const int i = unit - block_begin;
      const UnitOfX unit_of_x{x + i * K::kInputs * (K::kPieces ? K::kRows : 1) * 2,
                              x_operand + i * (K::kInputs * K::kRows * 2 / 16),
                              sums + i * (K::kRows * K::kUnitSums)};
      wait_for_copies<K::kAhead - 1>();
      Loaded<K> now[K::kTiles];
      fetcher.read(slot, has_zeros, middle, now);
      slot = fetcher.following(slot);
      if constexpr (K::kWgmma) {
        fetcher.next();
        multiply_by_wgmma<K>(now[0], unit_of_x, args.table, total[0]);
      } else {
        multiply<K>(now, unit_of_x, stride, args.table, total);
        fetcher.next();
      }
      if constexpr (!K::kOneSpan) {
        if (unit + 1 < end_of_span) continue;
#pragma unroll
        for (int t = 0; t < K::kTiles; ++t) {
#pragma unroll
          for (int b = 0; b < K::kRowBlocks; ++b) {
#pragma unroll
            for (int j = 0; j < 4; ++j) sum[t][b][j] += total[t][b][j], total[t][b][j] = 0;
          }
        }
        end_of_span = spans.first[++span + 1];
        if constexpr (K::kMany && K::kParts == 1) {  // the sums of a block are its own
          if (span % plan.split.parts != 0) continue;
          exchange.send_sums(span / plan.split.parts - 1, share.tile, sum[0]);
#pragma unroll
          for (int b = 0; b < K::kRowBlocks; ++b) {
#pragma unroll
            for (int j = 0; j < 4; ++j) sum[0][b][j] = 0;
          }
        }
      }
    }

    if (!(K::kMany && K::kParts == 1) && first_span < end_span) {
      const int senders = exchange.senders.each * (K::kMany ? exchange.senders.blocks : 1);  // of this block
#pragma unroll
      for (int t = 0; t < K::kTiles; ++t)
        exchange.send_sums(rank * senders + part * senders / K::kParts, share.tile + t * K::kTileWarps,
                           K::kOneSpan ? total[t] : sum[t]);
    }
    if constexpr (K::kMany) {
      __syncthreads();
      exchange.write(place, factors);
      if (group + share.stride < plan.groups) __syncthreads();  // before the next sums
    }
  }
  if constexpr (!K::kMany) {
    wait_for_copies<0>();
    if (blocks > 1) {
      wait_for_bytes(exchange.barrier);
    } else {
      __syncthreads();
    }
    exchange.write(first_place, factors);
  }
#endif
}

template <class K>
void launch_kind(const GpuDecodeArgs& args, void* stream) {
  Plan plan = plan_of<K>(args);
  const Senders senders = senders_of<K>(plan.split);
  plan.slots =
      K::kMany ? K::kAhead : std::min(K::kAhead, most_units<K>(args.in, senders.blocks * senders.each));
  const Room room = room_of<K>(args.in, plan.split, plan.slots);
  constexpr auto kKernel = batch_kernel<K>;
  allow_shared_memory<kKernel>(device().shared_per_block);
  prefer_shared_memory<kKernel>();
  const int cluster = K::kMany ? 1 : plan.split.blocks;
  int blocks = plan.groups * cluster, bytes = room.total;
  if (blocks <= device().multiprocessors)  // none is to have two of them
    bytes = std::max(bytes, device().shared_per_multiprocessor / 2 - device().reserved_shared + 16);
  if (K::kMany)
    blocks = std::min(blocks, device().multiprocessors * blocks_at_once<kKernel>(K::kWarps, bytes));
  launch_clusters(kKernel, dim3(static_cast<unsigned>(blocks)), static_cast<unsigned>(cluster),
                  dim3(K::kThreads), static_cast<size_t>(bytes), stream, args, plan, room,
                  spans_of<K>(args.in, plan.split));
}

// visit<K>() for the first kind that has room for so many rows; false if there is none.
template <int kBits, Codes kCodes, class Visit>
bool with_batch_kind(int64_t rows, int64_t in, int64_t tiles, const Visit& visit) {
  const Split split = split_of(in, tiles, kBits);
  auto visited = [&]<int kRowBlocks, Outputs kOutputs>() {
    using K = BatchKind<kBits, kCodes, kRowBlocks, kOutputs>;
    if (rows > K::kRows || room_of<K>(in, split, K::kAhead).total > device().shared_per_block) return false;
    visit.template operator()<K>();
    return true;
  };
  if (has_many_tiles(tiles)) {
    return visited.template operator()<1, Outputs::kMany>() ||
           visited.template operator()<1, Outputs::kManyLong>() ||
           visited.template operator()<2, Outputs::kMany>() ||
           visited.template operator()<4, Outputs::kMany>();
  }
  return visited.template operator()<1, Outputs::kFew>() || visited.template operator()<2, Outputs::kFew>() ||
         visited.template operator()<4, Outputs::kFew>();
}
// Of one launch.
template <int kBits, Codes kCodes>
int64_t most_rows(int64_t in, int64_t tiles) {
  for (int64_t rows : {32, 16, 8})
    if (with_batch_kind<kBits, kCodes>(rows, in, tiles, [&]<class K>() {})) return rows;
  return 0;
}

template <int kBits, Codes kCodes>
bool launch_for(const GpuDecodeArgs& args, void* stream) {
  const int64_t tiles = tiles_of(args), most = most_rows<kBits, kCodes>(args.in, tiles);
  if (most == 0) return false;
  for (int64_t row = 0; row < args.rows; row += most) {
    const GpuDecodeArgs some = rows_of(args, row, std::min(most, args.rows - row));
    with_batch_kind<kBits, kCodes>(some.rows, some.in, tiles, [&]<class K>() {
      if constexpr (!K::kMany) {
        using Beside = BatchKind<kBits, kCodes, K::kRowBlocks, Outputs::kFewBeside>;
        if (some.matrices == kMostMatrices) return launch_kind<Beside>(some, stream);  // attention follows
      }
      launch_kind<K>(some, stream);
    });
  }
  return true;
}

}  // namespace

bool has_gpu_batch() { return has_own_code<batch_kernel<BatchKind<4, Codes::kWide, 4, Outputs::kFew>>>(); }

bool gpu_matmul_batch(const GpuDecodeArgs& args, void* stream) {
  if (!has_gpu_batch() || args.column_order || args.hidden) return false;
  return with_kind(args.bits, args.group_size,
                   [&]<int kBits, Codes kCodes>() { return launch_for<kBits, kCodes>(args, stream); });
}

int64_t gpu_batch_rows(int64_t in, int64_t tiles, int bits, int64_t group_size) {
  if (!has_gpu_batch() || !fits_gpu_decode(in, bits, group_size)) return 0;
  return with_kind(bits, group_size,
                   [&]<int kBits, Codes kCodes>() -> int64_t { return most_rows<kBits, kCodes>(in, tiles); });
}

bool keeps_rows(int64_t rows, int64_t in, int64_t tiles, int bits, int64_t group_size) {
  if (rows < 2 || in % kUnitInputs != 0 || rows > gpu_batch_rows(in, tiles, bits, group_size)) return false;
  return with_kind(bits, group_size, [&]<int kBits, Codes kCodes>() {
    bool is_usual = false;  // rather than a kind for more rows
    with_batch_kind<kBits, kCodes>(rows, in, tiles,
                                   [&]<class K>() { is_usual = K::kRows == kept_rows(rows); });
    return is_usual;
  });
}

}  // namespace lowbit
