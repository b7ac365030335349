#include "ops/cpu/prepare_kernels.h"

#include <immintrin.h>
#include <string.h>

namespace lowbit {
namespace {

inline __m256 load_eight(const float* x, int64_t count) {
  if (count >= 8) return _mm256_loadu_ps(x);
  const __m256i lanes = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count < 0 ? 0 : count)),
                                           _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  return _mm256_maskload_ps(x, lanes);
}

inline int32_t reduce_max(__m256i a) {
  __m128i half = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}

inline int32_t reduce_add(__m256i a) {
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}

// 32 codes of 4 x 8 columns as bytes, in their order.
inline __m256i pack_bytes(const __m256i codes[4]) {
  const __m256i low = _mm256_packs_epi32(codes[0], codes[1]), high = _mm256_packs_epi32(codes[2], codes[3]);
  return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high),
                                     _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

}  // namespace

void encode_int8_avx2(const Int8Row& row) noexcept {
  // Magnitudes of floats order like their bits; infinities and NaN come above all others.
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  int32_t limit_bits;
  memcpy(&limit_bits, &row.limit, sizeof limit_bits);
  const __m256i below = _mm256_set1_epi32(limit_bits);
  __m256i most = _mm256_setzero_si256(), most_of_all = most;
  for (int64_t i = 0; i < row.count; i += 8) {
    const __m256i bits =
        _mm256_and_si256(_mm256_castps_si256(load_eight(row.x + i, row.count - i)), magnitude);
    most = _mm256_max_epi32(most, _mm256_and_si256(bits, _mm256_cmpgt_epi32(below, bits)));
    most_of_all = _mm256_max_epi32(most_of_all, bits);
  }
  const bool is_finite = reduce_max(most_of_all) < 0x7f800000;
  const int32_t largest_bits = reduce_max(most);
  float largest;
  memcpy(&largest, &largest_bits, sizeof largest);
  if (!is_finite || largest < kLeastMagnitude) largest = 0;
  const __m256 factor = _mm256_set1_ps(largest > 0 ? 127.0f * (1 / largest) : 0.0f);
  __m256i total = _mm256_setzero_si256();
  for (int64_t i = 0; i < row.padded; i += 64) {
    uint64_t outliers = 0;
    for (int64_t part = 0; part < 64; part += 32) {
      __m256i codes[4];
      for (int64_t j = 0; j < 4; ++j) {
        const int64_t at = i + part + 8 * j;
        const __m256 x = load_eight(row.x + at, row.count - at);
        const __m256i bits = _mm256_and_si256(_mm256_castps_si256(x), magnitude);
        const __m256i is_below = _mm256_cmpgt_epi32(below, bits);
        const auto mask = static_cast<uint64_t>(_mm256_movemask_ps(_mm256_castsi256_ps(is_below)));
        outliers |= (mask ^ 0xff) << (part + 8 * j);
        codes[j] = _mm256_and_si256(_mm256_cvtps_epi32(_mm256_mul_ps(x, factor)), is_below);
        total = _mm256_add_epi32(total, codes[j]);
      }
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(row.codes + i + part), pack_bytes(codes));
    }
    row.outliers[i / 64] = outliers;
  }
  if (is_finite) {
    *row.scale = largest / 127.0f;
    *row.sum = reduce_add(total);
    return;
  }
  memset(row.codes, 0, static_cast<size_t>(row.padded));
  memset(row.outliers, 0, static_cast<size_t>(row.padded / 8));
  *row.scale = __builtin_nanf("");
  *row.sum = 0;
}

void encode_int8_grid_avx2(const Int8GridRow& row) noexcept {
  const __m256 inverse = _mm256_set1_ps(1 / row.input_scale),
               least = _mm256_set1_ps(static_cast<float>(-128 - row.zero_point)),
               most = _mm256_set1_ps(static_cast<float>(127 - row.zero_point));
  const __m256i zero_point = _mm256_set1_epi32(row.zero_point), magnitude = _mm256_set1_epi32(0x7fffffff),
                columns = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  __m256i total = _mm256_setzero_si256(), largest = total;
  for (int64_t i = 0; i < row.padded; i += 32) {
    __m256i codes[4];
    for (int64_t j = 0; j < 4; ++j) {
      const int64_t at = i + 8 * j, left = row.count - at;
      const __m256 x = load_eight(row.x + at, left);
      largest = _mm256_max_epi32(largest, _mm256_and_si256(_mm256_castps_si256(x), magnitude));
      const __m256 level = _mm256_min_ps(_mm256_max_ps(_mm256_mul_ps(x, inverse), least), most);
      codes[j] = _mm256_add_epi32(_mm256_cvtps_epi32(level), zero_point);
      if (left < 8) {
        const __m256i end = _mm256_set1_epi32(static_cast<int>(left < 0 ? 0 : left));
        codes[j] = _mm256_and_si256(codes[j], _mm256_cmpgt_epi32(end, columns));
      }
      total = _mm256_add_epi32(total, codes[j]);
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(row.codes + i), pack_bytes(codes));
  }
  const bool is_finite = reduce_max(largest) < 0x7f800000;
  if (!is_finite) memset(row.codes, 0, static_cast<size_t>(row.padded));
  *row.scale = is_finite ? row.input_scale : __builtin_nanf("");
  *row.sum = is_finite ? reduce_add(total) : 0;
}

}  // namespace lowbit
