// A block of four warpgroups makes a tile of 192 outputs x 64 or 128 rows of x: one fetches slots of 64
// inputs to a ring in shared memory; three multiply, each 64 outputs, whose codes become BF16 in registers.
// (A warp waits while its products begin, so it is the other warpgroups' operands that are made meanwhile.) A
// weight is the product's first operand, so a thread has one output's sums of many rows; they go to y by way
// of shared memory, whole lines at a time.
//
// Where tiles are few, and for those that would be a last round of few, the blocks of a cluster share a
// tile's inputs, and then each adds up some of its rows.
//
//   slot: x, a panel of wgmma.cuh | of each of 12 tiles of 16 outputs the pieces, the scales, the zero points
#include "ops/cuda/cluster.cuh"
#include "ops/cuda/matmul_prompt.h"
#include "ops/cuda/multiprocessors.h"
#include "ops/cuda/prompt_tiles.cuh"
#include "ops/cuda/prompt_weights.cuh"

#include <algorithm>
#include <array>
#include <cassert>
#include <limits>

namespace lowbit {
namespace {

constexpr int kMultipliers = 3, kMultiplying = kMultipliers * kWarpgroup,
              kThreads = kWarpgroup + kMultiplying;
constexpr int kOutputs = kMultipliers * 64, kOutputTiles = kOutputs / kTileOutputs, kSlotInputs = 64;
constexpr int kMostParts = 8;
constexpr int kGroupBytes = kTileOutputs * 2;                         // scales or zero points of a tile
constexpr double kHalfTileCost = 0.65, kTileCost = 2, kJoinCost = 2;  // see consider
// Where a warpgroup's sums of 64 rows wait to be written: F32 [64][64], rows so far apart that the lanes of a
// warp write to as many banks.
constexpr int kStagedRows = 64, kStagedStride = 68, kStagedBytes = kStagedRows * kStagedStride * 4;
constexpr int kTileCopies = kOutputTiles / 4;  // tiles that a fetching warp copies

template <Codes kCodes_, int kBits_, int kRows_>
struct Prompt {
  static constexpr Codes kCodes = kCodes_;
  static constexpr int kBits = kBits_, kRows = kRows_;
  static constexpr int kSums = kRows / 2;  // a thread's: 64 outputs x kRows by 128 threads
  static constexpr bool kTable = kCodes == Codes::kTable, kFloats = kCodes == Codes::kFloats;
  static constexpr bool kValues = kTable || kFloats;  // no zero points
  static constexpr int kGroupInputs = kCodes == Codes::kFine   ? 32
                                      : kCodes == Codes::kWide ? 128
                                                               : kTableGroup;
  // Of a slot:
  static constexpr int kGroups = kCodes == Codes::kFine ? 2 : 1, kPieces = kSlotInputs / piece_inputs(kBits);
  static constexpr int kCodesAt = kRows * kPanelRowBytes,
                       kScalesAt = kCodesAt + kOutputTiles * kPieces * kPieceBytes,
                       kZerosAt = kScalesAt + kOutputTiles * kGroups * kGroupBytes,
                       kEnd = kZerosAt + (kValues ? 0 : kOutputTiles * kGroups * kGroupBytes);
  static constexpr int kSlotBytes = (kEnd + 1023) / 1024 * 1024;
  static constexpr int kTableBytes = kTable ? PairTable::kBytes : 0;
  static constexpr int kOtherBytes = kTableBytes + kMultipliers * kStagedBytes;
  static constexpr int kSlots = std::min(8, (224 * 1024 - kOtherBytes) / kSlotBytes);
  static constexpr int kSharedBytes = 1024 + kSlots * kSlotBytes + kOtherBytes;
  using Tiles = TileList<kRows, kOutputs>;
};

struct Arguments {
  GpuDecodeArgs product;
  const char* x;  // arranged
  int first_tile, end_tile;
  int parts;  // blocks of a cluster: each has its part of a tile's inputs. More than one: of a single tile
};
// A block's, in slots.
struct Span {
  int begin, end;
};
__device__ inline int first_tile(const Arguments& args) {
  return args.first_tile + static_cast<int>(blockIdx.x) / args.parts;
}
__device__ inline Span span_of(const Arguments& args) {
  const int units = static_cast<int>(padded_inputs(args.product.in) / kUnitInputs),
            rank = static_cast<int>(blockIdx.x) % args.parts;
  constexpr int kSlots = kUnitInputs / kSlotInputs;
  return {rank * units / args.parts * kSlots, (rank + 1) * units / args.parts * kSlots};
}

// A thread per 32 inputs of a row. tile_rows: of a tile.
__global__ void __launch_bounds__(256) arrange_kernel(const GpuDecodeArgs args, int tile_rows, char* to) {
  begin_at_once();
  const int64_t padded = padded_inputs(args.in), blocks = padded / kBlockInputs;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t row = index / blocks, first = index % blocks * kBlockInputs;
  if (row >= args.rows) return;
  const uint16_t* const x = args.x + row * args.in;
  uint32_t words[4][4] = {};
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const int at = static_cast<int>(first) + 8 * c;
    if (at >= args.in) continue;
    const uint2 low = read_four(x, args.column_order, at), high = read_four(x, args.column_order, at + 4);
    words[0][c] = low.x, words[1][c] = low.y, words[2][c] = high.x, words[3][c] = high.y;
  }
  const int64_t panel = row / tile_rows * (padded / kSlotInputs) + first / kSlotInputs;
  to += panel * tile_rows * kPanelRowBytes;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    *reinterpret_cast<uint4*>(
        to + panel_place(static_cast<int>(row % tile_rows), static_cast<int>(first % kSlotInputs) / 8 + i)) =
        make_uint4(words[i][0], words[i][1], words[i][2], words[i][3]);
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Where a tile's slots come from, and how: x by one bulk copy, weights by 16 bytes a thread of a warpgroup.
template <class K>
struct TileSource {
  const char *x, *codes[kTileCopies], *scales, *zeros;  // of the first slot; a thread's

