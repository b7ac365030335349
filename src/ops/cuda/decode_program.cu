#include "ops/cuda/decode_program.h"

#include "ops/cuda/attention.cuh"
#include "ops/cuda/matmul_units.cuh"

#include <algorithm>
#include <climits>
#include <cstddef>

namespace lowbit {
namespace {

constexpr int kProgramWarps = 16, kProgramThreads = kProgramWarps * 32;
constexpr int kRoundTiles = 32;  // of a block, before their sums are taken: two threads' worth of 16 outputs each
constexpr int kStaticShared = 256;  // more than attend() has
constexpr int kSegments = 5;     // runs of one tile that a warp has in a round, at most

template <int kBits, bool kFine>
using Layers = Kind<kBits, kFine, 1, 1, true>;
using Head = Kind<16, false, 1, 1, true>;
template <class L>
constexpr int kSlots = 3;
template <class L>
constexpr int kSlotBytes = L::kUnitBytes > Head::kUnitBytes ? L::kUnitBytes : Head::kUnitBytes;

// Where things lie in shared memory: all of it, the program too, is read from there.
struct Room {
  int program, ring, partial, sums, x, attention, total;
};
__host__ __device__ constexpr int program_bytes(const GpuProgram& p) {
  return static_cast<int>(offsetof(GpuProgram, layer) + static_cast<size_t>(p.layers) * sizeof(ProgramLayer));
}
__host__ __device__ constexpr int most(int a, int b) { return a > b ? a : b; }
template <class L>
__host__ __device__ constexpr Room room_of(const GpuProgram& p) {
  const int widest = static_cast<int>(padded_inputs(most(most(p.hidden, p.intermediate), p.heads * p.head_dim)));
  const int program = 128, ring = program + (program_bytes(p) + 127) / 128 * 128;
  const int partial = ring + kProgramWarps * kSlots<L> * kSlotBytes<L>;
  const int sums = partial + kProgramWarps * kSegments * 16 * 4;
  const int x = sums + widest / kBlockInputs * 4, attention = (x + widest * 2 + 127) / 128 * 128;
  const int tiles = 2 * static_cast<int>(kGpuDecodeKeys) * p.head_dim * 2;
  const int states = 8 * (p.heads / p.kv_heads) * (p.head_dim + 2) * 4;
  const int q = 17 * (p.head_dim + 8) * 2;
  return {program, ring, partial, sums, x, attention, attention + most(tiles, states) + q};
}

// The matrix products of a step in their order: four for each layer, then the head.
enum Product { kQkv, kO, kGateUp, kDown };

// The same for all layers: tiles of a product, inputs, and the tiles at which its second and third matrix begin.
struct Sizes {
  int items, in, second, third;
};
__device__ inline Sizes sizes_of(const GpuProgram& p, int index) {
  const int q_width = p.heads * p.head_dim, kv_tiles = (p.kv_heads * p.head_dim + 15) / 16, q_tiles = (q_width + 15) / 16;
  const int hidden_tiles = (p.hidden + 15) / 16, product = index % 4;
  if (index == 4 * p.layers) return {(p.vocab + 15) / 16, p.hidden, INT_MAX, INT_MAX};
  if (product == kQkv) return {q_tiles + 2 * kv_tiles, p.hidden, q_tiles, q_tiles + kv_tiles};
  if (product == kGateUp) return {(p.intermediate + 15) / 16, p.hidden, INT_MAX, INT_MAX};
  return {hidden_tiles, product == kO ? q_width : p.intermediate, INT_MAX, INT_MAX};
}

// What a block does of a product: tiles [first, first + count), of gate and up in turn, each of `units` units.
struct Share {
  int first, count, units;
};
template <class L>
__device__ inline Share share_of(const GpuProgram& p, int index, const Sizes& sizes) {
  const int blocks = gridDim.x, block = blockIdx.x, rest = sizes.items % blocks;
  const int twice = index % 4 == kGateUp ? 1 : 0, is_head = index == 4 * p.layers;
  const int inputs = is_head ? Head::kInputs : L::kInputs;
  return {(sizes.items / blocks * block + min(block, rest)) << twice,
          (sizes.items / blocks + (block < rest ? 1 : 0)) << twice, (sizes.in + inputs - 1) / inputs};
}

// A product's tile: of which matrix, and which of it.
struct TilePlace {
  const ProgramMatrix* matrix;
  int which, tile;
};
__device__ inline TilePlace tile_place(const GpuProgram& p, int index, const Sizes& sizes, int tile) {
  if (index == 4 * p.layers) return {&p.head, 0, tile};
  const int product = index % 4;
  int which = product == kQkv ? kProgramQ : product == kO ? kProgramO : product == kGateUp ? kProgramGate : kProgramDown;
  if (product == kGateUp) {
    which += tile % 2;
    tile /= 2;
  } else if (tile >= sizes.third) {
    which += 2;
    tile -= sizes.third;
  } else if (tile >= sizes.second) {
    which += 1;
    tile -= sizes.second;
  }
  return {&p.layer[index / 4].matrix[which], which, tile};
}
__device__ inline int outputs_of(const GpuProgram& p, int index, int which) {
  if (index == 4 * p.layers) return p.vocab;
  if (which == kProgramQ) return p.heads * p.head_dim;
  if (which <= kProgramV) return p.kv_heads * p.head_dim;
  return which == kProgramO || which == kProgramDown ? p.hidden : p.intermediate;
}

// The units of a warp in a round of a share: [begin, end), counted from the round's first tile.
struct Run {
  int begin, end;
};
__device__ inline Run run_of(const Share& share, int round, int warp) {
  const unsigned units = min(kRoundTiles, share.count - round) * share.units;
  return {static_cast<int>(warp * units / kProgramWarps), static_cast<int>((warp + 1) * units / kProgramWarps)};
}

// What a warp fetches: its units of all products, one behind the other.
template <class L>
struct Stream {
  const GpuProgram& p;
  const int warp, products;
  char* const ring;
  int index = 0, round = 0, slot = 0;
  int left = 0, unit = 0, units = 0, tile = 0;  // left: units of the run; tile: of the product
  int in = 0, pending = 0;
  bool has_zeros = false;
  Tile from;

