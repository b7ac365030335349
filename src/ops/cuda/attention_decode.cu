// Attention of one new token per sequence, with its RoPE and its place in the cache: a block for each KV head
// and each kGpuDecodeKeys keys; the block that ends last merges what the others have found, in the order of
// the keys.
#include "ops/cuda/attention.cuh"

#include <algorithm>

namespace lowbit {
namespace {

constexpr int kKeys = kGpuDecodeKeys;
constexpr int kTiles = kKeys / kTileKeys;  // of a block; all are fetched at once
constexpr int kDecodeWarps = kKeys / 16, kDecodeThreads = kDecodeWarps * 32;  // 16 keys each

template <int kHeadDim>
__global__ void __launch_bounds__(kDecodeThreads) decode_kernel(const GpuDecodeAttentionArgs args) {
  constexpr int kTileBytes = tile_bytes(kHeadDim), kWidth = gpu_attention_state(kHeadDim),
                kQStride = kHeadDim + 8;
  extern __shared__ __align__(128) char shared[];
  __shared__ uint16_t q_shared[16 * kQStride], k_shared[kHeadDim];
  __shared__ int is_last;
  follow_predecessor();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  const int heads = static_cast<int>(args.heads), kv_heads = static_cast<int>(args.kv_heads),
            group = heads / kv_heads;
  const AttentionSequence sequence = args.sequences[blockIdx.z];
  const int kv_head = blockIdx.y, position = static_cast<int>(sequence.position);
  const int begin = static_cast<int>(blockIdx.x) * kKeys, end = min(position + 1, begin + kKeys);
  if (sequence.count == 0 || begin > position) return;
  const int oldest = args.window > 0 ? max(0, position + 1 - static_cast<int>(args.window)) : 0;
  const int chunks = position / kKeys + 1;

  uint16_t* const keys = cached_head(sequence.keys, sequence, args.layer_offset, kv_head, kHeadDim);
  uint16_t* const values = cached_head(sequence.values, sequence, args.layer_offset, kv_head, kHeadDim);
  const uint32_t base = shared_address(shared);
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    const int first = begin + t * kTileKeys;
    if (first >= end || first + kTileKeys <= oldest) continue;
    fetch_tile<kHeadDim>(base + 2 * t * kTileBytes, keys, first, min(end, position));
    fetch_tile<kHeadDim>(base + (2 * t + 1) * kTileBytes, values, first, min(end, position));
  }
  commit_copies();

  // The query heads, and where the new key is among this block's, it too: all that is read is asked for at
  // once.
  const int half = static_cast<int>(args.half);
  const int64_t angles = static_cast<int64_t>(position) * half;
  const float *const cosines = args.cosines + angles, *const sines = args.sines + angles;
  const int64_t row = sequence.row;
  const bool has_new = end == position + 1;
  const uint16_t* const new_key = args.k + (row * kv_heads + kv_head) * kHeadDim;
  const uint16_t* const new_value = args.v + (row * kv_heads + kv_head) * kHeadDim;
  static_assert(kHeadDim <= kDecodeThreads);
  const uint16_t value = has_new && threadIdx.x < kHeadDim ? __ldcg(new_value + threadIdx.x) : uint16_t{0};
  const int vectors = group + (has_new ? 1 : 0);
#pragma unroll 4
  for (int i = threadIdx.x; i < vectors * half; i += kDecodeThreads) {
    const int head = i / half, d = i % half;
    const uint16_t* const from =
        head < group ? args.q + (row * heads + kv_head * group + head) * kHeadDim : new_key;
    uint16_t* const to = head < group ? q_shared + head * kQStride : k_shared;
    const Pair pair = rotated(bf16_to_f32(__ldcg(from + d)), bf16_to_f32(__ldcg(from + d + half)),
                              __ldg(cosines + d), __ldg(sines + d));
    to[d] = f32_to_bf16(pair.first);
    to[d + half] = f32_to_bf16(pair.second);
  }
  for (int i = threadIdx.x; i < vectors * (kHeadDim - 2 * half); i += kDecodeThreads) {
    const int head = i / (kHeadDim - 2 * half), d = 2 * half + i % (kHeadDim - 2 * half);
    const uint16_t* const from =
        head < group ? args.q + (row * heads + kv_head * group + head) * kHeadDim : new_key;
    (head < group ? q_shared + head * kQStride : k_shared)[d] = __ldcg(from + d);
  }
  for (int i = group * kQStride + threadIdx.x; i < 16 * kQStride; i += kDecodeThreads)
    q_shared[i] = 0;  // no heads
  wait_for_copies<0>();
  __syncthreads();
  if (has_new) {
    if (threadIdx.x < kHeadDim) {
      const int t = (position - begin) / kTileKeys, key = (position - begin) % kTileKeys, d = threadIdx.x;
      keys[static_cast<int64_t>(position) * kHeadDim + d] = k_shared[d];
      values[static_cast<int64_t>(position) * kHeadDim + d] = value;
      const uint32_t in_tile = place<kHeadDim>(key, d) + d % 8 * 2;
      *reinterpret_cast<uint16_t*>(shared + 2 * t * kTileBytes + in_tile) = k_shared[d];
      *reinterpret_cast<uint16_t*>(shared + (2 * t + 1) * kTileBytes + in_tile) = value;
    }
    __syncthreads();
  }