  __device__ static bool copies_groups() { return group_tile() < kOutputTiles; }
  // Of scales a thread copies half of a tile's in a group.
  __device__ static int group_tile() { return static_cast<int>(threadIdx.x) / (2 * K::kGroups); }
  __device__ static int group() { return static_cast<int>(threadIdx.x) / 2 % K::kGroups; }

  __device__ TileSource(const Arguments& args, const typename K::Tiles& tiles, int tile) {
    const GpuDecodeArgs& product = args.product;
    const auto place = tiles.at(tile);
    const GpuMatrix& matrix = product.matrix[place.matrix];
    const int64_t pieces = piece_count(product.in, K::kBits),
                  groups = kept_groups(product.in, product.group_size);
    const int thread = static_cast<int>(threadIdx.x);
    // Behind the last tile comes the last one again, whose sums nobody writes.
    auto tile_of = [&](int i) {
      return min(static_cast<int64_t>(place.output_tile) * kOutputTiles + i, tile_count(matrix.out) - 1);
    };
    x = args.x + place.row_tile * (padded_inputs(product.in) / kSlotInputs) * K::kCodesAt;
#pragma unroll
    for (int i = 0; i < kTileCopies; ++i)
      codes[i] = static_cast<const char*>(matrix.weight) +
                 tile_of(thread / 32 + 4 * i) * pieces * kPieceBytes + thread % 32 * 16;
    const int64_t first_group = (tile_of(group_tile()) * groups + group()) * kGroupBytes + thread % 2 * 16;
    scales = static_cast<const char*>(matrix.scales) + first_group;
    zeros = matrix.zero_points ? static_cast<const char*>(matrix.zero_points) + first_group : nullptr;
  }
  __device__ void copy_weights(int slot, uint32_t to) const {
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int i = 0; i < kTileCopies; ++i) {
#pragma unroll
      for (int j = 0; j < K::kPieces; ++j)
        copy_16(to + K::kCodesAt + ((thread / 32 + 4 * i) * K::kPieces + j) * kPieceBytes + thread % 32 * 16,
                codes[i] + (slot * K::kPieces + j) * kPieceBytes, true);
    }
    if (!copies_groups()) return;
    const int from = slot * kSlotInputs / K::kGroupInputs * kGroupBytes;
    const uint32_t at = (group_tile() * K::kGroups + group()) * kGroupBytes + thread % 2 * 16;
    copy_16(to + K::kScalesAt + at, scales + from, true);
    if (!K::kValues && zeros) copy_16(to + K::kZerosAt + at, zeros + from, true);
  }
  __device__ void copy_x(int slot, uint32_t to, uint64_t* filled) const {
    expect_copies(filled, K::kCodesAt);
    copy_bulk(to, x + static_cast<int64_t>(slot) * K::kCodesAt, K::kCodesAt, filled);
  }
};

// By a warpgroup. The weights of the first slots come before the predecessor has ended.
template <class K>
__device__ inline void fetch_tiles(const Arguments& args, const typename K::Tiles& tiles, uint32_t slots,
                                   RingBarriers<K::kSlots>& barriers) {
  const Span span = span_of(args);
  const int begin = first_tile(args), early = min(K::kSlots, span.end - span.begin);
  TileSource<K> source(args, tiles, begin);
  for (int i = 0; i < early; ++i) source.copy_weights(span.begin + i, slots + i * K::kSlotBytes);
  follow_predecessor();
  Ring<K::kSlots> ring;
  for (int tile = begin; tile < args.end_tile; tile += static_cast<int>(gridDim.x)) {
    if (tile != begin) source = TileSource<K>(args, tiles, tile);
    for (int slot = span.begin; slot < span.end; ++slot) {
      uint64_t* const filled = &barriers.filled[ring.slot];
      const uint32_t to = slots + ring.slot * K::kSlotBytes;
      wait_for_phase(&barriers.emptied[ring.slot], ring.parity ^ 1);
      if (threadIdx.x == 0) source.copy_x(slot, to, filled);
      if (tile != begin || slot >= span.begin + early) source.copy_weights(slot, to);
      arrive_after_copies(filled);
      ring.advance();
    }
  }
  wait_for_all_copies();
}

// Eight of a thread's sums to its warpgroup's room: of 16 rows of x, of which the first is `row` there.
__device__ inline void stage(const float (&sum)[8], int row, float* room) {
  const int c = static_cast<int>(threadIdx.x) % 4, g = static_cast<int>(threadIdx.x) % 32 / 4;
  room += (row + 2 * c) * kStagedStride + static_cast<int>(threadIdx.x) / 32 % 4 * kTileOutputs + g;
#pragma unroll
  for (int i = 0; i < 8; ++i) room[(i / 4 * 8 + i % 2) * kStagedStride + i % 4 / 2 * 8] = sum[i];
}
// The room's first `count` rows to where they go, by a warpgroup. row, n: of x and of outputs the first.
__device__ inline void write_staged(const GpuDecodeArgs& args, const GpuMatrix& matrix, int64_t row,
                                    int64_t n, int count, const float* room) {
  const int group = static_cast<int>(threadIdx.x) / kWarpgroup,
            thread = static_cast<int>(threadIdx.x) % kWarpgroup;
  const bool is_packed = !matrix.add_to && matrix.y.dtype == DType::kBF16;
  float* const sums = matrix.add_to ? matrix.add_to : static_cast<float*>(matrix.y.data);
  wait_at(group, kWarpgroup);
  // A thread has the same eight outputs of each of its rows.
  n += thread % 8 * 8;
  const float* from = room + thread / 8 * kStagedStride + thread % 8 * 8;
  float bias[8] = {};
  if (matrix.bias && n < matrix.out) {
#pragma unroll
    for (int i = 0; i < 8; ++i) bias[i] = matrix.bias[n + i];
  }
  for (int i = thread / 8; i < count; i += kWarpgroup / 8, from += kWarpgroup / 8 * kStagedStride) {
    if (row + i >= args.rows || n >= matrix.out) break;
    float values[8];
#pragma unroll
    for (int j = 0; j < 8; j += 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + j);
      values[j] = four.x + bias[j], values[j + 1] = four.y + bias[j + 1];
      values[j + 2] = four.z + bias[j + 2], values[j + 3] = four.w + bias[j + 3];
    }
    const int64_t at = (row + i) * matrix.out + n;
    if (is_packed) {
      *reinterpret_cast<uint4*>(static_cast<uint16_t*>(matrix.y.data) + at) =
          make_uint4(bf16_pair(values[0], values[1]), bf16_pair(values[2], values[3]),
                     bf16_pair(values[4], values[5]), bf16_pair(values[6], values[7]));
      continue;
    }
#pragma unroll
    for (int j = 0; j < 8; j += 4) {
      const float4 four = {values[j], values[j + 1], values[j + 2], values[j + 3]};
      if (matrix.add_to) {
        add_in_memory(sums + at + j, four);
      } else {
        *reinterpret_cast<float4*>(sums + at + j) = four;
      }
    }
  }
  wait_at(group, kWarpgroup);
}

