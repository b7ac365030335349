// Attention of prompts on Hopper, as in FlashAttention-3 (Shah et al., arXiv 2407.08608): one warpgroup of a
// block fetches tiles of keys and values, two multiply them with 64 rows each, and the softmax of one
// tile goes on while the units multiply for the next, and for the other warpgroup. Rows are those of
// attention.cuh. A block stays and takes one item (128 rows of a KV head) after the other.
#include "ops/cuda/attention_prompt_fetch.cuh"
#include "ops/cuda/multiprocessors.h"

#include <algorithm>
#include <cmath>

namespace lowbit {
namespace {

// A thread's part of its warpgroup's 64 rows: rows g and g + 8 of its warp's 16 (wgmma.cuh).
template <int kHeadDim>
struct Rows {
  float out[kHeadDim / 2], scores[kKeys / 2], maximum[2], total[4];
  Operand weights[kKeys / 16];
  int oldest[2], seen[2];   // keys that the rows see: [oldest, oldest + seen)
  int all_oldest, all_end;  // those that all 64 rows see: [all_oldest, all_end)

  // Rows behind the last one see what it sees.
  __device__ __forceinline__ void begin(const Item& item, int group, int window, int first, int row) {
    auto end_of = [&](int r) { return item.position + min(r, item.rows - 1) / group + 1; };
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const int end = end_of(row + upper * 8);
      oldest[upper] = window > 0 ? end - window : 0;
      seen[upper] = end - oldest[upper];
      maximum[upper] = -INFINITY;
    }
    all_end = end_of(first);
    all_oldest = window > 0 ? end_of(first + 63) - window : 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) total[i] = 0;
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) out[i] = 0;
  }

  // Begins scores = q keys^T.
  __device__ __forceinline__ void multiply_keys(uint64_t q, uint64_t keys) {
#pragma unroll
    for (int s = 0; s < kHeadDim / 16; ++s) {
      const uint64_t a = moved(q, s / 4 * kQPanel + s % 4 * 32), b = moved(keys, s / 4 * kPanel + s % 4 * 32);
      if (s == 0)
        multiply<false>(scores, a, b);
      else
        multiply<true>(scores, a, b);
    }
    commit_products();
  }
  // Begins out += weights values.
  __device__ __forceinline__ void multiply_values(uint64_t values) {
#pragma unroll
    for (int s = 0; s < kKeys / 16; ++s)
      multiply_rows(out, weights[s], moved(values, s * 16 * kPanelRowBytes));
    commit_products();
  }

  __device__ __forceinline__ void mask(int tile) {
    if (tile * kKeys >= all_oldest && (tile + 1) * kKeys <= all_end) return;
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      const int key = tile * kKeys + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2, upper = i / 2 % 2;
      if (static_cast<unsigned>(key - oldest[upper]) >= static_cast<unsigned>(seen[upper]))
        scores[i] = -INFINITY;
    }
  }
  static __device__ float exp2_of(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
  }
  // scores become e^(score - maximum); rescale: of what came before. factor: of the scores, for exp2.
  __device__ __forceinline__ void soften(float factor, float (&rescale)[2]) {
    float most[4] = {maximum[0], maximum[0], maximum[1], maximum[1]}, base[2];
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) most[i % 4] = fmaxf(most[i % 4], scores[i]);
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      float now = fmaxf(most[2 * upper], most[2 * upper + 1]);
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
      // Rounded alike every time: tiles without a key that is seen change nothing. No key yet: no offset.
      base[upper] = now == -INFINITY ? 0 : __fmul_rn(now, factor);
      rescale[upper] = exp2_of(__fadd_rn(__fmul_rn(maximum[upper], factor), -base[upper]));
      maximum[upper] = now;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) total[i] *= rescale[i / 2];
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      scores[i] = exp2_of(fmaf(scores[i], factor, -base[i / 2 % 2]));
      total[i % 4] += scores[i];
    }
  }
  __device__ __forceinline__ void round_weights() {
#pragma unroll
    for (int s = 0; s < kKeys / 16; ++s) {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        weights[s].pair[j] = bf16_pair(scores[8 * s + 2 * j], scores[8 * s + 2 * j + 1]);
    }
  }
  __device__ __forceinline__ void rescale_out(const float (&rescale)[2]) {
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) out[i] *= rescale[i / 2 % 2];
  }

  // Row `upper` of the two: of 32 dimensions a thread gets eight neighbours from the four that share the row.
  __device__ __forceinline__ void write(uint16_t* to, int upper, bool is_there) {
    float sum = total[2 * upper] + total[2 * upper + 1];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const float inverse = 1 / sum;
    const bool is_odd = threadIdx.x % 2, is_high = threadIdx.x / 2 % 2;
#pragma unroll
    for (int m = 0; m < kHeadDim / 32; ++m) {
      uint32_t word[4];  // c of pieces 0 ... 3, then 0 ... 3 of piece c
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int at = (m * 4 + n) * 4 + 2 * upper;
        word[n] = bf16_pair(out[at] * inverse, out[at + 1] * inverse);
      }
      auto swap = [](uint32_t& a, uint32_t& b, bool is_second, int distance) {
        const uint32_t got = __shfl_xor_sync(0xffffffffu, is_second ? a : b, distance);
        (is_second ? a : b) = got;
      };
      swap(word[0], word[1], is_odd, 1);
      swap(word[2], word[3], is_odd, 1);
      swap(word[0], word[2], is_high, 2);
      swap(word[1], word[3], is_high, 2);
      if (is_there)
        __stcg(reinterpret_cast<uint4*>(to + m * 32 + threadIdx.x % 4 * 8),
               make_uint4(word[0], word[1], word[2], word[3]));
    }
  }
};

