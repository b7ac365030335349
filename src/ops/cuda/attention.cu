#include "ops/cuda/attention.cuh"

#include <algorithm>

namespace lowbit {
namespace {

// A block has 64 rows of a KV head and goes through all keys that they see; each warp has 16 of the rows.
template <int kHeadDim>
__global__ void __launch_bounds__(kThreads) attention_kernel(const GpuAttentionArgs args) {
  follow_predecessor();
  constexpr int kTileBytes = tile_bytes(kHeadDim);
  extern __shared__ __align__(128) char shared[];
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
  const int group = static_cast<int>(args.heads / args.kv_heads);
  const AttentionSequence sequence = args.sequences[blockIdx.z];
  const int kv_head = blockIdx.y, count = static_cast<int>(sequence.count) * group;
  const int row_block = static_cast<int>(gridDim.x - 1 - blockIdx.x) * 64;  // the longest first
  if (row_block >= count) return;
  const int position = static_cast<int>(sequence.position), window = static_cast<int>(args.window);
  const int key_end = position + (min(row_block + 64, count) - 1) / group + 1;
  int key_begin = window > 0 ? max(0, position + row_block / group + 1 - window) : 0;
  key_begin = key_begin / kTileKeys * kTileKeys;

  const uint16_t* const keys = cached_head(sequence.keys, sequence, args.layer_offset, kv_head, kHeadDim);
  const uint16_t* const values = cached_head(sequence.values, sequence, args.layer_offset, kv_head, kHeadDim);
  const uint32_t base = shared_address(shared);
  auto fetch = [&](int stage, int first) {
    fetch_tile<kHeadDim>(base + stage * 2 * kTileBytes, keys, first, key_end);
    fetch_tile<kHeadDim>(base + stage * 2 * kTileBytes + kTileBytes, values, first, key_end);
    commit_copies();
  };
  fetch(0, key_begin);

  const int row = row_block + warp * 16 + g;
  auto place_in = [&](int r) {
    return ((sequence.row + r / group) * args.heads + kv_head * group + r % group) * kHeadDim + 2 * c;
  };
  Rows<kHeadDim, kTileKeys / 8> rows;
#pragma unroll
  for (int upper = 0; upper < 2; ++upper) {
    const int r = row + upper * 8;
    rows.seen[upper] = r < count ? position + r / group + 1 : 0;
    rows.oldest[upper] = window > 0 ? rows.seen[upper] - window : 0;
#pragma unroll
    for (int s = 0; s < kHeadDim / 16; ++s) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        rows.q[s].pair[half * 2 + upper] =
            r < count ? *reinterpret_cast<const uint32_t*>(args.q + place_in(r) + s * 16 + half * 8) : 0;
      }
    }
  }

  int stage = 0;
  for (int tile = key_begin; tile < key_end; tile += kTileKeys, stage ^= 1) {
    if (tile + kTileKeys < key_end) {
      fetch(stage ^ 1, tile + kTileKeys);
      wait_for_copies<1>();
    } else {
      wait_for_copies<0>();
    }
    __syncthreads();
    const uint32_t at = base + stage * 2 * kTileBytes;
    rows.attend(at, at + kTileBytes, tile, 0, args.scale * kLog2E);
    __syncthreads();
  }
  rows.finish();
#pragma unroll
  for (int upper = 0; upper < 2; ++upper) {
    const int r = row + upper * 8;
    if (r >= count) continue;
    const float inverse = 1 / rows.total[upper];
#pragma unroll
    for (int d = 0; d < kHeadDim / 8; ++d) {
      *reinterpret_cast<uint32_t*>(args.out + place_in(r) + d * 8) =
          bf16_pair(rows.out[d][2 * upper] * inverse, rows.out[d][2 * upper + 1] * inverse);
    }
  }
}

// Any size of head up to 256; a warp for each row, its lanes have dimensions lane, lane + 32, ...
__global__ void plain_kernel(const GpuAttentionArgs args) {
  follow_predecessor();
  constexpr int kMost = 8;
  const AttentionSequence sequence = args.sequences[blockIdx.z];
  const int64_t group = args.heads / args.kv_heads, head = blockIdx.y, kv_head = head / group,
                dim = args.head_dim;
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

// A block for each new token, or a few: q is rotated where it is, k on its way to the cache, and v goes
// there.
__global__ void append_kernel(const GpuAppendArgs args) {
  follow_predecessor();
  const AttentionSequence sequence = args.sequences[blockIdx.y];
  const int dim = static_cast<int>(args.head_dim), half = static_cast<int>(args.half);
  const int rest = dim - half, heads = static_cast<int>(args.heads),
            kv_heads = static_cast<int>(args.kv_heads);
  for (int64_t token = blockIdx.x; token < sequence.count; token += gridDim.x) {
    const int64_t position = sequence.position + token, row = sequence.row + token;
    const float *const cosines = args.cosines + position * half, *const sines = args.sines + position * half;
    auto cached = [&](void* cache, int head) {
      return static_cast<uint16_t*>(cache) + args.layer_offset / 2 +
             (head * sequence.capacity + position) * dim;
    };
    // Pair d of a head: d and d + half; behind 2 half elements stay as they are.
    for (int i = threadIdx.x; i < (heads + kv_heads) * rest; i += blockDim.x) {
      const int head = i / rest, d = i % rest;
      const bool is_q = head < heads;
      uint16_t* const from = is_q ? args.q + (row * heads + head) * dim : nullptr;
      const uint16_t* const x = is_q ? from : args.k + (row * kv_heads + head - heads) * dim;
      uint16_t* const to = is_q ? from : cached(sequence.keys, head - heads);
      if (d < half) {
        const Pair pair = rotated(bf16_to_f32(x[d]), bf16_to_f32(x[d + half]), cosines[d], sines[d]);
        to[d] = f32_to_bf16(pair.first);
        to[d + half] = f32_to_bf16(pair.second);
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
  if (fits_prompt_attention(args)) return gpu_prompt_attention(args, stream);
  gpu_any_attention(args, stream);
}

void gpu_any_attention(const GpuAttentionArgs& args, void* stream) {
  const bool is_launched = with_head_dim(args.head_dim, [&]<int kHeadDim>() {
    constexpr int kShared = 4 * tile_bytes(kHeadDim);
    allow_shared_memory<attention_kernel<kHeadDim>>(kShared);
    const int64_t blocks = (args.most_tokens * (args.heads / args.kv_heads) + 63) / 64;
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(args.kv_heads),
                    static_cast<unsigned>(args.count));
    launch(attention_kernel<kHeadDim>, grid, dim3(kThreads), kShared, stream, args);
  });
  if (is_launched) return;
  const dim3 grid(static_cast<unsigned>((args.most_tokens + kWarps - 1) / kWarps),
                  static_cast<unsigned>(args.heads), static_cast<unsigned>(args.count));
  launch(plain_kernel, grid, dim3(kThreads), 0, stream, args);
}

void gpu_rope_append(const GpuAppendArgs& args, void* stream) {
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(args.tokens, 1024)),
                  static_cast<unsigned>(args.count));
  launch(append_kernel, grid, dim3(256), 0, stream, args);
}

}  // namespace lowbit