// A thread's sums to its block's shared memory; then those of the cluster's blocks for some rows, added up.
template <class K>
__device__ inline void leave_sums(const float (&sum)[K::kSums], float* to) {
  wait_at(1 + kMultipliers, kMultiplying);  // nothing there is read by products any more
#pragma unroll
  for (int i = 0; i < K::kSums; ++i) to[i * kMultiplying] = sum[i];
}
__device__ inline void add_left_sums(const float* own, int first, int parts, float (&sum)[8]) {
  uint32_t from[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    from[i] = shared_address(own + (first + i) * kMultiplying);
    sum[i] = 0;
  }
  // Another block's shared memory takes long to answer: several are asked before the first has.
  constexpr int kTogether = 4;
  for (int part = 0; part < parts; part += kTogether) {
    float values[kTogether][8];
#pragma unroll
    for (int p = 0; p < kTogether; ++p) {
      if (part + p >= parts) break;
#pragma unroll
      for (int i = 0; i < 8; ++i)
        asm volatile(
            "{ .reg .u32 there; mapa.shared::cluster.u32 there, %1, %2; ld.shared::cluster.f32 %0, [there]; }"
            : "=f"(values[p][i])
            : "r"(from[i]), "r"(part + p)
            : "memory");
    }
#pragma unroll
    for (int p = 0; p < kTogether; ++p) {
      if (part + p >= parts) break;
#pragma unroll
      for (int i = 0; i < 8; ++i) sum[i] += values[p][i];
    }
  }
}