  // The warps have the same 16 rows, the heads, and 16 keys each.
  Rows<kHeadDim, 2> rows;
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
  const int t = warp / 4, first = begin + t * kTileKeys;
  if (first < end && first + kTileKeys > oldest)
    rows.attend(base + 2 * t * kTileBytes, base + (2 * t + 1) * kTileBytes, first, warp % 4 * 16,
                args.scale * kLog2E);
  rows.finish();

  __syncthreads();
  float* const states =
      reinterpret_cast<float*>(shared);  // [kDecodeWarps][group][kWidth]: values, maximum, total
#pragma unroll
  for (int upper = 0; upper < 2; ++upper) {
    if (g + upper * 8 >= group) continue;
    float* const state = states + (warp * group + g + upper * 8) * kWidth;
#pragma unroll
    for (int d = 0; d < kHeadDim / 8; ++d)
      *reinterpret_cast<float2*>(state + d * 8 + 2 * c) =
          make_float2(rows.out[d][2 * upper], rows.out[d][2 * upper + 1]);
    if (c == 0)
      *reinterpret_cast<float2*>(state + kHeadDim) = make_float2(rows.maximum[upper], rows.total[upper]);
  }
  __syncthreads();
  auto weight_of = [](float maximum, float peak) { return maximum == -INFINITY ? 0 : exp2f(maximum - peak); };
  // Of each head: its values and its total over the warps, and the maximum that they are relative to.
  uint16_t* const out = args.out + (row * heads + kv_head * group) * kHeadDim;
  float* const partial = args.partial + ((row * kv_heads + kv_head) * args.most_chunks) * group * kWidth;
  for (int i = threadIdx.x; i < group * kHeadDim; i += kDecodeThreads) {
    const int head = i / kHeadDim, d = i % kHeadDim;
    float peak = -INFINITY, value = 0, total = 0;
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) peak = fmaxf(peak, states[(w * group + head) * kWidth + kHeadDim]);
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) {
      const float* const state = states + (w * group + head) * kWidth;
      const float weight = weight_of(state[kHeadDim], peak);
      value += weight * state[d];
      total += weight * state[kHeadDim + 1];
    }
    if (chunks == 1) {
      out[i] = f32_to_bf16(value / total);
      continue;
    }
    float* const to = partial + (static_cast<int>(blockIdx.x) * group + head) * kWidth;
    to[d] = value;
    if (d == 0) to[kHeadDim] = peak, to[kHeadDim + 1] = total;
  }
  if (chunks == 1) return;

  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    int32_t* const arrivals = args.arrivals + row * kv_heads + kv_head;
    is_last = atomicAdd(arrivals, 1) == chunks - 1;
    if (is_last) *arrivals = 0;  // for the next layer
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  // A warp for each head finds what its chunks are relative to, and their total; then each thread sums four
  // values over them. Loads do not wait for each other: there may be hundreds of chunks.
  const int64_t step = static_cast<int64_t>(group) * kWidth;  // from chunk to chunk
  float* const peaks = states;
  float* const totals = states + 16;
  for (int head = warp; head < group; head += kDecodeWarps) {
    const float* const from = partial + head * kWidth + kHeadDim;
    float peak = -INFINITY, total = 0;
    for (int chunk = lane; chunk < chunks; chunk += 32) peak = fmaxf(peak, __ldcg(from + chunk * step));
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
      peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, distance));
    for (int chunk = lane; chunk < chunks; chunk += 32) {
      const float2 state = __ldcg(reinterpret_cast<const float2*>(from + chunk * step));
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
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const float weight = weight_of(__ldcg(from + chunk * step + kHeadDim), peak);
      const float4 value = __ldcg(reinterpret_cast<const float4*>(from + chunk * step + d));
      sum = {fmaf(weight, value.x, sum.x), fmaf(weight, value.y, sum.y), fmaf(weight, value.z, sum.z),
             fmaf(weight, value.w, sum.w)};
    }
    const float total = totals[head];
    *reinterpret_cast<uint2*>(out + head * kHeadDim + d) =
        make_uint2(bf16_pair(sum.x / total, sum.y / total), bf16_pair(sum.z / total, sum.w / total));
  }
}

}  // namespace

void gpu_decode_attention(const GpuDecodeAttentionArgs& args, void* stream) {
  with_head_dim(args.head_dim, [&]<int kHeadDim>() {
    constexpr int kShared =
        std::max(kTiles * 2 * tile_bytes(kHeadDim), kDecodeWarps * 16 * gpu_attention_state(kHeadDim) * 4);
    allow_shared_memory<decode_kernel<kHeadDim>>(kShared);
    prefer_shared_memory<decode_kernel<kHeadDim>>();
    const dim3 grid(static_cast<unsigned>(args.most_chunks), static_cast<unsigned>(args.kv_heads),
                    static_cast<unsigned>(args.count));
    launch(decode_kernel<kHeadDim>, grid, dim3(kDecodeThreads), kShared, stream, args);
  });
}

}  // namespace lowbit