  __device__ void begin_tile() {
    const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    const Sizes sizes = sizes_of(p, index);
    const TilePlace place = tile_place(p, index, sizes, tile);
    const char* const weight = place.matrix->weight;
    has_zeros = place.matrix->zeros != nullptr;
    in = sizes.in;
    if (L::kBits == 16 || index == 4 * p.layers) {
      const int last = outputs_of(p, index, place.which) - 1;
      const int64_t row = min(place.tile * 16 + g, last), row8 = min(place.tile * 16 + g + 8, last);
      const int first = unit * Head::kInputs + 8 * c;
      from.codes = weight + (row * in + first) * 2;
      from.codes8 = weight + (row8 * in + first) * 2;
    } else if constexpr (L::kBits != 16) {
      const int padded = (in + kUnitInputs - 1) / kUnitInputs * kUnitInputs;
      const int tile_bytes = padded * L::kBits * 2, groups = padded / (L::kFine ? kBlockInputs : kUnitInputs);
      from.codes = weight + static_cast<int64_t>(place.tile) * tile_bytes + unit * (L::kLoads * kPieceBytes) + lane * 16;
      const int64_t first = static_cast<int64_t>(place.tile) * (groups * 32) + unit * (L::kGroups * 32) + g * 4;
      from.scales = place.matrix->scales + first;
      if (has_zeros) from.zeros = place.matrix->zeros + first;
    }
  }

  // To the next round or product in which this warp has a part.
  __device__ void settle() {
    for (; index < products; ++index, round = 0) {
      const Share share = share_of<L>(p, index, sizes_of(p, index));
      for (; round < share.count; round += kRoundTiles) {
        const Run run = run_of(share, round, warp);
        if (run.begin >= run.end) continue;
        left = run.end - run.begin, units = share.units;
        const int before = static_cast<unsigned>(run.begin) / units;
        tile = share.first + round + before, unit = run.begin - before * units;
        begin_tile();
        return;
      }
    }
  }

