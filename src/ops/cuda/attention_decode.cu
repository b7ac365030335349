// Attention of one new token per sequence, with its RoPE and its place in the cache. The keys that a KV head
// sees are shared by the blocks of a cluster, in chunks of kKeys, and what is on its way from memory then has
// been there before the kernel's predecessor ends. A warp finds the scores of 16 keys of a chunk, for all
// heads; then it sums up a few columns of the values, over all keys of the chunk. The blocks' sums meet in
// shared memory, each column in one block; where a head's keys are too many for one cluster, the clusters'
// sums are merged by the block that ends last, in the order of the keys.
//
// Where there are no clusters (before compute capability 9.0) each block is one, of a single chunk.
#include "ops/cuda/attention.cuh"
#include "ops/cuda/cluster.cuh"

#include <algorithm>

namespace lowbit {
namespace {

constexpr int kKeys = kGpuDecodeKeys;
constexpr int kDecodeWarps = kKeys / 16, kDecodeThreads = kDecodeWarps * 32;
// More threads than there are, for registers of which two blocks, and one of q, k and v's product, have
// enough.
constexpr int kBound = 3 * kDecodeThreads;
constexpr int kMostBlocks = 16, kMostChunks = 128;  // of a cluster
constexpr int kRows = 16;                           // of an operand: the heads

// The sums depend on it, but not on the capacity of the cache.
struct Split {
  int blocks, chunks;  // of a cluster
  int slots;           // of a block: chunks that are on their way
};

template <int kHeadDim>
constexpr int kChunkBytes = kKeys / kTileKeys* tile_bytes(kHeadDim);
template <int kHeadDim>
constexpr int kDimTiles = (kHeadDim / 8 + kDecodeWarps - 1) / kDecodeWarps;  // of a warp, of 8 columns

template <int kHeadDim>
struct Room {
  static constexpr int kQStride = kHeadDim + 8, kWeightStride = kKeys + 8;  // rows begin in different banks
  alignas(16) uint16_t q[kRows * kQStride];
  alignas(16) uint16_t weights[kRows * kWeightStride];
  alignas(16) float maxima[kRows][kDecodeWarps];
  alignas(16) float totals[kRows][kDecodeWarps];
  // Written by the blocks of the cluster. sums: of each block, the columns that are merged here, of as many
  // warps as send them.
  float2 states[kMostBlocks][kRows];  // maximum, total
  float2 sums[kMostBlocks][kRows][kDimTiles<kHeadDim> * 4];
  uint64_t received;
  float peaks[kRows], merged_totals[kRows];
  int is_last;
};

// Read before the wait, although sampling writes positions at the end of each step: it has ended, and so have
// the attentions of the step before, whose keys are fetched. For what stands before attention (q, k and v's
// product, the first kernel behind sampling, or norms of q and k) lets it begin only behind its own wait. But
// the first-level cache may hold what this multiprocessor read a step ago.
__device__ inline AttentionSequence sequence_at(const AttentionSequence* from) {
  static_assert(sizeof(AttentionSequence) == 3 * sizeof(longlong2));
  const longlong2* const words = reinterpret_cast<const longlong2*>(from);
  const longlong2 read[] = {__ldcg(words), __ldcg(words + 1), __ldcg(words + 2)};
  AttentionSequence sequence;
  memcpy(&sequence, read, sizeof sequence);
  return sequence;
}

constexpr float kUnseen = -1e30f;  // a score below all others, whose weight beside any of them is 0
__device__ inline float weight_of(float score, float peak) {
  float weight;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(weight) : "f"(score - peak));
  return weight;
}

// What the clusters have found for a KV head of a sequence, merged: partial is [parts][group][kWidth],
// values, maximum and total. A warp for each head finds what its parts are relative to, and their total; then
// each thread sums four values over them. Loads do not wait for each other: there may be hundreds of parts.
template <int kHeadDim>
__device__ void merge_parts(const float* partial, int parts, int group, float* peaks, float* totals,
                            uint16_t* out) {
  constexpr int kWidth = gpu_attention_state(kHeadDim);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t step = static_cast<int64_t>(group) * kWidth;
  for (int head = warp; head < group; head += kDecodeWarps) {
    const float* const from = partial + head * kWidth + kHeadDim;
    float peak = kUnseen, total = 0;
    for (int part = lane; part < parts; part += 32) peak = fmaxf(peak, __ldcg(from + part * step));
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
      peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, distance));
    for (int part = lane; part < parts; part += 32) {
      const float2 state = __ldcg(reinterpret_cast<const float2*>(from + part * step));
      total += weight_of(state.x, peak) * state.y;
    }
    total = warp_sum(total);
    if (lane == 0) peaks[head] = peak, totals[head] = total;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < group * (kHeadDim / 4); i += kDecodeThreads) {
    const int head = i / (kHeadDim / 4), d = i % (kHeadDim / 4) * 4;
    const float* const from = partial + head * kWidth;
    const float peak = peaks[head];
    float4 sum = {};
#pragma unroll 8
    for (int part = 0; part < parts; ++part) {
      const float weight = weight_of(__ldcg(from + part * step + kHeadDim), peak);
      const float4 value = __ldcg(reinterpret_cast<const float4*>(from + part * step + d));
      sum = {fmaf(weight, value.x, sum.x), fmaf(weight, value.y, sum.y), fmaf(weight, value.z, sum.z),
             fmaf(weight, value.w, sum.w)};
    }
    const float total = totals[head];
    *reinterpret_cast<uint2*>(out + head * kHeadDim + d) =
        make_uint2(bf16_pair(sum.x / total, sum.y / total), bf16_pair(sum.z / total, sum.w / total));
  }
}