template <class K>
__device__ inline void multiply_tiles(const Arguments& args, const typename K::Tiles& tiles, uint32_t slots,
                                      char* room, float* staged, const PairTable& table,
                                      RingBarriers<K::kSlots>& barriers) {
  const GpuDecodeArgs& product = args.product;
  const int warp = static_cast<int>(threadIdx.x) / 32 - 4, lane = static_cast<int>(threadIdx.x) % 32;
  const Span span = span_of(args);
  const int count = span.end - span.begin;
  const uint32_t middle = 0x10001u << (product.bits - 1);
  Ring<K::kSlots> ring;
  Operand a[2][4] = {};
  for (int tile = first_tile(args); tile < args.end_tile; tile += static_cast<int>(gridDim.x)) {
    const auto place = tiles.at(tile);
    const GpuMatrix& matrix = product.matrix[place.matrix];
    const bool has_zeros = !K::kValues && matrix.zero_points;
    float sum[K::kSums];
    auto make_ready = [&](Operand(&to)[4]) {
      const uint32_t is_ready = wait_for_phase(&barriers.filled[ring.slot], ring.parity);
      const char* const slot = room + ring.slot * K::kSlotBytes;
      uint4 data[K::kPieces];
#pragma unroll
      for (int i = 0; i < K::kPieces; ++i)
        data[i] = *reinterpret_cast<const uint4*>(slot + K::kCodesAt + (warp * K::kPieces + i) * kPieceBytes +
                                                  lane * 16);
      RowGrid grids[2];
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        if (step % (4 / K::kGroups) == 0) {
          const int at = (warp * K::kGroups + step * K::kGroups / 4) * kGroupBytes + lane / 4 * 4;
          const float2 scales = __half22float2(*reinterpret_cast<const __half2*>(slot + K::kScalesAt + at));
          const uint32_t zeros =
              has_zeros ? *reinterpret_cast<const uint32_t*>(slot + K::kZerosAt + at) : middle;
          grids[0] = grid_of<K>(scales.x, zeros & 0xffffu);
          grids[1] = grid_of<K>(scales.y, zeros >> 16);
        }
        const int word = step * K::kPieces;
        make_operand<K>(word_of(data[word / 4], word % 4),
                        word_of(data[(word + K::kPieces - 1) / 4], (word + K::kPieces - 1) % 4), grids, table,
                        product.table, is_ready, to[step]);
      }
    };
    auto multiply_slot = [&](const Operand(&weights)[4], int adds) {
      const uint64_t b = panel_descriptor(slots + ring.slot * K::kSlotBytes, 0);
      begin_products();
#pragma unroll
      for (int step = 0; step < 4; ++step) multiply(sum, weights[step], moved(b, 32 * step), adds + step);
      commit_products();
      ring.advance();
    };
    make_ready(a[0]);
    for (int i = 0; i < count; i += 2) {
      multiply_slot(a[0], i);
      make_ready(a[1]);
      multiply_slot(a[1], 1);
      wait_for_products<1>();
      release(&barriers.emptied[ring.before(2)]);
      if (i + 2 < count) make_ready(a[0]);
      wait_for_products<0>();
      pin(sum);
      release(&barriers.emptied[ring.before(1)]);
    }
    const int64_t n = place.n() + warp / 4 * 64;
    if (args.parts == 1) {
#pragma unroll
      for (int first = 0; first < K::kSums; first += kStagedRows / 2) {
#pragma unroll
        for (int i = 0; i < kStagedRows / 2; i += 8) {
          float eight[8];
#pragma unroll
          for (int j = 0; j < 8; ++j) eight[j] = sum[first + i + j];
          stage(eight, 2 * i, staged);
        }
        write_staged(product, matrix, place.row() + 2 * first, n, kStagedRows, staged);
      }
      continue;
    }
    float* const left = reinterpret_cast<float*>(room) + threadIdx.x - kWarpgroup;
    leave_sums<K>(sum, left);
    arrive_in_cluster();
    wait_for_cluster();
    for (int i = static_cast<int>(blockIdx.x) % args.parts * 8; i < K::kSums; i += 8 * args.parts) {
      float eight[8];
      add_left_sums(left, i, args.parts, eight);
      stage(eight, 0, staged);
      write_staged(product, matrix, place.row() + 2 * i, n, 16, staged);
    }
  }
}

