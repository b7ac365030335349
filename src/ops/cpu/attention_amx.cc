// Attention for prompts with BF16 tiles: q, k, v and the softmax's weights are rounded, sums stay FP32.
// Tiles:
//   q        A: rows of queries, 32 dimensions                     in place, [kAttentionRows][head_dim]
//   keys     B: row i = dimensions 2 i and 2 i + 1 of 16 keys      [head_dim / 32][4] tiles
//   weights  A: rows of queries, 32 keys                           in place, [kAttentionRows][kAttentionKeys]
//   values   B: row i = keys 2 i and 2 i + 1 of 16 dimensions      [2][head_dim / 16] tiles
#include "ops/attention_args.h"

#include <immintrin.h>

namespace lowbit {
namespace {
// In this order.
// clang-format off
#include "ops/cpu/vector_avx512.inc"
#include "ops/cpu/exp.inc"
#include "ops/cpu/attention.inc"
#include "ops/cpu/amx.inc"
// clang-format on

constexpr int64_t kTileBytes = 1024;

struct TileBlocks {
  static void take_queries(const AttentionArgs& args, const AttentionItem& item, const Workplace& place) {
    const int64_t head_dim = args.head_dim;
    uint16_t* to = reinterpret_cast<uint16_t*>(place.q);
    const Vec scale = set1(args.scale);
    for (int64_t row = 0; row < (item.rows + 15) / 16 * 16; ++row) {
      const float* from = row < item.rows ? args.q + row_offset(args, item, row) : nullptr;
      for (int64_t d = 0; d < head_dim; d += 16) {
        const __m256i bits = from ? bf16_row(mul(load(from + d), scale)) : _mm256_setzero_si256();
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + row * head_dim + d), bits);
      }
    }
  }

  // 32 dimensions of one key as 16 pairs.
  static __m512i load_pairs(const AttentionArgs& args, const void* cache, int64_t index) {
    if (args.bf16_cache) return _mm512_loadu_si512(static_cast<const uint16_t*>(cache) + index);
    const float* from = static_cast<const float*>(cache) + index;
    return bf16_halves(load(from), load(from + 16));
  }
  static Vec load_floats(const AttentionArgs& args, const void* cache, int64_t index) {
    return args.bf16_cache ? load_bf16(static_cast<const uint16_t*>(cache) + index)
                           : load(static_cast<const float*>(cache) + index);
  }