// kHalves: of eight heads that share a KV head.
template <int kHeadDim, int kHalves>
__global__ void __launch_bounds__(kBound, 1)
    decode_kernel(const __grid_constant__ GpuDecodeAttentionArgs args, const __grid_constant__ Split split) {
  constexpr int kWidth = gpu_attention_state(kHeadDim), kSteps = kHeadDim / 16, kTiles = kDimTiles<kHeadDim>,
                kBytes = kChunkBytes<kHeadDim>;
  using Shared = Room<kHeadDim>;
  extern __shared__ __align__(128) char shared[];  // of each slot: keys, values
  __shared__ Shared room;
  let_successor_begin();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  const int heads = static_cast<int>(args.heads), kv_heads = static_cast<int>(args.kv_heads),
            group = heads / kv_heads;
  const AttentionSequence sequence = sequence_at(args.sequences + blockIdx.z);
  const int kv_head = blockIdx.y, position = static_cast<int>(sequence.position);
  const int oldest = args.window > 0 ? max(0, position + 1 - static_cast<int>(args.window)) : 0;
  const int part = static_cast<int>(blockIdx.x) / split.blocks,
            rank = static_cast<int>(blockIdx.x) % split.blocks;

  // Chunks of a cluster, newest first, in turn to its blocks.
  const int newest_chunk = position / kKeys, oldest_chunk = oldest / kKeys;
  auto first_of = [&](int p) { return max(oldest_chunk, p * split.chunks); };
  auto last_of = [&](int p) { return min(newest_chunk, p * split.chunks + split.chunks - 1); };
  auto blocks_of = [&](int p) { return min(split.blocks, last_of(p) - first_of(p) + 1); };
  const int first_part = oldest_chunk / split.chunks, last_part = newest_chunk / split.chunks;
  const int first = first_of(part), last = last_of(part), blocks = blocks_of(part);
  // What has nothing to do makes room at once, but for one block: a kernel has ended behind its predecessor.
  if (sequence.count == 0 || rank >= blocks) {
    if (blockIdx.x + blockIdx.y + blockIdx.z == 0) wait_for_predecessor();
    return;
  }

  uint16_t* const keys = cached_head(sequence.keys, sequence, args.layer_offset, kv_head, kHeadDim);
  uint16_t* const values = cached_head(sequence.values, sequence, args.layer_offset, kv_head, kHeadDim);
  const uint32_t base = shared_address(shared);
  auto fetch = [&](int chunk, int slot) {  // the new key is not there yet
    const int begin = chunk * kKeys, end = min(position, begin + kKeys);
    constexpr int kPieces = kHeadDim / 8;
    const uint32_t to = base + 2 * slot * kBytes;
#pragma unroll 2
    for (int i = threadIdx.x; i < kKeys * kPieces; i += kDecodeThreads) {
      const int key = i / kPieces, dim = i % kPieces * 8;
      const bool is_there = begin + key < end;
      const int64_t from = is_there ? static_cast<int64_t>(begin + key) * kHeadDim + dim : 0;
      copy_16(to + place<kHeadDim>(key, dim), keys + from, is_there);
      copy_16(to + kBytes + place<kHeadDim>(key, dim), values + from, is_there);
    }
  };
#pragma unroll 1
  for (int i = 0; i < 2; ++i) {
    if (i < split.slots && last - rank - i * blocks >= first) fetch(last - rank - i * blocks, i);
    commit_copies();
  }
  // Each thread turns one pair of columns, of every kVectorsAtOnce-th vector; behind the columns that RoPE
  // turns, neighbours are pairs that stay as they are.
  constexpr int kPairs = kHeadDim / 2, kVectorsAtOnce = kDecodeThreads / kPairs;
  const int pair = static_cast<int>(threadIdx.x) % kPairs, half = static_cast<int>(args.half);
  const bool turns = pair < half;
  const int d = turns ? pair : 2 * pair, e = turns ? pair + half : 2 * pair + 1;
  const int64_t angle = static_cast<int64_t>(position) * half + pair;
  const float cosine = turns ? args.cosines[angle] : 1, sine = turns ? args.sines[angle] : 0;
#pragma unroll 1
  for (int i = group * Shared::kQStride + threadIdx.x; i < kRows * Shared::kQStride; i += kDecodeThreads)
    room.q[i] = 0;  // no heads
  const int64_t row = sequence.row;
  const bool has_new = last == newest_chunk && rank == 0;
  const uint16_t* const new_key = kept(args.k + (row * kv_heads + kv_head) * kHeadDim);
  const uint16_t* const new_value = kept(args.v + (row * kv_heads + kv_head) * kHeadDim);
  const uint16_t* const q = kept(args.q + (row * heads + kv_head * group) * kHeadDim);
  uint16_t* const to = kept(args.out + (row * heads + kv_head * group) * kHeadDim);
  const float factor = kept(args.scale) * kLog2E;
  const int64_t new_at = static_cast<int64_t>(position) * kHeadDim;
  auto new_place = [&](int column) { return place<kHeadDim>(position % kKeys, column) + column % 8 * 2; };
  // Warp w's columns of all blocks meet in block w % blocks: so many warps send to a block, and to this one.
  const int senders = (kDecodeWarps + blocks - 1) / blocks,
            own_senders = (kDecodeWarps - 1 - rank + blocks) / blocks;
  if (blocks > 1) {
    if (threadIdx.x == 0 && rank < kDecodeWarps)
      expect_bytes(&room.received, blocks * (kHalves * 64 + own_senders * group * kTiles * 32));
    arrive_in_cluster();
  }
  wait_for_copies<1>();
  __syncthreads();
  wait_for_predecessor();

  // The query heads, and in the block that has its chunk the new key and its value.
  const bool brings_value = has_new && static_cast<int>(threadIdx.x) < kHeadDim;
  const uint16_t value = brings_value ? __ldcg(new_value + threadIdx.x) : uint16_t{0};
  const int vectors = group + (has_new ? 1 : 0);
#pragma unroll 2
  for (int head = static_cast<int>(threadIdx.x) / kPairs; head < vectors; head += kVectorsAtOnce) {
    if (static_cast<int>(threadIdx.x) >= kVectorsAtOnce * kPairs) break;
    const uint16_t* const from = head < group ? q + head * kHeadDim : new_key;
    const Pair turned = rotated(bf16_to_f32(__ldcg(from + d)), bf16_to_f32(__ldcg(from + e)), cosine, sine);
    const uint16_t first_value = f32_to_bf16(turned.first), second_value = f32_to_bf16(turned.second);
    if (head < group) {
      room.q[head * Shared::kQStride + d] = first_value;
      room.q[head * Shared::kQStride + e] = second_value;
    } else {
      keys[new_at + d] = first_value;
      keys[new_at + e] = second_value;
      *reinterpret_cast<uint16_t*>(shared + new_place(d)) = first_value;
      *reinterpret_cast<uint16_t*>(shared + new_place(e)) = second_value;
    }
  }
  static_assert(kHeadDim <= kDecodeThreads);
  if (brings_value) {
    values[new_at + threadIdx.x] = value;
    *reinterpret_cast<uint16_t*>(shared + kBytes + new_place(threadIdx.x)) = value;
  }
  __syncthreads();

  Operand queries[kSteps];
#pragma unroll
  for (int s = 0; s < kSteps; ++s)
    load_matrices(queries[s].pair,
                  shared_address(room.q + lane % 16 * Shared::kQStride + s * 16 + lane / 16 * 8));
  float out[kTiles][4] = {}, maximum[kHalves], total[kHalves] = {};  // of rows g, g + 8
#pragma unroll
  for (float& most : maximum) most = kUnseen;
  int slot = 0;
#pragma unroll 1
  for (int chunk = last - rank; chunk >= first; chunk -= blocks) {
    const uint32_t tile_keys = base + 2 * slot * kBytes, tile_values = tile_keys + kBytes;
    if (chunk != last - rank) {
      wait_for_copies<1>();
      __syncthreads();
    }
    float scores[2][4] = {}, odd_scores[2][4] = {};  // two chains of sums
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      uint32_t b[4];
      load_matrices(
          b, tile_keys + place<kHeadDim>(warp * 16 + lane / 16 * 8 + lane % 8, s * 16 + lane / 8 % 2 * 8));
      auto& chain = s % 2 ? odd_scores : scores;
      multiply_add(chain[0], queries[s], b[0], b[1]);
      multiply_add(chain[1], queries[s], b[2], b[3]);
    }
    float most[kHalves];
#pragma unroll
    for (int upper = 0; upper < kHalves; ++upper) {
      most[upper] = kUnseen;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int key = chunk * kKeys + warp * 16 + n * 8 + 2 * c + j;
          float& score = scores[n][2 * upper + j];
          score += odd_scores[n][2 * upper + j];
          score = key <= position && key >= oldest ? score * factor : kUnseen;
          most[upper] = fmaxf(most[upper], score);
        }
      }
    }