#endif

template <class K>
__global__ void __launch_bounds__(kThreads, 1)
    prompt_kernel(const __grid_constant__ Arguments args, const __grid_constant__ typename K::Tiles tiles) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ char shared[];
  __shared__ RingBarriers<K::kSlots> barriers;
  const uint32_t begin = shared_address(shared), slots = (begin + 1023) / 1024 * 1024;
  char* const room = shared + (slots - begin);
  char* const behind = room + K::kSlots * K::kSlotBytes;
  const PairTable table{behind};
  if (threadIdx.x == 0) barriers.make(4 * kMultipliers, 1 + kWarpgroup);
  if constexpr (K::kTable) PairTable::fill(behind, args.product.table);
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    give_registers<40>();
    fetch_tiles<K>(args, tiles, slots, barriers);
    if (args.parts > 1) {
      arrive_in_cluster();
      wait_for_cluster();
    }
  } else {
    take_registers<152>();
    follow_predecessor();
    multiply_tiles<K>(
        args, tiles, slots, room,
        reinterpret_cast<float*>(behind + K::kTableBytes + (threadIdx.x / kWarpgroup - 1) * kStagedBytes),
        table, barriers);
  }
  if (args.parts > 1) {  // until nobody reads this block's shared memory any more
    arrive_in_cluster();
    wait_for_cluster();
  }
#endif
}

// Clusters of so many blocks that run at once.
template <class K>
int clusters_at_once(int parts) {
  static const auto found = [] {
    std::array<int, kMostParts + 1> clusters = {0, multiprocessors()};
    allow_shared_memory<prompt_kernel<K>>(K::kSharedBytes);
    for (int blocks = 2; blocks <= kMostParts; ++blocks) {
      cudaLaunchAttribute attribute;
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
      cudaLaunchConfig_t config = {};
      config.gridDim = dim3(static_cast<unsigned>(blocks));
      config.blockDim = dim3(kThreads);
      config.dynamicSmemBytes = K::kSharedBytes;
      config.attrs = &attribute;
      config.numAttrs = 1;
      if (cudaOccupancyMaxActiveClusters(&clusters[static_cast<size_t>(blocks)], prompt_kernel<K>, &config) !=
          cudaSuccess)
        clusters[static_cast<size_t>(blocks)] = 0;
    }
    return clusters;
  }();
  return found[static_cast<size_t>(parts)];
}