template <int kHeadDim>
__device__ __forceinline__ void multiply_items(const GpuAttentionArgs& args, int group, uint32_t base,
                                               Control& control) {
  using R = Room<kHeadDim>;
  const int lane = threadIdx.x % 32;
  const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
  const uint64_t q = panel_descriptor(base + warpgroup * 64 * kPanelRowBytes, kQPanel);
  const uint64_t slots = panel_descriptor(base + R::kQ, kPanel);
  const float factor = args.scale * 1.44269504f;
  const int window = static_cast<int>(args.window);
  // Once a warp, when it needs what a barrier guards no longer.
  auto release = [&](uint64_t* barrier) {
    if (lane == 0) arrive(barrier);
  };
  auto take_turn = [&] { wait_at(kTurnBarrier + warpgroup, 2 * kWarpgroup); };
  auto give_turn = [&] { arrive_at(kTurnBarrier + (warpgroup + 1) % kGroups, 2 * kWarpgroup); };
  if (warpgroup == kGroups - 1) give_turn();

  Turn turn;
  auto wait_for_slot = [&] {
    wait_for_phase(&control.filled[turn.slot], turn.parity);
    const int slot = turn.slot;
    turn.advance();
    return slot;
  };
  auto in_slot = [&](int slot) { return moved(slots, slot * R::kTile); };
  Rows<kHeadDim> rows;
  for (uint32_t round = 0;; ++round) {
    wait_for_phase(&control.item_written[round % 2], round / 2 % 2);
    const Item item = control.items[round % 2];
    arrive(&control.item_read[round % 2]);
    if (item.rows == 0) break;
    const int first = item.first_row + warpgroup * 64;
    const int row = first + static_cast<int>(threadIdx.x) % kWarpgroup / 32 * 16 + lane / 4;
    rows.begin(item, group, window, first, row);
    float rescale[2];

    wait_for_phase(&control.q_filled, round % 2);
    int keys = wait_for_slot();
    show_to_products();
    take_turn();
    pin(rows.scores);
    begin_products();
    rows.multiply_keys(q, in_slot(keys));
    give_turn();
    wait_for_products<0>();
    pin(rows.scores);
    release(&control.emptied[keys]);
    if (item.first_tile + 1 == item.end_tile) release(&control.q_emptied);
    rows.mask(item.first_tile);
    rows.soften(factor, rescale);
    rows.round_weights();

    int next = wait_for_slot();
    for (int tile = item.first_tile + 1; tile < item.end_tile; ++tile) {
      keys = next;
      const int values = wait_for_slot();
      show_to_products();
      take_turn();
      pin(rows.scores), pin(rows.out), pin(rows.weights);
      begin_products();
      rows.multiply_keys(q, in_slot(keys));
      rows.multiply_values(in_slot(values));
      give_turn();
      wait_for_products<1>();
      pin(rows.scores);
      release(&control.emptied[keys]);
      if (tile + 1 == item.end_tile) release(&control.q_emptied);
      rows.mask(tile);
      rows.soften(factor, rescale);
      // ptxas would put the wait for products before the softmax, if this loop were not between them.
      pin(rows.scores);
      next = wait_for_slot();
      wait_for_products<0>();
      pin(rows.out), pin(rows.weights);
      release(&control.emptied[values]);
      rows.rescale_out(rescale);
      rows.round_weights();
    }

    show_to_products();
    pin(rows.out), pin(rows.weights);
    begin_products();
    rows.multiply_values(in_slot(next));
    wait_for_products<0>();
    pin(rows.out), pin(rows.weights);
    release(&control.emptied[next]);
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const int r = row + upper * 8;
      rows.write(args.out + place_of(args, item, group, r), upper, r < item.rows);
    }
  }
  if (warpgroup == 0) take_turn();  // that the last one gave
}