#pragma unroll
    for (int upper = 0; upper < kHalves; ++upper) {
      most[upper] = fmaxf(most[upper], __shfl_xor_sync(0xffffffffu, most[upper], 1));
      most[upper] = fmaxf(most[upper], __shfl_xor_sync(0xffffffffu, most[upper], 2));
      if (c == 0) room.maxima[g + 8 * upper][warp] = most[upper];
    }
    __syncthreads();
    float sums[kHalves] = {}, rescale[kHalves];
#pragma unroll
    for (int upper = 0; upper < kHalves; ++upper) {
      float now = maximum[upper];
#pragma unroll
      for (int w = 0; w < kDecodeWarps; ++w) now = fmaxf(now, room.maxima[g + 8 * upper][w]);
      rescale[upper] = weight_of(maximum[upper], now);
      maximum[upper] = now;
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int upper = 0; upper < kHalves; ++upper) {
        const float first_weight = weight_of(scores[n][2 * upper], maximum[upper]),
                    second_weight = weight_of(scores[n][2 * upper + 1], maximum[upper]);
        sums[upper] += first_weight + second_weight;
        *reinterpret_cast<uint32_t*>(room.weights + (g + 8 * upper) * Shared::kWeightStride + warp * 16 +
                                     n * 8 + 2 * c) = bf16_pair(first_weight, second_weight);
      }
    }
