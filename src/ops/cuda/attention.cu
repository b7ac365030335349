#include "ops/cuda/attention.cuh"

#include <algorithm>

namespace lowbit {
namespace {

// A block has 64 rows of a KV head and goes through all keys that they see; each warp has 16 of the rows.
template <int kHeadDim, bool kHasSlopes>
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
  // Keys [0, end) are seen by row r.
  auto end_of = [&](int r) {
    return position + (args.is_causal ? r / group + 1 : static_cast<int>(sequence.count));
  };
  const int key_end = end_of(min(row_block + 64, count) - 1);
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
  Rows<kHeadDim, kTileKeys / 8, kHasSlopes> rows;
#pragma unroll
  for (int upper = 0; upper < 2; ++upper) {
    const int r = row + upper * 8;
    rows.seen[upper] = r < count ? end_of(r) : 0;
    if constexpr (kHasSlopes) rows.slope[upper] = args.slopes[kv_head * group + r % group] * kLog2E;
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

// Any size of head up to 256. A block for each row, whose warps take its keys in turn and then merge what
// they have; a lane has dimensions lane, lane + 32, ...
constexpr int kPlainWarps = 8, kPlainMost = 8;  // of dimensions of a lane
__global__ void __launch_bounds__(kPlainWarps * 32) plain_kernel(const GpuAttentionArgs args) {
  follow_predecessor();
  __shared__ float maxima[kPlainWarps], totals[kPlainWarps], sums[kPlainWarps][kPlainMost * 32];
  const AttentionSequence sequence = args.sequences[blockIdx.z];
  const int64_t group = args.heads / args.kv_heads, head = blockIdx.y, kv_head = head / group,
                token = blockIdx.x;
  if (token >= sequence.count) return;
  const int dim = static_cast<int>(args.head_dim), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint16_t* const keys =
      cached_head(sequence.keys, sequence, args.layer_offset, static_cast<int>(kv_head), dim);
  const uint16_t* const values =
      cached_head(sequence.values, sequence, args.layer_offset, static_cast<int>(kv_head), dim);
  const int64_t at = ((sequence.row + token) * args.heads + head) * dim;
  float q[kPlainMost], out[kPlainMost] = {}, maximum = -INFINITY, total = 0;
  auto value_at = [&](const uint16_t* row, int i) {
    return lane + 32 * i < dim ? bf16_to_f32(row[lane + 32 * i]) : 0.0f;
  };
#pragma unroll
  for (int i = 0; i < kPlainMost; ++i) q[i] = value_at(args.q + at, i) * args.scale;
  const float slope = args.slopes ? args.slopes[head] : 0;
  const int64_t last = sequence.position + token,
                end = args.is_causal ? last + 1 : sequence.position + sequence.count;
  const int64_t begin = args.window > 0 ? max(int64_t{0}, end - args.window) : 0;
  for (int64_t key = begin + warp; key < end; key += kPlainWarps) {
    float score = 0;
#pragma unroll
    for (int i = 0; i < kPlainMost; ++i) score += q[i] * value_at(keys + key * dim, i);
    score = warp_sum(score);
    if (args.slopes) score -= slope * static_cast<float>(last - key);
    const float now = fmaxf(maximum, score), rescale = expf(maximum - now), weight = expf(score - now);
    maximum = now;
    total = total * rescale + weight;
#pragma unroll
    for (int i = 0; i < kPlainMost; ++i) out[i] = out[i] * rescale + weight * value_at(values + key * dim, i);
  }
  if (lane == 0) maxima[warp] = maximum, totals[warp] = total;
#pragma unroll
  for (int i = 0; i < kPlainMost; ++i) sums[warp][lane + 32 * i] = out[i];
  __syncthreads();
  // A warp that had no key has the maximum -INFINITY, and the weight 0.
  float peak = -INFINITY, whole = 0, weights[kPlainWarps];
#pragma unroll
  for (int w = 0; w < kPlainWarps; ++w) peak = fmaxf(peak, maxima[w]);
#pragma unroll
  for (int w = 0; w < kPlainWarps; ++w) {
    weights[w] = expf(maxima[w] - peak);
    whole += weights[w] * totals[w];
  }
  for (int d = threadIdx.x; d < dim; d += kPlainWarps * 32) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kPlainWarps; ++w) sum += weights[w] * sums[w][d];
    args.out[at + d] = f32_to_bf16(sum / whole);
  }
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

template <int kHeadDim, bool kHasSlopes>
void launch_tiles(const GpuAttentionArgs& args, void* stream) {
  constexpr int kShared = 4 * tile_bytes(kHeadDim);
  constexpr auto kKernel = attention_kernel<kHeadDim, kHasSlopes>;
  allow_shared_memory<kKernel>(kShared);
  const int64_t blocks = (args.most_tokens * (args.heads / args.kv_heads) + 63) / 64;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(args.kv_heads),
                  static_cast<unsigned>(args.count));
  launch(kKernel, grid, dim3(kThreads), kShared, stream, args);
}

}  // namespace

void gpu_attention(const GpuAttentionArgs& args, void* stream) {
  if (fits_prompt_attention(args)) return gpu_prompt_attention(args, stream);
  gpu_any_attention(args, stream);
}

void gpu_any_attention(const GpuAttentionArgs& args, void* stream) {
  const bool is_launched = with_head_dim(args.head_dim, [&]<int kHeadDim>() {
    args.slopes ? launch_tiles<kHeadDim, true>(args, stream) : launch_tiles<kHeadDim, false>(args, stream);
  });
  if (is_launched) return;
  const dim3 grid(static_cast<unsigned>(args.most_tokens), static_cast<unsigned>(args.heads),
                  static_cast<unsigned>(args.count));
  launch(plain_kernel, grid, dim3(kPlainWarps * 32), 0, stream, args);
}

void gpu_rope_append(const GpuAppendArgs& args, void* stream) {
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(args.tokens, 1024)),
                  static_cast<unsigned>(args.count));
  launch(append_kernel, grid, dim3(256), 0, stream, args);
}

}  // namespace lowbit
