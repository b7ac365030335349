// The streamed softmax of Milakov and Gimelshein (arXiv 1805.02867) in tiles as in FlashAttention-2 (Dao, arXiv
// 2307.08691). Rows are the query heads of a KV head, token by token: row r is head r % group of token r / group, so
// that a key is read once for all heads that share it.
#include "ops/cuda/attention_gpu.h"
#include "ops/cuda/device.cuh"

#include <algorithm>
#include <cmath>

namespace lowbit {
namespace {

constexpr int kTileKeys = 64, kWarps = 4, kThreads = kWarps * 32;
static_assert(kTileKeys == kGpuAttentionKeys);

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
// 16 bytes to shared memory; zeros where `is_there` is false.
__device__ inline void copy_async(uint32_t to, const void* from, bool is_there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(is_there ? 16 : 0));
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;"); }
template <int kLeft>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft));
}
__device__ inline void load_matrices(uint32_t (&to)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address));
}
__device__ inline void load_transposed(uint32_t (&to)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address));
}

// A tile [kTileKeys, kHeadDim] in shared memory; pieces of 16 bytes change places within a row, so that eight rows at
// one column lie in different banks.
template <int kHeadDim>
__device__ inline uint32_t place(int key, int dim) {
  constexpr int kPieces = kHeadDim / 8;
  const int piece = dim / 8 ^ (kPieces >= 8 ? key % 8 : key / 2 % kPieces);
  return static_cast<uint32_t>((key * kPieces + piece) * 16);
}

template <int kHeadDim>
__device__ inline void fetch_tile(uint32_t to, const uint16_t* from, int first, int end) {
  constexpr int kPieces = kHeadDim / 8;
#pragma unroll
  for (int i = threadIdx.x; i < kTileKeys * kPieces; i += kThreads) {
    const int key = i / kPieces, dim = i % kPieces * 8;
    const bool is_there = first + key < end;
    copy_async(to + place<kHeadDim>(key, dim), from + static_cast<int64_t>(is_there ? first + key : 0) * kHeadDim + dim,
               is_there);
  }
}

