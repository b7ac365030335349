// What the kernels for one row and for several share: how a launch is planned, and how a warp's weights come
// to shared memory ahead of the arithmetic.
#pragma once

#include "ops/cuda/matmul_units.cuh"

#include <algorithm>
#include <climits>
#include <map>
#include <mutex>
#include <utility>

namespace lowbit {
namespace {

// A block makes one group of kGroupTiles tiles of 16 outputs after the other.

// How the inputs are divided, so that many warps can share an output: into `blocks` x `parts` spans of whole
// 128 inputs, one after the other. Each is summed up from its beginning to its end, then the parts of one of
// the blocks in order, then those sums. By the weights' sizes alone: that is the order of the sums whatever
// the kernel, and for any rows.
struct Split {
  int blocks = 1, parts = 1;
  constexpr int spans() const { return blocks * parts; }
};
// Few outputs: a block has kFewTiles tiles, and two, four or more share the inputs.
constexpr int kMostParts = 2, kFewTiles = 8, kMostBlocks = 8;
constexpr bool has_many_tiles(int64_t tiles) { return tiles >= 1056; }
Split split_of(int64_t in, int64_t tiles, int bits) {
  constexpr int64_t kBlocksWanted = 132;
  const int64_t units = (in + kUnitInputs - 1) / kUnitInputs;
  const int64_t most = has_many_tiles(tiles) ? 2 : kBlocksWanted / ((tiles + kFewTiles - 1) / kFewTiles);
  int blocks = static_cast<int>(std::min({most, units / kMostParts, int64_t{kMostBlocks}}));
  // Three cannot share four units of outputs well; of 4 bits more warps have too little each.
  const bool as_they_are = bits != 4 && blocks > 4;
  if (!as_they_are) blocks = blocks < 2 ? 1 : blocks < 4 ? 2 : blocks < 8 ? 4 : 8;
  return {blocks, units < kMostParts ? 1 : kMostParts};
}

// Units of 128 inputs (64 where the weight is BF16: two for each) that a span begins with.
template <class K>
__host__ __device__ constexpr int first_unit(int in, int span, int spans) {
  const int units = (in + kUnitInputs - 1) / kUnitInputs;
  const int first = span * units / spans * (kUnitInputs / K::kInputs);
  const int end = (in + K::kInputs - 1) / K::kInputs;
  return first < end ? first : end;
}

// Of a span.
template <class K>
constexpr int most_units(int64_t in, int spans) {
  const int units = static_cast<int>((in + kUnitInputs - 1) / kUnitInputs);
  return (units + spans - 1) / spans * (kUnitInputs / K::kInputs);
}

// What is the same for all blocks of a launch, worked out once.
struct Plan {
  Split split;
  int groups;                      // of tiles, of all matrices
  int first_group[kMostMatrices];  // of each matrix
  int last_tile[kMostMatrices];
  int tile_bytes, tile_groups_bytes;  // from tile to tile: codes; scales or zero points
  int slots;                          // of a warp's ring
};

// Which matrix a group of tiles belongs to, and its first tile there.
struct Place {
  int matrix, first_tile;
};
template <class K>
__device__ inline Place place_of(const GpuDecodeArgs& args, const Plan& plan, int group) {
  if (args.swiglu) return {0, group * kPairs<K>};
  const int matrix = (group >= plan.first_group[1]) + (group >= plan.first_group[2]);
  return {matrix, (group - plan.first_group[matrix]) * K::kGroupTiles};
}

// What a warp of a block does: of each group from `group` on its tile number `tile`, and those a kTiles-th of
// the group further, over the units [begin, end).
struct Share {
  int group, stride, tile, begin, end;
};
// Where each of `spans` warps has a span of the whole of a group.
template <class K>
__device__ inline Share share_of_span(int in, int span, int spans, int group, int stride) {
  return {group, stride, 0, first_unit<K>(in, span, spans), first_unit<K>(in, span + 1, spans)};
}
// The sum over spans of what read(span) gives.
template <class Read>
__device__ inline float sum_over_spans(int spans, int parts, const Read& read) {
  float sum = 0;
#pragma unroll 1
  for (int first = 0; first < spans; first += parts) {
    float of_block = 0;
#pragma unroll
    for (int part = 0; part < kMostParts; ++part)
      if (part < parts) of_block += read(first + part);
    sum += of_block;
  }
  return sum;
}

// What a warp fetches, unit by unit, through all groups of its block. kOneGroup: a block has no more.
template <class K, bool kOneGroup = false>
struct Fetcher {
  const GpuDecodeArgs& args;
  const Plan& plan;
  const Share share;
  char *const ring, *const ring_end;
  char* to;  // the slot that is filled next
  int group, unit;
  bool has_zeros = false;
  Tile tiles[K::kTiles];