// How a product is cut, and what it takes, about, in the time of 64 inputs of a tile of 128 rows: the tiles
// before `whole` by a block each, in turn; the others by a cluster of `parts` each.
struct Cut {
  int rows = 0, whole = 0, parts = 1;
  double cost = std::numeric_limits<double>::infinity();
};
template <class K>
void consider(const GpuDecodeArgs& product, double slot_cost, Cut& best) {
  const int tiles = typename K::Tiles(product.rows, product.matrix, product.matrices).count();
  const auto units = static_cast<int>(padded_inputs(product.in) / kUnitInputs);
  const int blocks = multiprocessors(), rounds = tiles / blocks, rest = tiles % blocks;
  auto cost_of = [&](int parts) {
    constexpr int kSlots = kUnitInputs / kSlotInputs;
    return (units + parts - 1) / parts * kSlots * slot_cost + kTileCost + (parts > 1 ? kJoinCost : 0);
  };
  const double before = rounds * cost_of(1);
  for (int parts = 1; parts <= std::min(kMostParts, units); ++parts) {
    if (rest > clusters_at_once<K>(parts)) continue;
    const double cost = before + (rest > 0 ? cost_of(parts) : 0);
    if (cost < best.cost) best = {K::kRows, parts == 1 ? tiles : tiles - rest, parts, cost};
  }
}

template <class K>
void launch_tiles(const Arguments& args, const typename K::Tiles& tiles, void* stream) {
  const int count = args.end_tile - args.first_tile;
  if (count == 0) return;
  const int blocks = args.parts > 1 ? count * args.parts : std::min(count, multiprocessors());
  launch_clusters(prompt_kernel<K>, dim3(static_cast<unsigned>(blocks)), static_cast<unsigned>(args.parts),
                  dim3(kThreads), K::kSharedBytes, stream, args, tiles);
}
template <class K>
void launch_product(const GpuDecodeArgs& product, const Cut& cut, void* arranged, void* stream) {
  const int64_t count = product.rows * (padded_inputs(product.in) / kBlockInputs);
  launch(arrange_kernel, dim3(static_cast<unsigned>((count + 255) / 256)), dim3(256), 0, stream, product,
         K::kRows, static_cast<char*>(arranged));
  const typename K::Tiles tiles(product.rows, product.matrix, product.matrices);
  const char* const x = static_cast<const char*>(arranged);
  launch_tiles<K>({product, x, 0, cut.whole, 1}, tiles, stream);
  launch_tiles<K>({product, x, cut.whole, tiles.count(), cut.parts}, tiles, stream);
}

template <Codes kCodes, int kBits>
void launch_best(const GpuDecodeArgs& product, void* arranged, void* stream) {
  using Wide = Prompt<kCodes, kBits, 128>;
  using Narrow = Prompt<kCodes, kBits, 64>;
  Cut cut;
  consider<Wide>(product, 1, cut);
  // Half of the rows take more than half of the time: their weights become BF16 all the same.
  consider<Narrow>(product, kHalfTileCost, cut);
  if (cut.rows == Narrow::kRows) return launch_product<Narrow>(product, cut, arranged, stream);
  launch_product<Wide>(product, cut, arranged, stream);
}

}  // namespace

bool has_prompt_product() { return has_own_code<prompt_kernel<Prompt<Codes::kWide, 4, 128>>>(); }

bool fits_prompt_product(const GpuDecodeArgs& args) {
  if (args.bits == 16 || args.in % 8 != 0) return false;
  for (int i = 0; i < args.matrices; ++i)
    if (args.matrix[i].out % 8 != 0) return false;
  if (args.has_table) return args.group_size == kTableGroup && (args.bits == 4 || args.bits == 8);
  return args.group_size == 32 || args.group_size == kUnitInputs;
}

void gpu_prompt_product(const GpuDecodeArgs& args, void* arranged, void* stream) {
  assert(fits_prompt_product(args));
  const bool is_fine = args.group_size == 32, is_wide = fragment_bits(args.bits) == 8;
  const auto multiply = args.has_table
                            ? (is_wide ? launch_best<Codes::kFloats, 8> : launch_best<Codes::kTable, 4>)
                        : is_fine ? (is_wide ? launch_best<Codes::kFine, 8> : launch_best<Codes::kFine, 4>)
                        : is_wide ? launch_best<Codes::kWide, 8>
                                  : launch_best<Codes::kWide, 4>;
  multiply(args, arranged, stream);
}

}  // namespace lowbit