// Decoding: the warps have the same 16 rows, each a quarter of a tile's keys. Otherwise each has 16 rows of 64.
template <int kHeadDim, bool kDecode>
__global__ void __launch_bounds__(kThreads) attention_kernel(const GpuAttentionArgs args) {
  follow_predecessor();
  constexpr int kSteps = kHeadDim / 16, kKeyTiles = kDecode ? 2 : kTileKeys / 8, kDimTiles = kHeadDim / 8;
  constexpr int kTileBytes = kTileKeys * kHeadDim * 2, kStages = kDecode ? 1 : 2;
  extern __shared__ __align__(128) char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  const int group = static_cast<int>(args.heads / args.kv_heads);
  const AttentionSequence sequence = args.sequences[blockIdx.z];
  const int kv_head = blockIdx.y, rows = static_cast<int>(sequence.count) * group;
  const int row_block = kDecode ? 0 : static_cast<int>(gridDim.x - 1 - blockIdx.x) * 64;  // the longest first
  const int chunk = kDecode ? static_cast<int>(blockIdx.x) : 0;
  if (row_block >= rows) return;
  const int position = static_cast<int>(sequence.position);

  const int last_row = min(row_block + (kDecode ? 16 : 64), rows) - 1;
  int key_begin = 0, key_end = position + last_row / group + 1;
  if (args.window > 0) key_begin = max(0, position + row_block / group + 1 - static_cast<int>(args.window));
  key_begin = key_begin / kTileKeys * kTileKeys;
  if (kDecode) {
    const int first = chunk * kTileKeys;
    if (first >= key_end) return;
    if (first < key_begin) key_end = first;  // outside the window: an empty state
    key_begin = first;
    key_end = min(key_end, first + kTileKeys);
  }

  const int64_t head_offset = static_cast<int64_t>(kv_head) * sequence.capacity * kHeadDim;
  const uint16_t* const keys =
      reinterpret_cast<const uint16_t*>(static_cast<const char*>(sequence.keys) + args.layer_offset) + head_offset;
  const uint16_t* const values =
      reinterpret_cast<const uint16_t*>(static_cast<const char*>(sequence.values) + args.layer_offset) + head_offset;
  const uint32_t base = shared_address(shared);
  auto fetch = [&](int stage, int first) {
    fetch_tile<kHeadDim>(base + stage * 2 * kTileBytes, keys, first, key_end);
    fetch_tile<kHeadDim>(base + stage * 2 * kTileBytes + kTileBytes, values, first, key_end);
    commit_copies();
  };
  fetch(0, key_begin);

  const int row = row_block + (kDecode ? 0 : warp * 16) + g, row8 = row + 8;
  int seen[2], oldest[2];  // keys that rows g and g + 8 see: [oldest, seen)
  Operand q[kSteps];
#pragma unroll
  for (int upper = 0; upper < 2; ++upper) {
    const int r = upper ? row8 : row, token = r / group;
    seen[upper] = r < rows ? position + token + 1 : 0;
    oldest[upper] = args.window > 0 ? seen[upper] - static_cast<int>(args.window) : 0;
    const uint16_t* const from =
        args.q + ((sequence.row + token) * args.heads + kv_head * group + r % group) * kHeadDim + 2 * c;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        q[s].pair[half * 2 + upper] =
            r < rows ? *reinterpret_cast<const uint32_t*>(from + s * 16 + half * 8) : 0;
      }
    }
  }

  const float factor = args.scale * 1.44269504f;  // exp2 instead of exp
  float out[kDimTiles][4] = {}, maximum[2] = {-INFINITY, -INFINITY}, total[2] = {};
  const int first_key = kDecode ? warp * 16 : 0;
  int stage = 0;
  for (int tile = key_begin; tile < key_end; tile += kTileKeys) {
    if (kStages == 2 && tile + kTileKeys < key_end) {
      fetch(stage ^ 1, tile + kTileKeys);
      wait_for_copies<1>();
    } else {
      wait_for_copies<0>();
    }
    __syncthreads();
    const uint32_t tile_keys = base + stage * 2 * kTileBytes, tile_values = tile_keys + kTileBytes;

    float scores[kKeyTiles][4] = {};
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int n = 0; n < kKeyTiles; n += 2) {
        uint32_t b[4];
        load_matrices(b, tile_keys + place<kHeadDim>(first_key + n * 8 + lane / 16 * 8 + lane % 8,
                                                     s * 16 + lane / 8 % 2 * 8));
        multiply_add(scores[n], q[s], b[0], b[1]);
        multiply_add(scores[n + 1], q[s], b[2], b[3]);
      }
    }
    float most[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int key = tile + first_key + n * 8 + 2 * c + j % 2;
        const bool is_seen = key < seen[j / 2] && key >= oldest[j / 2];
        scores[n][j] = is_seen ? scores[n][j] * factor : -INFINITY;
        most[j / 2] = fmaxf(most[j / 2], scores[n][j]);
      }
    }
    float rescale[2];
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      most[upper] = fmaxf(most[upper], __shfl_xor_sync(0xffffffffu, most[upper], 1));
      most[upper] = fmaxf(most[upper], __shfl_xor_sync(0xffffffffu, most[upper], 2));
      const float now = fmaxf(maximum[upper], most[upper]);
      rescale[upper] = now == -INFINITY ? 1 : exp2f(maximum[upper] - now);
      maximum[upper] = now;
      total[upper] *= rescale[upper];
    }
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float weight = scores[n][j] == -INFINITY ? 0 : exp2f(scores[n][j] - maximum[j / 2]);
        scores[n][j] = weight;
        total[j / 2] += weight;
      }
    }
#pragma unroll
    for (int d = 0; d < kDimTiles; ++d) {
#pragma unroll
      for (int j = 0; j < 4; ++j) out[d][j] *= rescale[j / 2];
    }
#pragma unroll
    for (int n = 0; n < kKeyTiles; n += 2) {
      const Operand weights{{bf16_pair(scores[n][0], scores[n][1]), bf16_pair(scores[n][2], scores[n][3]),
                             bf16_pair(scores[n + 1][0], scores[n + 1][1]),
                             bf16_pair(scores[n + 1][2], scores[n + 1][3])}};
#pragma unroll
      for (int d = 0; d < kDimTiles; d += 2) {
        uint32_t b[4];
        load_transposed(b, tile_values + place<kHeadDim>(first_key + n * 8 + lane / 8 % 2 * 8 + lane % 8,
                                                         d * 8 + lane / 16 * 8));
        multiply_add(out[d], weights, b[0], b[1]);
        multiply_add(out[d + 1], weights, b[2], b[3]);
      }
    }
    __syncthreads();
    stage ^= kStages - 1;
  }
  wait_for_copies<0>();
#pragma unroll
  for (int upper = 0; upper < 2; ++upper) {
    total[upper] += __shfl_xor_sync(0xffffffffu, total[upper], 1);
    total[upper] += __shfl_xor_sync(0xffffffffu, total[upper], 2);
  }

  if constexpr (!kDecode) {
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const int r = upper ? row8 : row;
      if (r >= rows) continue;
      const float inverse = 1 / total[upper];
      uint16_t* const to =
          args.out + ((sequence.row + r / group) * args.heads + kv_head * group + r % group) * kHeadDim + 2 * c;
#pragma unroll
      for (int d = 0; d < kDimTiles; ++d) {
        *reinterpret_cast<uint32_t*>(to + d * 8) =
            bf16_pair(out[d][2 * upper] * inverse, out[d][2 * upper + 1] * inverse);
      }
    }
    return;
  }

  // The warps' states, merged in their order.
  float* const states = reinterpret_cast<float*>(shared);  // [kWarps][16][kHeadDim + 2]
  constexpr int kWidth = kHeadDim + 2;
  __syncthreads();