template <int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1) attention_prompt_kernel(const GpuAttentionArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  follow_predecessor();
  extern __shared__ char shared[];
  __shared__ Control control;
  const uint32_t base = (shared_address(shared) + 1023) / 1024 * 1024;
  const int group = static_cast<int>(args.heads / args.kv_heads);
  if (threadIdx.x == 0) {
    for (int slot = 0; slot < kSlots; ++slot) {
      make_barrier(&control.filled[slot], kWarpgroup);
      make_barrier(&control.emptied[slot], 4 * kGroups);
    }
    make_barrier(&control.q_filled, kWarpgroup);
    make_barrier(&control.q_emptied, 4 * kGroups);
    for (int i = 0; i < 2; ++i) {
      make_barrier(&control.item_written[i], 32);  // by each lane of the warp that finds it
      make_barrier(&control.item_read[i], kGroups * kWarpgroup);
    }
  }
  __syncthreads();
  if (threadIdx.x >= kGroups * kWarpgroup) {
    give_registers<kFetchRegisters>();
    fetch_items<kHeadDim>(args, group, base, control);
  } else {
    take_registers<kMultiplyRegisters>();
    multiply_items<kHeadDim>(args, group, base, control);
  }
#endif
}

template <int kHeadDim>
void launch_prompt(const GpuAttentionArgs& args, void* stream) {
  constexpr int kBytes = Room<kHeadDim>::kBytes;
  allow_shared_memory<attention_prompt_kernel<kHeadDim>>(kBytes);
  const int64_t blocks = (args.most_tokens * (args.heads / args.kv_heads) + kRows - 1) / kRows;
  const int64_t items = blocks * args.kv_heads * args.count;
  launch(attention_prompt_kernel<kHeadDim>,
         dim3(static_cast<unsigned>(std::min<int64_t>(items, multiprocessors()))), dim3(kThreads), kBytes,
         stream, args);
}

}  // namespace

bool has_prompt_attention() { return has_own_code<attention_prompt_kernel<128>>(); }

bool fits_prompt_attention(const GpuAttentionArgs& args) {
  auto is_aligned = [](const uint16_t* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  return has_prompt_attention() && args.arrivals && args.is_causal && !args.slopes &&
         (args.head_dim == 64 || args.head_dim == 128) && args.scale > 0 && is_aligned(args.q) &&
         is_aligned(args.out);
}

void gpu_prompt_attention(const GpuAttentionArgs& args, void* stream) {
  if (args.head_dim == 64)
    launch_prompt<64>(args, stream);
  else
    launch_prompt<128>(args, stream);
}

}  // namespace lowbit