  __device__ void fetch() {
    if (index < products) {
      char* const to = ring + slot * kSlotBytes<L>;
      if (L::kBits != 16 && index + 1 == products) {
        fetch_unit<Head>(from, to, false, unit, in);
        from.codes += Head::kInputs * 2, from.codes8 += Head::kInputs * 2;
      } else {
        fetch_unit<L>(from, to, has_zeros, unit, in);
        if constexpr (L::kBits == 16) {
          from.codes += L::kInputs * 2, from.codes8 += L::kInputs * 2;
        } else {
          from.codes += L::kLoads * kPieceBytes;
          from.scales += L::kGroups * 32;
          if (has_zeros) from.zeros += L::kGroups * 32;
        }
      }
      if (--left == 0) {
        round += kRoundTiles;
        settle();
      } else if (++unit == units) {
        unit = 0;
        ++tile;
        begin_tile();
      }
    }
    asm volatile("cp.async.commit_group;");
    slot = slot + 1 == kSlots<L> ? 0 : slot + 1;
  }

  // Once a unit of product `now` was worked on. What belongs to the next product is fetched while the blocks wait.
  __device__ void follow(int now) {
    if (index == now) {
      fetch();
    } else {
      ++pending;
      asm volatile("cp.async.commit_group;");  // in its place, so that the count stays right
    }
  }
  __device__ void catch_up() {
#pragma unroll 1
    for (; pending > 0; --pending) fetch();
  }
};

// All blocks wait until all have come here; what was written before is there for all.
template <class L>
__device__ inline void meet(unsigned* counter, unsigned& expected, Stream<L>& stream) {
  __syncthreads();
  expected += gridDim.x;
  if (threadIdx.x == 0) asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
  stream.catch_up();
  if (threadIdx.x == 0) {
    unsigned seen;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    } while (seen < expected);
  }
  __syncthreads();
}

// Eight neighbours. What other blocks write must not come from this multiprocessor's cache.
struct Eight {
  float values[8];
};
__device__ inline Eight eight_of(const float* from) {
  const float4 a = __ldcg(reinterpret_cast<const float4*>(from)), b = __ldcg(reinterpret_cast<const float4*>(from) + 1);
  return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}
// Eight elements of x to shared memory, and the sums of the groups they belong to. Whole warps.
template <class L>
__device__ inline void put_eight(const uint4& eight, int i, int padded, uint16_t* x, float* sums) {
  if (i < padded) *reinterpret_cast<uint4*>(x + i) = eight;
  if constexpr (L::kBits == 4) {
    float sum = with_neighbour(with_neighbour(sum_of_eight(eight), 1), 2);
    if constexpr (!L::kFine) sum = with_neighbour(with_neighbour(sum, 4), 8);
    constexpr int kLanes = L::kFine ? 4 : 16;
    if (i < padded && threadIdx.x % kLanes == 0) sums[i / (kLanes * 8)] = sum;
  }
}

template <class L>
__device__ inline void take_x(const uint16_t* from, int in, uint16_t* x, float* sums) {
  const int padded = static_cast<int>(padded_inputs(in));
#pragma unroll 1
  for (int i = threadIdx.x * 8; i - static_cast<int>(threadIdx.x % 32) * 8 < padded; i += kProgramThreads * 8) {
    put_eight<L>(i < in ? __ldcg(reinterpret_cast<const uint4*>(from + i)) : uint4{}, i, padded, x, sums);
  }
  __syncthreads();
}

// rms_norm of the hidden state; weight: of this thread's first eight.
template <class L>
__device__ inline void take_normed(const float* state, const float* norm, const Eight& weight, int in, float epsilon,
                                   uint16_t* x, float* sums, float* room) {
  const int padded = static_cast<int>(padded_inputs(in)), mine = threadIdx.x * 8;
  float sum = 0;
  Eight kept = {};
#pragma unroll 1
  for (int i = mine; i < in; i += kProgramThreads * 8) {
    const Eight eight = eight_of(state + i);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += eight.values[j] * eight.values[j];
    if (i == mine) kept = eight;
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
#pragma unroll
  for (int w = 0; w < kProgramWarps; ++w) sum += room[w];
  const float factor = rsqrtf(sum / static_cast<float>(in) + epsilon);
#pragma unroll 1
  for (int i = mine; i - static_cast<int>(threadIdx.x % 32) * 8 < padded; i += kProgramThreads * 8) {
    uint4 eight = {};
    if (i < in) {
      const Eight values = i == mine ? kept : eight_of(state + i), weights = i == mine ? weight : eight_of(norm + i);
      uint32_t* const pairs = &eight.x;
#pragma unroll
      for (int j = 0; j < 4; ++j)
        pairs[j] = bf16_pair(values.values[2 * j] * factor * weights.values[2 * j],
                             values.values[2 * j + 1] * factor * weights.values[2 * j + 1]);
    }
    put_eight<L>(eight, i, padded, x, sums);
  }
  __syncthreads();
}

// A warp's part of a round: the sums of each run of one tile go to `partial`.
template <class L, class K>
__device__ inline void multiply_run(Stream<L>& stream, int& slot, int index, const Share& share, const Run& run,
                                    uint32_t middle, bool has_zeros, const uint16_t* x_shared, const float* sums,
                                    float* partial) {
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4, warp = threadIdx.x / 32;
  int unit = static_cast<unsigned>(run.begin) % static_cast<unsigned>(share.units);
  float* to = partial + warp * kSegments * 16 + g;
  float total[1][1][4] = {};
#pragma unroll 1
  for (int at = run.begin; at < run.end; ++at) {
    X<K> x;
    const uint4* const x_at = reinterpret_cast<const uint4*>(x_shared + unit * K::kInputs + 8 * c);
#pragma unroll
    for (int block = 0; block < K::kBlocks; ++block) x.data[0][block] = x_at[block * (kBlockInputs / 8)];
    if constexpr (K::kBits == 4) {
#pragma unroll
      for (int i = 0; i < K::kGroups; ++i) x.sums[0][i][0] = x.sums[0][i][1] = sums[unit * K::kGroups + i];
    }
    asm volatile("cp.async.wait_group %0;" ::"n"(kSlots<L> - 1) : "memory");
    Loaded<K> now[1];
    read_unit<K>(stream.ring + slot * kSlotBytes<L>, has_zeros, middle, now[0]);
    slot = slot + 1 == kSlots<L> ? 0 : slot + 1;
    multiply_unit<K>(now, x, total);
    stream.follow(index);
    if (++unit == share.units || at + 1 == run.end) {
      unit = unit == share.units ? 0 : unit;
      if (c == 0) to[0] = total[0][0][0], to[8] = total[0][0][2];  // column 0 is the one row of x
      to += 16;
      total[0][0][0] = total[0][0][1] = total[0][0][2] = total[0][0][3] = 0;
    }
  }
}

// Output `output` of the round's tile `tile`: what the warps that had a part of it have found, in their order.
__device__ inline float sum_of(const Share& share, int round, int tile, int output, const float* partial) {
  const unsigned units = min(kRoundTiles, share.count - round) * share.units;
  const unsigned begin = tile * share.units, end = begin + share.units;
  unsigned warp = begin * kProgramWarps / units;  // the first whose run ends behind `begin`
  while ((warp + 1) * units / kProgramWarps <= begin) ++warp;
  float sum = 0;
#pragma unroll 1
  for (; warp < kProgramWarps; ++warp) {
    const unsigned first = warp * units / kProgramWarps;
    if (first >= end) break;
    if ((warp + 1) * units / kProgramWarps == first) continue;
    sum += partial[(warp * kSegments + tile - first / share.units) * 16 + output];
  }
  return sum;
}

__device__ inline unsigned long long rank_of(float value, int index) {
  const uint32_t bits = __float_as_uint(value == 0 ? 0.0f : value);
  const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<unsigned long long>(ordered) << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}

// What becomes of the sums of a round. A warp has two tiles; with gate and up, one of each.
__device__ inline void finish_round(const GpuProgram& p, int index, const Share& share, const Sizes& sizes,
                                          int round, const float* partial) {
  const int tiles = min(kRoundTiles, share.count - round), tile = threadIdx.x / 16, output = threadIdx.x % 16;
  if (threadIdx.x / 32 * 2 >= tiles) return;  // whole warps
  const bool is_head = index == 4 * p.layers, is_gated = !is_head && index % 4 == kGateUp;
  const TilePlace place = tile_place(p, index, sizes, share.first + round + min(tile, tiles - 1));
  const int n = place.tile * 16 + output;
  const bool is_there = tile < tiles && n < outputs_of(p, index, place.which);
  const bool adds = !is_head && (place.which == kProgramO || place.which == kProgramDown);
  const float state = adds && is_there ? __ldcg(p.state + n) : 0;
  float value = tile < tiles ? sum_of(share, round, tile, output, partial) : 0;
  if (place.matrix->bias && is_there) value += __ldg(place.matrix->bias + n);
  if (is_head) {
    if (is_there) p.logits[n] = value;
    unsigned long long best = is_there && !isnan(value) ? rank_of(value, n) : 0;
#pragma unroll 1
    for (int distance = 16; distance > 0; distance /= 2) best = max(best, __shfl_xor_sync(0xffffffffu, best, distance));
    if (threadIdx.x % 32 == 0 && best != 0) atomicMax(p.best, best);
  } else if (is_gated) {
    // As rounded as if both had been written.
    value = bf16_to_f32(f32_to_bf16(value));
    const float up = __shfl_xor_sync(0xffffffffu, value, 16);
    if (is_there && tile % 2 == 0) p.gated[n] = f32_to_bf16(__fdividef(value, 1 + __expf(-value)) * up);
  } else if (is_there && adds) {
    p.state[n] = state + value;
  } else if (is_there) {
    const int q_width = p.heads * p.head_dim, kv_width = p.kv_heads * p.head_dim;
    p.qkv[n + (place.which > kProgramQ ? q_width : 0) + (place.which > kProgramK ? kv_width : 0)] = f32_to_bf16(value);
  }
}

template <class L, class K>
__device__ inline void multiply(const GpuProgram& p, int index, Stream<L>& stream, int& slot, const uint16_t* x,
                                const float* sums, float* partial) {
  const Sizes sizes = sizes_of(p, index);
  const Share share = share_of<L>(p, index, sizes);
  const bool has_zeros = K::kBits != 16 && p.layer[0].matrix[0].zeros != nullptr;
#pragma unroll 1
  for (int round = 0; round < share.count; round += kRoundTiles) {
    if (round > 0) __syncthreads();  // the sums of the round before have been read
    multiply_run<L, K>(stream, slot, index, share, run_of(share, round, threadIdx.x / 32), 0x10001u << (p.bits - 1),
                       has_zeros, x, sums, partial);
    __syncthreads();
    finish_round(p, index, share, sizes, round, partial);
  }
}

// RoPE, the cache, and attention of the one new token: a block for each KV head and each kGpuDecodeKeys keys; the one
// that ends last merges. Eight warps have 16 keys each; all of them help to fetch.
template <int kHeadDim>
__device__ __noinline__ void attend(const GpuProgram& p, int layer, int position, char* room) {
  constexpr int kKeys = kGpuDecodeKeys, kTileBytes = kTileKeys * kHeadDim * 2, kWidth = kHeadDim + 2;
  constexpr int kQStride = kHeadDim + 8, kPieces = kHeadDim / 8, kAttendWarps = kKeys / 16;
  __shared__ int is_last;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  const int heads = p.heads, kv_heads = p.kv_heads, group = heads / kv_heads, half = p.half;
  const int chunks = position / kKeys + 1;
  const int window = static_cast<int>(p.layer[layer].window), oldest = window > 0 ? max(0, position + 1 - window) : 0;
  const int states_bytes = kAttendWarps * group * kWidth * 4;
  uint16_t* const q_shared = reinterpret_cast<uint16_t*>(room + most(4 * kTileBytes, states_bytes));
  uint16_t* const k_shared = q_shared + 16 * kQStride;
  const float *const cosines = p.cosines + static_cast<int64_t>(position) * half,
              *const sines = p.sines + static_cast<int64_t>(position) * half;
  AttentionSequence sequence;
  sequence.capacity = p.capacity;
#pragma unroll 1
  for (int item = blockIdx.x; item < kv_heads * chunks; item += gridDim.x) {
    const int kv_head = item % kv_heads, chunk = item / kv_heads;
    const int begin = chunk * kKeys, end = min(position + 1, begin + kKeys);
    uint16_t* const keys = cached_head(p.keys, sequence, layer * p.layer_bytes, kv_head, kHeadDim);
    uint16_t* const values = cached_head(p.values, sequence, layer * p.layer_bytes, kv_head, kHeadDim);
    const uint32_t base = shared_address(room);
#pragma unroll 2
    for (int i = threadIdx.x; i < kKeys * kPieces; i += kProgramThreads) {
      const int key = i / kPieces, dim = i % kPieces * 8;
      const bool is_there = begin + key < min(end, position);
      const int64_t at = static_cast<int64_t>(is_there ? begin + key : 0) * kHeadDim + dim;
      const uint32_t to = base + key / kTileKeys * 2 * kTileBytes + place<kHeadDim>(key % kTileKeys, dim);
      copy_async(to, keys + at, is_there);
      copy_async(to + kTileBytes, values + at, is_there);
    }
    commit_copies();

    const bool has_new = end == position + 1;
    const int vectors = group + (has_new ? 1 : 0);
    const uint16_t* const new_key = p.qkv + (heads + kv_head) * kHeadDim;
    const uint16_t value = has_new && threadIdx.x < kHeadDim
                               ? __ldcg(p.qkv + (heads + kv_heads + kv_head) * kHeadDim + threadIdx.x)
                               : uint16_t{0};
#pragma unroll 1
    for (int i = threadIdx.x; i < vectors * half; i += kProgramThreads) {
      const int head = i / half, d = i % half;
      const uint16_t* const from = head < group ? p.qkv + (kv_head * group + head) * kHeadDim : new_key;
      uint16_t* const to = head < group ? q_shared + head * kQStride : k_shared;
      const float a = bf16_to_f32(__ldcg(from + d)), b = bf16_to_f32(__ldcg(from + d + half));
      const float cosine = __ldg(cosines + d), sine = __ldg(sines + d);
      to[d] = f32_to_bf16(a * cosine - b * sine);
      to[d + half] = f32_to_bf16(b * cosine + a * sine);
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < vectors * (kHeadDim - 2 * half); i += kProgramThreads) {
      const int head = i / (kHeadDim - 2 * half), d = 2 * half + i % (kHeadDim - 2 * half);
      const uint16_t* const from = head < group ? p.qkv + (kv_head * group + head) * kHeadDim : new_key;
      (head < group ? q_shared + head * kQStride : k_shared)[d] = __ldcg(from + d);
    }
#pragma unroll 1
    for (int i = group * kQStride + threadIdx.x; i < 16 * kQStride; i += kProgramThreads) q_shared[i] = 0;  // no heads
    wait_for_copies<0>();
    __syncthreads();
    if (has_new) {
      if (threadIdx.x < kHeadDim) {
        const int t = (position - begin) / kTileKeys, key = (position - begin) % kTileKeys, d = threadIdx.x;
        keys[static_cast<int64_t>(position) * kHeadDim + d] = k_shared[d];
        values[static_cast<int64_t>(position) * kHeadDim + d] = value;
        const uint32_t in_tile = place<kHeadDim>(key, d) + d % 8 * 2;
        *reinterpret_cast<uint16_t*>(room + 2 * t * kTileBytes + in_tile) = k_shared[d];
        *reinterpret_cast<uint16_t*>(room + (2 * t + 1) * kTileBytes + in_tile) = value;
      }
      __syncthreads();
    }

    Rows<kHeadDim, 2> rows;
    if (warp < kAttendWarps) {
      rows.seen[0] = rows.seen[1] = position + 1;
      rows.oldest[0] = rows.oldest[1] = oldest;
#pragma unroll
      for (int s = 0; s < kHeadDim / 16; ++s) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          rows.q[s].pair[i] = *reinterpret_cast<const uint32_t*>(q_shared + (g + i % 2 * 8) * kQStride + s * 16 +
                                                                 i / 2 * 8 + 2 * c);
        }
      }
      const int t = warp / 4;
      rows.attend(base + 2 * t * kTileBytes, base + (2 * t + 1) * kTileBytes, begin + t * kTileKeys, warp % 4 * 16,
                  p.scale * kLog2E);
      rows.finish();
    }
    __syncthreads();
    float* const states = reinterpret_cast<float*>(room);  // [kAttendWarps][group][kWidth]: values, maximum, total
    if (warp < kAttendWarps) {
#pragma unroll
      for (int upper = 0; upper < 2; ++upper) {
        if (g + upper * 8 >= group) continue;
        float* const state = states + (warp * group + g + upper * 8) * kWidth;
#pragma unroll
        for (int d = 0; d < kHeadDim / 8; ++d)
          *reinterpret_cast<float2*>(state + d * 8 + 2 * c) =
              make_float2(rows.out[d][2 * upper], rows.out[d][2 * upper + 1]);
        if (c == 0) *reinterpret_cast<float2*>(state + kHeadDim) = make_float2(rows.maximum[upper], rows.total[upper]);
      }
    }
    __syncthreads();
    auto weight_of = [](float maximum, float peak) { return maximum == -INFINITY ? 0 : exp2f(maximum - peak); };
    uint16_t* const out = p.attended + kv_head * group * kHeadDim;
    float* const partial = p.partial + static_cast<int64_t>(kv_head) * chunks * group * kWidth;
#pragma unroll 1
    for (int i = threadIdx.x; i < group * kHeadDim; i += kProgramThreads) {
      const int head = i / kHeadDim, d = i % kHeadDim;
      float peak = -INFINITY, sum = 0, total = 0;
#pragma unroll
      for (int w = 0; w < kAttendWarps; ++w) peak = fmaxf(peak, states[(w * group + head) * kWidth + kHeadDim]);
#pragma unroll
      for (int w = 0; w < kAttendWarps; ++w) {
        const float* const state = states + (w * group + head) * kWidth;
        const float weight = weight_of(state[kHeadDim], peak);
        sum += weight * state[d];
        total += weight * state[kHeadDim + 1];
      }
      if (chunks == 1) {
        out[i] = f32_to_bf16(__fdividef(sum, total));
        continue;
      }
      float* const to = partial + (chunk * group + head) * kWidth;
      to[d] = sum;
      if (d == 0) to[kHeadDim] = peak, to[kHeadDim + 1] = total;
    }
    if (chunks == 1) {
      __syncthreads();
      continue;
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned* const arrivals = p.counters + kProgramCounters + kv_head;
      is_last = atomicAdd(arrivals, 1) == static_cast<unsigned>(chunks - 1);
      if (is_last) *arrivals = 0;  // for the next layer
    }
    __syncthreads();
    if (is_last) {
      __threadfence();
#pragma unroll 1
      for (int i = threadIdx.x; i < group * kHeadDim; i += kProgramThreads) {
        const int head = i / kHeadDim, d = i % kHeadDim;
        const float* const from = partial + head * kWidth;
        float peak = -INFINITY, sum = 0, total = 0;
#pragma unroll 4
        for (int k = 0; k < chunks; ++k) peak = fmaxf(peak, __ldcg(from + k * group * kWidth + kHeadDim));
#pragma unroll 4
        for (int k = 0; k < chunks; ++k) {
          const float* const state = from + k * group * kWidth;
          const float weight = weight_of(__ldcg(state + kHeadDim), peak);
          sum += weight * __ldcg(state + d);
          total += weight * __ldcg(state + kHeadDim + 1);
        }
        out[i] = f32_to_bf16(__fdividef(sum, total));
      }
    }
    __syncthreads();
  }
}