  static void pack_keys(const AttentionArgs& args, const void* cache, int64_t base, int64_t count, char* to) {
    for (int64_t d = 0; d < args.head_dim; d += 32) {
      for (int64_t key = 0; key < kAttentionKeys; key += 16, to += kTileBytes) {
        __m512i rows[16];
        for (int64_t i = 0; i < 16; ++i) {
          rows[i] = key + i < count ? load_pairs(args, cache, (base + key + i) * args.head_dim + d)
                                    : _mm512_setzero_si512();
        }
        transpose16(rows);
        for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * 64, rows[i]);
      }
    }
  }

  static void pack_values(const AttentionArgs& args, const void* cache, int64_t base, int64_t count,
                          char* to) {
    for (int64_t first = 0; first < kAttentionKeys; first += 32) {
      for (int64_t d = 0; d < args.head_dim; d += 16, to += kTileBytes) {
        for (int64_t i = 0; i < 16; ++i) {
          const int64_t key = first + 2 * i;
          const Vec low = key < count ? load_floats(args, cache, (base + key) * args.head_dim + d) : zero();
          const Vec high =
              key + 1 < count ? load_floats(args, cache, (base + key + 1) * args.head_dim + d) : zero();
          _mm512_storeu_si512(to + i * 64, bf16_pairs(low, high));
        }
      }
    }
  }

  static void restore(const AttentionArgs&, const AttentionItem&, const Workplace&, float*) {}

  static void begin(const AttentionArgs&, const AttentionItem&, const Workplace&, int64_t, int64_t) {}

  static void attend(const AttentionArgs& args, const AttentionItem& item, const Workplace& place,
                     int64_t first, int64_t count, int64_t /*following*/) {
    const AttentionSequence& sequence = args.sequences[item.sequence];
    const int64_t base = item.kv_head * sequence.capacity + first, head_dim = args.head_dim;
    const int64_t padded_rows = (item.rows + 15) / 16 * 16;
    char* keys = reinterpret_cast<char*>(place.keys);
    char* values = reinterpret_cast<char*>(place.values);
    pack_keys(args, keys_of(args, sequence), base, count, keys);
    pack_values(args, values_of(args, sequence), base, count, values);

    const uint16_t* q = reinterpret_cast<const uint16_t*>(place.q);
    for (int64_t row = 0; row < padded_rows; row += 16) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int64_t d = 0; d < head_dim; d += 32) {
        const char* tile = keys + d / 32 * 4 * kTileBytes;
        _tile_loadd(4, q + row * head_dim + d, head_dim * 2);
        _tile_loadd(5, tile, 64);
        _tile_loadd(6, tile + kTileBytes, 64);
        _tile_dpbf16ps(0, 4, 5);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(5, tile + 2 * kTileBytes, 64);
        _tile_loadd(6, tile + 3 * kTileBytes, 64);
        _tile_dpbf16ps(2, 4, 5);
        _tile_dpbf16ps(3, 4, 6);
      }
      float* scores = place.scores + row * kAttentionKeys;
      _tile_stored(0, scores, kAttentionKeys * 4);
      _tile_stored(1, scores + 16, kAttentionKeys * 4);
      _tile_stored(2, scores + 32, kAttentionKeys * 4);
      _tile_stored(3, scores + 48, kAttentionKeys * 4);
    }

    float shrink[kAttentionRows];
    soften_rows(args, item, place, first, count, kAttentionKeys, shrink,
                [&](int64_t row, int64_t key, Vec weights) {
                  _mm256_storeu_si256(reinterpret_cast<__m256i*>(place.weights + row * kAttentionKeys + key),
                                      bf16_row(weights));
                });
    for (int64_t row = item.rows; row < padded_rows; ++row)
      __builtin_memset(place.weights + row * kAttentionKeys, 0, kAttentionKeys * sizeof(uint16_t));
    for (int64_t row = 0; row < item.rows; ++row) {
      if (shrink[row] == 1) continue;
      float* out = place.part + row * place.width;
      for (int64_t d = 0; d < place.width; d += kLanes) store(out + d, mul(load(out + d), set1(shrink[row])));
    }

    for (int64_t row = 0; row < padded_rows; row += 16) {
      _tile_loadd(4, place.weights + row * kAttentionKeys, kAttentionKeys * 2);
      _tile_loadd(5, place.weights + row * kAttentionKeys + 32, kAttentionKeys * 2);
      for (int64_t d = 0; d < head_dim; d += 32) {
        const char* tile = values + d / 16 * kTileBytes;
        const char* second = tile + head_dim / 16 * kTileBytes;
        float* out = place.part + row * place.width + d;
        _tile_loadd(0, out, place.width * 4);
        _tile_loadd(1, out + 16, place.width * 4);
        _tile_loadd(6, tile, 64);
        _tile_loadd(7, tile + kTileBytes, 64);
        _tile_loadd(2, second, 64);
        _tile_loadd(3, second + kTileBytes, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(0, 5, 2);
        _tile_dpbf16ps(1, 5, 3);
        _tile_stored(0, out, place.width * 4);
        _tile_stored(1, out + 16, place.width * 4);
      }
    }
  }
};
}  // namespace

void attention_amx_bf16(const AttentionArgs& args, int64_t begin, int64_t end, void* scratch) noexcept {
  _tile_loadconfig(&kTiles);
  attention_run<TileBlocks>(args, begin, end, static_cast<float*>(scratch));
  _tile_release();
}

}  // namespace lowbit
