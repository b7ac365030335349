// Tiles of keys and values in shared memory, and what attention kernels do with them. The streamed softmax of
// Milakov and Gimelshein (arXiv 1805.02867) in tiles as in FlashAttention-2 (Dao, arXiv 2307.08691). Rows are
// the query heads of a KV head, token by token: row r is head r % group of token r / group, so that a key is
// read once for all heads that share it.
#pragma once

#include "ops/cuda/attention_gpu.h"
#include "ops/cuda/device.cuh"

#include <cmath>

namespace lowbit {
namespace {

constexpr int kTileKeys = 64, kWarps = 4, kThreads = kWarps * 32;

__device__ inline void load_transposed(uint32_t (&to)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address));
}

// A tile [kTileKeys, kHeadDim] in shared memory; pieces of 16 bytes change places within a row of a power of
// two of them, so that eight rows at one column lie in different banks.
constexpr int row_pieces(int head_dim) { return head_dim <= 32 ? 4 : head_dim <= 64 ? 8 : 16; }
constexpr int tile_bytes(int head_dim) { return kTileKeys * row_pieces(head_dim) * 16; }
template <int kHeadDim>
__device__ inline uint32_t place(int key, int dim) {
  constexpr int kPieces = row_pieces(kHeadDim);
  const int piece = dim / 8 ^ (kPieces >= 8 ? key % 8 : key / 2 % kPieces);
  return static_cast<uint32_t>((key * kPieces + piece) * 16);
}

template <int kHeadDim>
__device__ inline void fetch_tile(uint32_t to, const uint16_t* from, int first, int end) {
  constexpr int kPieces = kHeadDim / 8;
#pragma unroll
  for (int i = threadIdx.x; i < kTileKeys * kPieces; i += blockDim.x) {
    const int key = i / kPieces, dim = i % kPieces * 8;
    const bool is_there = first + key < end;
    copy_16(to + place<kHeadDim>(key, dim),
            from + static_cast<int64_t>(is_there ? first + key : 0) * kHeadDim + dim, is_there);
  }
}

// A warp's 16 rows over kKeyTiles x 8 keys of a tile, from key first_key of it on.
// kHasSlopes: a score falls by slope for each key before the row's own one, the last that it sees.
template <int kHeadDim, int kKeyTiles, bool kHasSlopes>
struct Rows {
  static constexpr int kSteps = kHeadDim / 16, kDimTiles = kHeadDim / 8;

  Operand q[kSteps];
  int seen[2], oldest[2];  // keys that rows g and g + 8 see: [oldest, seen)
  float slope[2] = {};     // times log2(e)
  float out[kDimTiles][4] = {}, maximum[2] = {-INFINITY, -INFINITY}, total[2] = {};

  // tile: the key that the tile in shared memory begins with; factor: of the scores, for exp2.
  __device__ void attend(uint32_t tile_keys, uint32_t tile_values, int tile, int first_key, float factor) {
    const int lane = threadIdx.x % 32, c = lane % 4;
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
        float score = scores[n][j] * factor;
        if constexpr (kHasSlopes) score -= slope[j / 2] * static_cast<float>(seen[j / 2] - 1 - key);
        scores[n][j] = is_seen ? score : -INFINITY;
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
  }

  // The totals of a row from the four threads that share it.
  __device__ void finish() {
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      total[upper] += __shfl_xor_sync(0xffffffffu, total[upper], 1);
      total[upper] += __shfl_xor_sync(0xffffffffu, total[upper], 2);
    }
  }
};

constexpr float kLog2E = 1.44269504f;

// visit<kHeadDim>() where there are tiles for heads of that size; otherwise false.
template <class Visit>
bool with_head_dim(int64_t head_dim, const Visit& visit) {
  switch (head_dim) {
    case 32:
      visit.template operator()<32>();
      return true;
    case 64:
      visit.template operator()<64>();
      return true;
    case 80:
      visit.template operator()<80>();
      return true;
    case 96:
      visit.template operator()<96>();
      return true;
    case 128:
      visit.template operator()<128>();
      return true;
    default:
      return false;
  }
}

// A sequence's keys or values of a KV head in the layer meant.
__device__ inline uint16_t* cached_head(void* cache, const AttentionSequence& sequence, int64_t layer_offset,
                                        int kv_head, int head_dim) {
  return reinterpret_cast<uint16_t*>(static_cast<char*>(cache) + layer_offset) +
         static_cast<int64_t>(kv_head) * sequence.capacity * head_dim;
}

}  // namespace
}  // namespace lowbit