  __device__ Fetcher(const GpuDecodeArgs& args_, const Plan& plan_, const Share& share_, char* rings)
      : args(args_),
        plan(plan_),
        share(share_),
        ring(rings + static_cast<int>(threadIdx.x / 32) * plan.slots * K::kTiles * K::kUnitBytes),
        ring_end(ring + plan.slots * K::kTiles * K::kUnitBytes),
        to(ring),
        group(share.begin < share.end ? share.group : plan.groups),
        unit(share.begin) {
    if (group < plan.groups) begin_group();
#pragma unroll 1
    for (int i = 0; i < K::kAhead; ++i) next();
  }

  // The slot behind one.
  __device__ char* following(char* slot) const {
    slot += K::kTiles * K::kUnitBytes;
    return slot == ring_end ? ring : slot;
  }

  __device__ void read(const char* from_slot, bool group_has_zeros, uint32_t middle,
                       Loaded<K> (&unit_of)[K::kTiles]) const {
#pragma unroll
    for (int t = 0; t < K::kTiles; ++t)
      read_unit<K>(from_slot + t * K::kUnitBytes, group_has_zeros, middle, unit_of[t]);
  }

  __device__ void begin_group() {
    const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    const Place place = place_of<K>(args, plan, group);
    has_zeros = args.matrix[place.matrix].zero_points != nullptr;
#pragma unroll
    for (int t = 0; t < K::kTiles; ++t) {
      const int index = share.tile + t * (K::kGroupTiles / K::kTiles);
      const GpuMatrix& matrix = args.matrix[args.swiglu ? index / kPairs<K> : place.matrix];
      // A tile behind the last one repeats it; its outputs are not written.
      const int tile =
          min(place.first_tile + (args.swiglu ? index % kPairs<K> : index), plan.last_tile[place.matrix]);
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

  __device__ void next() {
    asm volatile("" ::: "memory");  // what is read of the slot is read before
    if (group < plan.groups) {
#pragma unroll
      for (int t = 0; t < K::kTiles; ++t) {
        fetch_unit<K>(tiles[t], to + t * K::kUnitBytes, has_zeros, unit, static_cast<int>(args.in));
        constexpr int step = K::kBits == 16 ? K::kInputs * 2 : K::kLoads * kPieceBytes;
        tiles[t].codes += step;
        if constexpr (K::kBits == 16) {
          tiles[t].codes8 += step;
        } else {
          tiles[t].scales += K::kGroups * 32;
          if (has_zeros) tiles[t].zeros += K::kGroups * 32;
        }
      }
      if (++unit >= share.end) {
        group += share.stride;
        if constexpr (!kOneGroup) {
          unit = share.begin;
          if (group < plan.groups) begin_group();
        }
      }
    }
    commit_copies();
    to = following(to);
  }
};

// Behind q, k and v comes attention, which reads what is older than they are; behind others nothing does.
__device__ inline void follow_predecessor(const GpuDecodeArgs& args) {
  const bool is_early = args.swiglu || args.matrix[0].add_to;
  if (is_early) let_successor_begin();
  wait_for_predecessor();
  if (!is_early) let_successor_begin();
}

// SwiGLU, as rounded as if gate and up had been written.
__device__ inline float gated(float gate, float up) {
  return silu_times(bf16_to_f32(f32_to_bf16(gate)), bf16_to_f32(f32_to_bf16(up)));
}

// visit<kBits, kCodes>() for weights that a kernel reads (fits_gpu_decode). Groups of 64 are those of codes
// that point into a table, or of floats.
template <class Visit>
auto with_kind(int bits, int64_t group_size, const Visit& visit) {
  const bool is_fine = group_size == kBlockInputs;
  if (bits == 16) return visit.template operator()<16, Codes::kWide>();
  if (bits == 8 && group_size == kTableGroup) return visit.template operator()<8, Codes::kFloats>();
  if (bits == 8)
    return is_fine ? visit.template operator()<8, Codes::kFine>()
                   : visit.template operator()<8, Codes::kWide>();
  if (group_size == kTableGroup) return visit.template operator()<4, Codes::kTable>();
  return is_fine ? visit.template operator()<4, Codes::kFine>()
                 : visit.template operator()<4, Codes::kWide>();
}

// Of the device that is current at the first launch: all are used as it is.
struct Device {
  int multiprocessors = 0, shared_per_block = 0, shared_per_multiprocessor = 0;
  int reserved_shared = 0;  // of a block, beside its own
};
const Device& device() {
  static const Device found = [] {
    Device device;
    int index = 0;
    cudaGetDevice(&index);
    cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, index);
    cudaDeviceGetAttribute(&device.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
    cudaDeviceGetAttribute(&device.shared_per_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor,
                           index);
    cudaDeviceGetAttribute(&device.reserved_shared, cudaDevAttrReservedSharedMemoryPerBlock, index);
    return device;
  }();
  return found;
}

template <class K>
Plan plan_of(const GpuDecodeArgs& args) {
  Plan plan{};
  plan.split = split_of(args.in, tiles_of(args), K::kBits);
  for (int i = 0; i < kMostMatrices; ++i) {
    plan.first_group[i] = i < args.matrices || i == 0 ? plan.groups : INT_MAX;
    if (i >= args.matrices) continue;
    const int tiles = static_cast<int>(tile_count(args.matrix[i].out));
    const int together = args.swiglu ? kPairs<K> : K::kGroupTiles;
    plan.last_tile[i] = tiles - 1;
    if (!args.swiglu || i == 0) plan.groups += (tiles + together - 1) / together;
  }
  if (K::kBits != 16) {
    plan.tile_bytes = static_cast<int>(piece_count(args.in, K::kBits) * kPieceBytes);
    plan.tile_groups_bytes = static_cast<int>(kept_groups(args.in, K::kGroupBlocks * kBlockInputs) * 32);
  }
  return plan;
}

// Blocks that a multiprocessor runs at once. The driver takes longer to say it than a launch takes.
template <auto kKernel>
int blocks_at_once(int warps, int shared_bytes) {
  static std::mutex mutex;
  static std::map<std::pair<int, int>, int> known;
  const std::lock_guard lock(mutex);
  int& blocks = known[{warps, shared_bytes}];
  if (blocks == 0) {
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kKernel, warps * 32,
                                                  static_cast<size_t>(shared_bytes));
    blocks = std::max(1, blocks);
  }
  return blocks;
}

struct Launch {
  Plan plan;
  int warps, blocks, shared_bytes;
};
// A warp for each span. shared_bytes_of(warps, slots): what a block takes.
template <class K, auto kKernel, class SharedBytes>
Launch launch_of(const GpuDecodeArgs& args, const SharedBytes& shared_bytes_of) {
  Launch launch{plan_of<K>(args), 0, 0, 0};
  Plan& plan = launch.plan;
  plan.slots = K::kAhead;
  launch.warps = plan.split.spans();
  if (shared_bytes_of(launch.warps, plan.slots) > device().shared_per_block) {
    while (launch.warps > 1 && shared_bytes_of(launch.warps, plan.slots) > device().shared_per_block)
      launch.warps /= 2;
    plan.split = {launch.warps, 1};
  }
  allow_shared_memory<kKernel>(device().shared_per_block);
  prefer_shared_memory<kKernel>();
  const int at_once = blocks_at_once<kKernel>(launch.warps, shared_bytes_of(launch.warps, plan.slots));
  launch.blocks = std::min(plan.groups, device().multiprocessors * at_once);
  if (launch.blocks == plan.groups)  // others would never be used
    plan.slots = std::min(K::kAhead, most_units<K>(args.in, launch.warps));
  launch.shared_bytes = shared_bytes_of(launch.warps, plan.slots);
  return launch;
}
template <auto kKernel>
void queue_launch(const Launch& what, const GpuDecodeArgs& args, void* stream) {
  launch(kKernel, dim3(static_cast<unsigned>(what.blocks)), dim3(static_cast<unsigned>(what.warps * 32)),
         static_cast<size_t>(what.shared_bytes), stream, args, what.plan);
}

}  // namespace
}  // namespace lowbit
