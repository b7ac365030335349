// Attention of prompts on Hopper, as in FlashAttention-3 (Shah et al., arXiv 2407.08608): one warpgroup of a
// block fetches tiles of keys and values, two multiply them with 64 rows each, and the softmax of one
// tile goes on while the units multiply for the next, and for the other warpgroup. Rows are those of
// attention.cuh. A block stays and takes one item (128 rows of a KV head) after the other.
#include "ops/cuda/attention_gpu.h"
#include "ops/cuda/wgmma.cuh"

#include <algorithm>
#include <cmath>

namespace lowbit {
namespace {

constexpr int kGroups = 2;  // warpgroups that multiply
constexpr int kRows = 64 * kGroups, kKeys = 128, kThreads = (kGroups + 1) * kWarpgroup;
constexpr int kSlots = 6;
constexpr int kFetchRegisters = 40, kMultiplyRegisters = 232;

// Shared memory, from a multiple of 1024 on: q, then the slots, each a tile of keys or of values. Panels
// (wgmma.cuh) of 64 dimensions: [kRows, 64] of q, [kKeys, 64] of a tile.
constexpr int kQPanel = kRows * kPanelRowBytes, kPanel = kKeys * kPanelRowBytes;
template <int kHeadDim>
struct Room {
  static constexpr int kPanels = kHeadDim / 64, kQ = kPanels * kQPanel, kTile = kPanels * kPanel;
  static constexpr int kBytes = kQ + kSlots * kTile + 1024;
};

// Rows [first_row, first_row + kRows) of a sequence's KV head, and the tiles of keys that they see.
struct Item {
  const uint16_t *keys, *values;
  int64_t origin;  // of row 0 in q and out
  int rows;        // of the KV head; 0: no item is left
  int first_row, position, first_tile, end_tile, key_end;
};

// Slots are filled and emptied in turn, in the order keys 0, keys 1, values 0, keys 2, values 1, ... of an
// item. Items alternate between two places.
struct Control {
  uint64_t filled[kSlots], emptied[kSlots], q_filled, q_emptied, item_written[2], item_read[2];
  Item items[2];
};

struct Turn {
  int slot = 0;
  uint32_t parity = 0;
  __device__ void advance() {
    if (++slot == kSlots) slot = 0, parity ^= 1;
  }
};

// Named barriers: a warpgroup's turn to multiply, and those that fetch.
constexpr int kTurnBarrier = 1, kFetchBarrier = kTurnBarrier + kGroups;

__device__ inline int64_t place_of(const GpuAttentionArgs& args, const Item& item, int group, int row) {
  return item.origin + (row / group * args.heads + row % group) * args.head_dim;
}

// Items in the order in which blocks take them: by sequence; in it the last rows, which see most keys, first.
struct Finder {
  int sequence = 0, first = 0;  // a multiple of 32; the number of that sequence's first item