#pragma unroll
    for (int upper = 0; upper < kHalves; ++upper) {
      sums[upper] += __shfl_xor_sync(0xffffffffu, sums[upper], 1);
      sums[upper] += __shfl_xor_sync(0xffffffffu, sums[upper], 2);
      if (c == 0) room.totals[g + 8 * upper][warp] = sums[upper];
    }
    __syncthreads();
#pragma unroll
    for (int upper = 0; upper < kHalves; ++upper) {
      total[upper] *= rescale[upper];
#pragma unroll
      for (int w = 0; w < kDecodeWarps; ++w) total[upper] += room.totals[g + 8 * upper][w];
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
        out[t][2 * upper] *= rescale[upper], out[t][2 * upper + 1] *= rescale[upper];
    }
    if (warp * kTiles * 8 < kHeadDim) {
      float odd_out[kTiles][4] = {};
#pragma unroll
      for (int k = 0; k < kKeys; k += 32) {
        Operand weights[2];
#pragma unroll
        for (int i = 0; i < 2; ++i)
          load_matrices(weights[i].pair, shared_address(room.weights + lane % 16 * Shared::kWeightStride + k +
                                                        i * 16 + lane / 16 * 8));
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          uint32_t b[4];
          load_transposed(b, tile_values + place<kHeadDim>(k + lane, (warp * kTiles + t) * 8));
          multiply_add(out[t], weights[0], b[0], b[1]);
          multiply_add(odd_out[t], weights[1], b[2], b[3]);
        }
      }
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int j = 0; j < 4; ++j) out[t][j] += odd_out[t][j];
      }
    }
    if (const int next = chunk - 2 * blocks; next >= first) {
      __syncthreads();
      fetch(next, slot);
    }
    commit_copies();
    slot ^= 1;
  }

  if (blocks > 1) {
    wait_for_cluster();  // all have begun
    if (warp < blocks && c == 0) {
#pragma unroll
      for (int upper = 0; upper < kHalves; ++upper)
        send(&room.states[rank][g + 8 * upper], warp, {maximum[upper], total[upper]}, &room.received);
    }
    const int receiver = warp % blocks;
#pragma unroll
    for (int upper = 0; upper < kHalves; ++upper) {
      if (g + 8 * upper >= group) continue;
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
        send(&room.sums[rank * senders + warp / blocks][g + 8 * upper][t * 4 + c], receiver,
             {out[t][2 * upper], out[t][2 * upper + 1]}, &room.received);
    }
    if (receiver == rank) {
      wait_for_bytes(&room.received);
#pragma unroll
      for (int upper = 0; upper < kHalves; ++upper) {
        const int head = g + 8 * upper;
        if (head >= group) continue;
        float peak = kUnseen;
        for (int block = 0; block < blocks; ++block) peak = fmaxf(peak, room.states[block][head].x);
        total[upper] = 0;
#pragma unroll
        for (int t = 0; t < kTiles; ++t) out[t][2 * upper] = out[t][2 * upper + 1] = 0;
        for (int block = 0; block < blocks; ++block) {
          const float2 state = room.states[block][head];
          const float weight = weight_of(state.x, peak);
          total[upper] = fmaf(weight, state.y, total[upper]);
#pragma unroll
          for (int t = 0; t < kTiles; ++t) {
            const float2 sum = room.sums[block * senders + warp / blocks][head][t * 4 + c];
            out[t][2 * upper] = fmaf(weight, sum.x, out[t][2 * upper]);
            out[t][2 * upper + 1] = fmaf(weight, sum.y, out[t][2 * upper + 1]);
          }
        }
        maximum[upper] = peak;
      }
    }
  }

  const bool is_mine = warp % blocks == rank && warp * kTiles * 8 < kHeadDim,
             is_whole = first_part == last_part;
  const int parts = last_part - first_part + 1;
  float* const partial = args.partial + ((row * kv_heads + kv_head) * args.most_chunks) * group * kWidth;
  if (is_mine) {
#pragma unroll
    for (int upper = 0; upper < kHalves; ++upper) {
      const int head = g + 8 * upper;
      if (head >= group) continue;
      const float inverse = 1 / total[upper];
      float* const state = partial + ((part - first_part) * group + head) * kWidth;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const int d = (warp * kTiles + t) * 8 + 2 * c;
        const float first_value = out[t][2 * upper], second_value = out[t][2 * upper + 1];
        if (is_whole) {
          *reinterpret_cast<uint32_t*>(to + head * kHeadDim + d) =
              bf16_pair(first_value * inverse, second_value * inverse);
        } else {
          *reinterpret_cast<float2*>(state + d) = make_float2(first_value, second_value);
        }
      }
      if (!is_whole && warp == 0 && c == 0)
        *reinterpret_cast<float2*>(state + kHeadDim) = make_float2(maximum[upper], total[upper]);
    }
  }
  if (is_whole) return;

  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    int all = 0;
    for (int p = first_part; p <= last_part; ++p) all += blocks_of(p);
    int32_t* const arrivals = args.arrivals + row * kv_heads + kv_head;
    room.is_last = atomicAdd(arrivals, 1) == all - 1;
    if (room.is_last) *arrivals = 0;  // for the next layer
  }
  __syncthreads();
  if (!room.is_last) return;
  __threadfence();
  merge_parts<kHeadDim>(partial, parts, group, room.peaks, room.merged_totals, to);
}

