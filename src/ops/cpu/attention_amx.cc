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

// e^(scores - most), as good as weights that become BF16 need it: 2^n 2^f, f from -1/2 to 1/2, with a
// relative error of 3e-6 (own coefficients: (2^f - 1) / f fitted); 0 below 2^-126.
inline Vec weight_of(Vec scores, float most) {
  constexpr float kLog2E = 1.44269504f;
  const Vec power = _mm512_fmsub_ps(scores, set1(kLog2E), set1(most * kLog2E));
  const Mask is_there = _mm512_cmp_ps_mask(power, set1(-126), _CMP_GE_OQ);
  const Vec n = rounded(power), f = sub(power, n);
  Vec p = set1(0.0095828297f);
  p = fma(p, f, set1(0.0559064001f));
  p = fma(p, f, set1(0.2402409911f));
  p = fma(p, f, set1(0.6931241751f));
  return _mm512_maskz_scalef_ps(is_there, fma(p, f, set1(1)), n);
}

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
  // 16 dimensions of one value.
  static __m256i load_value(const AttentionArgs& args, const void* cache, int64_t index) {
    if (!args.bf16_cache) return bf16_row(load(static_cast<const float*>(cache) + index));
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(cache) + index));
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
          const int64_t at = (base + key) * args.head_dim + d;
          const __m256i none = _mm256_setzero_si256();
          const __m256i low = key < count ? load_value(args, cache, at) : none;
          const __m256i high = key + 1 < count ? load_value(args, cache, at + args.head_dim) : none;
          const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
          _mm512_storeu_si512(to + i * 64, _mm512_permutexvar_epi16(_mm512_load_si512(kPairOrder), both));
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
    soften_rows(args, item, place, first, count, kAttentionKeys, shrink, weight_of,
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

    // All rows' sums of 16 dimensions at once: four chains of products.
    static_assert(kAttentionRows == 64 && kAttentionKeys == 64);
    for (int64_t d = 0; d < head_dim; d += 16) {
      const char* tile = values + d / 16 * kTileBytes;
      _tile_loadd(6, tile, 64);
      _tile_loadd(7, tile + head_dim / 16 * kTileBytes, 64);
      float* const out = place.part + d;
#define LOWBIT_EACH_ROW_TILE(what) \
  what(0);                         \
  if (padded_rows > 16) what(1);   \
  if (padded_rows > 32) what(2);   \
  if (padded_rows > 48) what(3)
#define LOWBIT_LOAD(i) _tile_loadd(i, out + 16 * i * place.width, place.width * 4)
#define LOWBIT_STORE(i) _tile_stored(i, out + 16 * i * place.width, place.width * 4)
#define LOWBIT_MULTIPLY(i)                                                   \
  {                                                                          \
    const uint16_t* const weights = place.weights + 16 * i * kAttentionKeys; \
    _tile_loadd(4, weights, kAttentionKeys * 2);                             \
    _tile_loadd(5, weights + 32, kAttentionKeys * 2);                        \
    _tile_dpbf16ps(i, 4, 6);                                                 \
    _tile_dpbf16ps(i, 5, 7);                                                 \
  }
      LOWBIT_EACH_ROW_TILE(LOWBIT_LOAD);
      LOWBIT_EACH_ROW_TILE(LOWBIT_MULTIPLY);
      LOWBIT_EACH_ROW_TILE(LOWBIT_STORE);
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