  // By a warp, for rising numbers. When no such item is, `first` is their count.
  __device__ void find(const GpuAttentionArgs& args, int group, int number, Item& to) {
    const int lane = threadIdx.x % 32, kv_heads = static_cast<int>(args.kv_heads);
    for (; sequence < args.count; sequence += 32) {
      const bool is_there = sequence + lane < args.count;
      const AttentionSequence* const at = args.sequences + (is_there ? sequence + lane : 0);
      const int rows = is_there ? static_cast<int>(at->count) * group : 0;
      const int blocks = (rows + kRows - 1) / kRows;
      int end = blocks * kv_heads;  // of the items up to this lane's sequence, from `first` on
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        const int before = __shfl_up_sync(0xffffffffu, end, distance);
        if (lane >= distance) end += before;
      }
      const int index = number - first - (end - blocks * kv_heads);
      if (index >= 0 && index < blocks * kv_heads) {
        const int kv_head = index % kv_heads;
        const int64_t head = args.layer_offset / 2 + kv_head * at->capacity * args.head_dim;
        to.keys = static_cast<const uint16_t*>(at->keys) + head;
        to.values = static_cast<const uint16_t*>(at->values) + head;
        to.origin = (at->row * args.heads + kv_head * group) * args.head_dim;
        to.rows = rows;
        to.first_row = (blocks - 1 - index / kv_heads) * kRows;
        to.position = static_cast<int>(at->position);
        to.key_end = to.position + (min(to.first_row + kRows, rows) - 1) / group + 1;
        to.end_tile = (to.key_end + kKeys - 1) / kKeys;
        const int oldest = to.position + to.first_row / group + 1 - static_cast<int>(args.window);
        to.first_tile = args.window > 0 ? max(0, oldest) / kKeys : 0;
      }
      const int all = __shfl_sync(0xffffffffu, end, 31);
      if (number - first < all) return;
      first += all;
    }
    if (lane == 0) to.rows = 0;
  }
};

// By the warpgroup that fetches: thread t has piece t % kPieces of rows t / kPieces, kAtOnce further, ...
// source(row, is_there): where the row begins; where it is not there, zeros are written.
template <int kHeadDim, int kTileRows, class Source>
__device__ __forceinline__ void fetch(uint32_t to, const Source& source) {
  constexpr int kPieces = kHeadDim / 8, kAtOnce = kWarpgroup / kPieces;
  static_assert(kAtOnce % 8 == 0, "a thread's pieces are swapped alike in all its rows");
  const int thread = threadIdx.x % kWarpgroup, row = thread / kPieces, piece = thread % kPieces;
  const uint32_t place = to + piece / 8 * kTileRows * kPanelRowBytes + panel_place(row, piece % 8);
#pragma unroll
  for (int i = 0; i < kTileRows / kAtOnce; ++i) {
    bool is_there = true;
    const uint16_t* const from = source(row + i * kAtOnce, is_there);
    copy_16(place + i * kAtOnce * kPanelRowBytes, from + piece * 8, is_there);
  }
}
// Keys or values. Behind key_end the cache may hold anything, and 0 * NaN is not 0.
template <int kHeadDim>
__device__ __forceinline__ void fetch_tile(uint32_t to, const uint16_t* head, int tile, int key_end) {
  const uint16_t* const from = head + static_cast<int64_t>(tile) * kKeys * kHeadDim;
  const int left = key_end - tile * kKeys;
  if (left >= kKeys) {
    fetch<kHeadDim, kKeys>(to, [&](int key, bool&) { return from + key * kHeadDim; });
  } else {
    fetch<kHeadDim, kKeys>(to, [&](int key, bool& is_there) {
      is_there = key < left;
      return from + (is_there ? key * kHeadDim : 0);
    });
  }
}

template <int kHeadDim>
__device__ __forceinline__ void fetch_items(const GpuAttentionArgs& args, int group, uint32_t base,
                                            Control& control) {
  using R = Room<kHeadDim>;
  const int thread = threadIdx.x % kWarpgroup;
  Finder finder;
  Turn turn;
  int number = static_cast<int>(blockIdx.x);
  for (uint32_t round = 0;; ++round) {
    const uint32_t which = round % 2;
    if (thread < 32) {
      number = __shfl_sync(0xffffffffu, number, 0);
      wait_for_phase(&control.item_read[which], round / 2 % 2 ^ 1);
      finder.find(args, group, number, control.items[which]);
    }
    wait_at(kFetchBarrier, kWarpgroup);
    if (thread == 0) arrive(&control.item_written[which]);
    const Item& item = control.items[which];
    if (item.rows == 0) break;
    if (thread == 0) number = static_cast<int>(gridDim.x) + atomicAdd(args.arrivals, 1);

    auto fetch_next = [&](const uint16_t* head, int tile) {
      wait_for_phase(&control.emptied[turn.slot], turn.parity ^ 1);
      fetch_tile<kHeadDim>(base + R::kQ + turn.slot * R::kTile, head, tile, item.key_end);
      arrive_after_copies(&control.filled[turn.slot]);
      turn.advance();
    };
    fetch_next(item.keys, item.first_tile);
    wait_for_phase(&control.q_emptied, which ^ 1);
    fetch<kHeadDim, kRows>(base, [&](int i, bool& is_there) {
      const int row = item.first_row + i;
      is_there = row < item.rows;
      return args.q + place_of(args, item, group, min(row, item.rows - 1));
    });
    arrive_after_copies(&control.q_filled);
    for (int tile = item.first_tile + 1; tile < item.end_tile; ++tile) {
      fetch_next(item.keys, tile);
      fetch_next(item.values, tile - 1);
    }
    fetch_next(item.values, item.end_tile - 1);
  }
  // Each block takes one number too many, none but its first if that was; the last of them ends the count.
  if (thread == 0 && number >= static_cast<int>(gridDim.x) &&
      number - static_cast<int>(gridDim.x) == finder.first - 1)
    *args.arrivals = 0;
  wait_for_all_copies();
}

__device__ inline float exp2_of(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

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
      base[upper] = now == -INFINITY ? 0 : now * factor;  // it has seen no key yet
      rescale[upper] = exp2_of(fmaf(maximum[upper], factor, -base[upper]));
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
    __syncwarp();
    release(&control.item_read[round % 2]);
    if (item.rows == 0) break;
    const int first = item.first_row + warpgroup * 64;
    const int row = first + static_cast<int>(threadIdx.x) % kWarpgroup / 32 * 16 + lane / 4;
    rows.begin(item, group, window, first, row);
    float rescale[2];

    wait_for_phase(&control.q_filled, round % 2);
    int keys = wait_for_slot();
    show_copies_to_products();
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
      show_copies_to_products();
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

    show_copies_to_products();
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
      make_barrier(&control.item_written[i], 1);
      make_barrier(&control.item_read[i], 4 * kGroups);
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

struct Device {
  bool is_hopper = false;
  int multiprocessors = 0;
};
// Of the device that is current at the first launch: all are used as it is.
const Device& device() {
  static const Device found = [] {
    Device device;
    int index = 0, major = 0, minor = 0;
    cudaGetDevice(&index);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
    cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, index);
    device.is_hopper = major == 9 && minor == 0;
    return device;
  }();
  return found;
}

template <int kHeadDim>
void launch_prompt(const GpuAttentionArgs& args, void* stream) {
  constexpr int kBytes = Room<kHeadDim>::kBytes;
  allow_shared_memory<attention_prompt_kernel<kHeadDim>>(kBytes);
  const int64_t blocks = (args.most_tokens * (args.heads / args.kv_heads) + kRows - 1) / kRows;
  const int64_t items = blocks * args.kv_heads * args.count;
  launch(attention_prompt_kernel<kHeadDim>,
         dim3(static_cast<unsigned>(std::min<int64_t>(items, device().multiprocessors))), dim3(kThreads),
         kBytes, stream, args);
}

}  // namespace

bool fits_prompt_attention(const GpuAttentionArgs& args) {
  auto is_aligned = [](const uint16_t* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  return device().is_hopper && args.arrivals && (args.head_dim == 64 || args.head_dim == 128) &&
         args.scale > 0 && is_aligned(args.q) && is_aligned(args.out);
}

void gpu_prompt_attention(const GpuAttentionArgs& args, void* stream) {
  if (args.head_dim == 64)
    launch_prompt<64>(args, stream);
  else
    launch_prompt<128>(args, stream);
}

}  // namespace lowbit