// Of a cluster, whose blocks have room for two chunks. 1 where there are no clusters, or not so much room.
template <auto kKernel>
int most_blocks(int slot_bytes) {
  static const int found = [&] {
    int device = 0, has_clusters = 0, shared_bytes = 0, blocks = 1;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&has_clusters, cudaDevAttrClusterLaunch, device);
    cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    cudaFuncAttributes attributes = {};
    cudaFuncGetAttributes(&attributes, kKernel);
    const bool is_wide =
        has_clusters && static_cast<int>(attributes.sharedSizeBytes) + 2 * slot_bytes <= shared_bytes;
    allow_shared_memory<kKernel>(is_wide ? 2 * slot_bytes : slot_bytes);
    prefer_shared_memory<kKernel>();
    if (!is_wide) return 1;
    // More than 8 are for a GPU to allow.
    cudaFuncSetAttribute(kKernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(kMostBlocks);
    config.blockDim = dim3(kDecodeThreads);
    config.dynamicSmemBytes = static_cast<size_t>(2 * slot_bytes);
    if (cudaOccupancyMaxPotentialClusterSize(&blocks, kKernel, &config) != cudaSuccess) return 1;
    int most = 1;
    while (2 * most <= std::min(blocks, kMostBlocks)) most *= 2;
    return most;
  }();
  return found;
}

