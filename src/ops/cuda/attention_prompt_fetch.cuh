// The warpgroup that fetches queries, keys and values in attention_prompt_sm90.cu, and what it shares with
// those that multiply: the shared memory, and the items that a block takes one after the other.
#pragma once

#include "ops/cuda/attention_gpu.h"
#include "ops/cuda/wgmma.cuh"

#include <cstdint>

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
      arrive(&control.item_written[which]);
    }
    wait_at(kFetchBarrier, kWarpgroup);
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

}  // namespace
}  // namespace lowbit