template <class L>
__global__ void __launch_bounds__(kProgramThreads, 1) program_kernel(const GpuProgram* there, const int bytes) {
  extern __shared__ __align__(128) char shared[];
  for (int i = threadIdx.x * 8; i < bytes; i += kProgramThreads * 8)
    *reinterpret_cast<uint2*>(shared + 128 + i) = __ldcg(reinterpret_cast<const uint2*>(reinterpret_cast<const char*>(there) + i));
  __syncthreads();
  const GpuProgram& p = *reinterpret_cast<const GpuProgram*>(shared + 128);
  const Room room = room_of<L>(p);
  const int warp = threadIdx.x / 32;
  float* const few = reinterpret_cast<float*>(shared);  // one for each warp
  float* const partial = reinterpret_cast<float*>(shared + room.partial);
  float* const sums = reinterpret_cast<float*>(shared + room.sums);
  uint16_t* const x = reinterpret_cast<uint16_t*>(shared + room.x);
  const bool has_eight = static_cast<int>(threadIdx.x) * 8 < p.hidden;

  Stream<L> stream{p, warp, 4 * p.layers + 1, shared + room.ring + warp * kSlots<L> * kSlotBytes<L>};
  stream.settle();
  stream.pending = kSlots<L>;
  unsigned expected = 0;
  int slot = 0;
  const int position = __ldcg(p.position);
  auto norm_of = [&](int index) {
    return index == 4 * p.layers ? p.final_norm : p.layer[index / 4].norm[index % 4 == kGateUp ? 1 : 0];
  };
  Eight norm = has_eight ? eight_of(norm_of(0) + threadIdx.x * 8) : Eight{};

  // One loop for all stages, each of its parts in one place: the code must stay in the instruction cache.
  int index = -1;         // of the product; before the first, the embedding
  bool attends = false;   // the products of qkv are there
#pragma unroll 1
  while (true) {
    if (index < 0) {
      const uint16_t* const embedded = p.embedding + static_cast<int64_t>(__ldcg(p.id)) * p.hidden;
#pragma unroll 1
      for (int i = blockIdx.x * kProgramThreads + threadIdx.x; i < p.hidden; i += gridDim.x * kProgramThreads)
        p.state[i] = bf16_to_f32(embedded[i]);
    } else if (attends) {
      if (p.head_dim == 128) {
        attend<128>(p, index / 4, position, shared + room.attention);
      } else {
        attend<64>(p, index / 4, position, shared + room.attention);
      }
    } else {
      const bool is_head = index == 4 * p.layers;
      if (index % 2 == 0) {  // qkv, gate and up, the head
        take_normed<L>(p.state, norm_of(index), norm, p.hidden, p.epsilon, x, sums, few);
        if (!is_head && has_eight) norm = eight_of(norm_of(index + 2) + threadIdx.x * 8);
      } else {
        const bool is_o = index % 4 == kO;
        take_x<L>(is_o ? p.attended : p.gated, is_o ? p.heads * p.head_dim : p.intermediate, x, sums);
      }
      if (is_head) break;
      multiply<L, L>(p, index, stream, slot, x, sums, partial);
    }
    meet(p.counters, expected, stream);
    attends = !attends && index >= 0 && index % 4 == kQkv;
    if (!attends) ++index;
  }
  multiply<L, Head>(p, index, stream, slot, x, sums, partial);

  // The last block to come here moves on.
  __syncthreads();
  if (threadIdx.x > 0) return;
  __threadfence();
  if (atomicAdd(p.counters + 1, 1) + 1 < gridDim.x) return;
  __threadfence();
  const unsigned long long best = __ldcg(p.best);
  const bool is_finite = best != 0 && best >> 32 != 0xff800000u && best >> 32 != 0x007fffffu;
  const int32_t chosen = is_finite ? static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(best)) : -1;
  const int64_t step = *p.step;
  p.history[step % p.history_steps] = chosen;
  *p.step = step + 1;
  *p.id = max(0, chosen);
  if (p.sequence->position + 1 < p.sequence->capacity) {
    ++p.sequence->position;
    ++*p.position;
  }
  *p.best = 0;
  p.counters[0] = p.counters[1] = 0;
}

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