template <int kHeadDim, int kHalves>
void launch_kind(const GpuDecodeAttentionArgs& args, void* stream) {
  constexpr int kSlotBytes = 2 * kChunkBytes<kHeadDim>;
  constexpr auto kKernel = decode_kernel<kHeadDim, kHalves>;
  const int most = most_blocks<kKernel>(kSlotBytes), most_chunks = static_cast<int>(args.most_chunks);
  Split split{std::min(most, most_chunks), most > 1 ? kMostChunks : 1, 1};
  if (most > 1 && most_chunks > split.blocks) split.slots = 2;
  const int clusters = (most_chunks + split.chunks - 1) / split.chunks;
  const dim3 grid(static_cast<unsigned>(clusters * split.blocks), static_cast<unsigned>(args.kv_heads),
                  static_cast<unsigned>(args.count));
  launch_clusters(kKernel, grid, static_cast<unsigned>(split.blocks), dim3(kDecodeThreads),
                  static_cast<size_t>(split.slots * kSlotBytes), stream, args, split);
}

}  // namespace

void gpu_decode_attention(const GpuDecodeAttentionArgs& args, void* stream) {
  with_head_dim(args.head_dim, [&]<int kHeadDim>() {
    if (args.heads / args.kv_heads <= 8) {
      launch_kind<kHeadDim, 1>(args, stream);
    } else {
      launch_kind<kHeadDim, 2>(args, stream);
    }
  });
}

}  // namespace lowbit