#pragma unroll
  for (int upper = 0; upper < 2; ++upper) {
    float* const state = states + (warp * 16 + g + upper * 8) * kWidth;
#pragma unroll
    for (int d = 0; d < kDimTiles; ++d) {
      state[d * 8 + 2 * c] = out[d][2 * upper];
      state[d * 8 + 2 * c + 1] = out[d][2 * upper + 1];
    }
    if (c == 0) {
      state[kHeadDim] = maximum[upper];
      state[kHeadDim + 1] = total[upper];
    }
  }
  __syncthreads();
  const int64_t chunks = (args.most_keys + kTileKeys - 1) / kTileKeys;
  for (int i = threadIdx.x; i < min(rows, 16) * kWidth; i += kThreads) {
    const int r = i / kWidth, d = i % kWidth;
    float peak = -INFINITY;
    for (int w = 0; w < kWarps; ++w) peak = fmaxf(peak, states[(w * 16 + r) * kWidth + kHeadDim]);
    float value = 0;
    for (int w = 0; w < kWarps; ++w) {
      const float* const state = states + (w * 16 + r) * kWidth;
      if (state[kHeadDim] != -INFINITY) value += exp2f(state[kHeadDim] - peak) * state[d];
    }
    if (d == kHeadDim) value = peak;
    const int64_t token = sequence.row + r / group, head = kv_head * group + r % group;
    args.partial[((token * args.heads + head) * chunks + chunk) * kWidth + d] = value;
  }
}

// A block for each head of a sequence's one new token; threads are dimensions.
__global__ void combine_kernel(const GpuAttentionArgs args) {
  follow_predecessor();
  const AttentionSequence sequence = args.sequences[blockIdx.y];
  if (sequence.count == 0) return;
  const int64_t head = blockIdx.x, width = args.head_dim + 2;
  const int64_t most_chunks = (args.most_keys + kTileKeys - 1) / kTileKeys;
  const int chunks = static_cast<int>(sequence.position / kTileKeys) + 1;
  const float* const states = args.partial + (sequence.row * args.heads + head) * most_chunks * width;
  float peak = -INFINITY;
  for (int chunk = 0; chunk < chunks; ++chunk) peak = fmaxf(peak, states[chunk * width + args.head_dim]);
  float total = 0, value = 0;
  const int d = threadIdx.x;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const float* const state = states + chunk * width;
    if (state[args.head_dim] == -INFINITY) continue;
    const float weight = exp2f(state[args.head_dim] - peak);
    total += weight * state[args.head_dim + 1];
    value += weight * state[d];
  }
  args.out[(sequence.row * args.heads + head) * args.head_dim + d] = f32_to_bf16(value / total);
}

// Any size of head up to 256; a warp for each row, its lanes have dimensions lane, lane + 32, ...
__global__ void plain_kernel(const GpuAttentionArgs args) {
  follow_predecessor();
  constexpr int kMost = 8;
  const AttentionSequence sequence = args.sequences[blockIdx.z];
  const int64_t group = args.heads / args.kv_heads, head = blockIdx.y, kv_head = head / group, dim = args.head_dim;
  const int lane = threadIdx.x % 32;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (token >= sequence.count) return;
  const int64_t offset = args.layer_offset / 2 + kv_head * sequence.capacity * dim;
  const uint16_t* const keys = static_cast<const uint16_t*>(sequence.keys) + offset;
  const uint16_t* const values = static_cast<const uint16_t*>(sequence.values) + offset;
  const int64_t at = ((sequence.row + token) * args.heads + head) * dim;
  float q[kMost] = {}, out[kMost] = {}, maximum = -INFINITY, total = 0;
  for (int i = 0; lane + 32 * i < dim; ++i) q[i] = bf16_to_f32(args.q[at + lane + 32 * i]) * args.scale;
  const int64_t end = sequence.position + token + 1;
  for (int64_t key = args.window > 0 ? max(int64_t{0}, end - args.window) : 0; key < end; ++key) {
    float score = 0;
    for (int i = 0; lane + 32 * i < dim; ++i) score += q[i] * bf16_to_f32(keys[key * dim + lane + 32 * i]);
    score = warp_sum(score);
    const float now = fmaxf(maximum, score), rescale = expf(maximum - now), weight = expf(score - now);
    maximum = now;
    total = total * rescale + weight;
    for (int i = 0; lane + 32 * i < dim; ++i)
      out[i] = out[i] * rescale + weight * bf16_to_f32(values[key * dim + lane + 32 * i]);
  }
  for (int i = 0; lane + 32 * i < dim; ++i) args.out[at + lane + 32 * i] = f32_to_bf16(out[i] / total);
}