// visit<L>() for the kind of the layers' weights.
template <class Visit>
auto with_kind(const GpuProgram& p, const Visit& visit) {
  const bool is_fine = p.group_size == kBlockInputs;
  if (p.bits == 16) return visit.template operator()<Layers<16, false>>();
  if (p.bits == 8) {
    return is_fine ? visit.template operator()<Layers<8, true>>() : visit.template operator()<Layers<8, false>>();
  }
  return is_fine ? visit.template operator()<Layers<4, true>>() : visit.template operator()<Layers<4, false>>();
}

}  // namespace

bool fits_program(const GpuProgram& p) {
  const int group = p.kv_heads > 0 ? p.heads / p.kv_heads : 0;
  if (p.layers < 1 || p.layers > kMostProgramLayers || p.head_bits != 16 || group < 1 || group > 16) return false;
  if (p.head_dim != 64 && p.head_dim != 128) return false;
  if (p.hidden % 8 != 0 || p.intermediate % 8 != 0) return false;
  if (p.bits != 16 && p.group_size != kBlockInputs && p.group_size != kUnitInputs) return false;
  return with_kind(p, [&]<class L>() { return room_of<L>(p).total <= device().shared_per_block - kStaticShared; });
}

void gpu_run_program(const GpuProgram& p, const GpuProgram* there, void* stream) {
  with_kind(p, [&]<class L>() {
    const size_t shared = static_cast<size_t>(room_of<L>(p).total);
    static const cudaError_t allowed = cudaFuncSetAttribute(
        program_kernel<L>, cudaFuncAttributeMaxDynamicSharedMemorySize, device().shared_per_block - kStaticShared);
    (void)allowed;  // a launch that was not allowed fails itself
    // The blocks wait for each other: all must run at once.
    cudaLaunchAttribute together;
    together.id = cudaLaunchAttributeCooperative;
    together.val.cooperative = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(device().multiprocessors));
    config.blockDim = dim3(kProgramThreads);
    config.dynamicSmemBytes = shared;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &together;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, program_kernel<L>, there, program_bytes(p));
  });
}

}  // namespace lowbit