template <int kHeadDim, bool kDecode>
void launch_kernel(const GpuAttentionArgs& args, void* stream) {
  constexpr int kTileBytes = kTileKeys * kHeadDim * 2;
  constexpr int kStates = kDecode ? kWarps * 16 * (kHeadDim + 2) * 4 : 0;
  constexpr int kShared = std::max((kDecode ? 2 : 4) * kTileBytes, kStates);
  static const cudaError_t allowed =
      cudaFuncSetAttribute(attention_kernel<kHeadDim, kDecode>, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  (void)allowed;  // a launch that was not allowed fails itself
  const int64_t blocks = kDecode ? (args.most_keys + kTileKeys - 1) / kTileKeys
                                 : (args.most_tokens * (args.heads / args.kv_heads) + 63) / 64;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(args.kv_heads), static_cast<unsigned>(args.count));
  launch(attention_kernel<kHeadDim, kDecode>, grid, dim3(kThreads), kShared, stream, args);
}

template <int kHeadDim>
void launch_for_head(const GpuAttentionArgs& args, void* stream) {
  if (!args.decode) return launch_kernel<kHeadDim, false>(args, stream);
  launch_kernel<kHeadDim, true>(args, stream);
  const dim3 grid(static_cast<unsigned>(args.heads), static_cast<unsigned>(args.count));
  launch(combine_kernel, grid, dim3(kHeadDim), 0, stream, args);
}

// A block for each new token, or a few: q is rotated where it is, k on its way to the cache, and v goes there.
__global__ void append_kernel(const GpuAppendArgs args) {
  follow_predecessor();
  const AttentionSequence sequence = args.sequences[blockIdx.y];
  const int dim = static_cast<int>(args.head_dim), half = static_cast<int>(args.half);
  const int rest = dim - half, heads = static_cast<int>(args.heads), kv_heads = static_cast<int>(args.kv_heads);
  for (int64_t token = blockIdx.x; token < sequence.count; token += gridDim.x) {
    const int64_t position = sequence.position + token, row = sequence.row + token;
    const float *const cosines = args.cosines + position * half, *const sines = args.sines + position * half;
    auto cached = [&](void* cache, int head) {
      return static_cast<uint16_t*>(cache) + args.layer_offset / 2 + (head * sequence.capacity + position) * dim;
    };
    // Pair d of a head: d and d + half; behind 2 half elements stay as they are.
    for (int i = threadIdx.x; i < (heads + kv_heads) * rest; i += blockDim.x) {
      const int head = i / rest, d = i % rest;
      const bool is_q = head < heads;
      uint16_t* const from = is_q ? args.q + (row * heads + head) * dim : nullptr;
      const uint16_t* const x = is_q ? from : args.k + (row * kv_heads + head - heads) * dim;
      uint16_t* const to = is_q ? from : cached(sequence.keys, head - heads);
      if (d < half) {
        const float a = bf16_to_f32(x[d]), b = bf16_to_f32(x[d + half]), cosine = cosines[d], sine = sines[d];
        to[d] = f32_to_bf16(a * cosine - b * sine);
        to[d + half] = f32_to_bf16(b * cosine + a * sine);
      } else if (d + half < dim) {
        to[d + half] = x[d + half];
      }
    }
    for (int i = threadIdx.x; i < kv_heads * dim; i += blockDim.x)
      cached(sequence.values, i / dim)[i % dim] = args.v[row * kv_heads * dim + i];
  }
}

}  // namespace

void gpu_attention(const GpuAttentionArgs& args, void* stream) {
  const bool fits = !args.decode || (args.most_tokens == 1 && args.heads / args.kv_heads <= 16);
  switch (fits ? args.head_dim : 0) {
    case 32:
      return launch_for_head<32>(args, stream);
    case 64:
      return launch_for_head<64>(args, stream);
    case 96:
      return launch_for_head<96>(args, stream);
    case 128:
      return launch_for_head<128>(args, stream);
    default:
      break;
  }
  const dim3 grid(static_cast<unsigned>((args.most_tokens + kWarps - 1) / kWarps), static_cast<unsigned>(args.heads),
                  static_cast<unsigned>(args.count));
  launch(plain_kernel, grid, dim3(kThreads), 0, stream, args);
}

void gpu_rope_append(const GpuAppendArgs& args, void* stream) {
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(args.tokens, 1024)), static_cast<unsigned>(args.count));
  launch(append_kernel, grid, dim3(256), 0, stream, args);
}

}  // namespace lowbit
