#include "ops/cpu/prepare_kernels.h"

#include <immintrin.h>
#include <string.h>

namespace lowbit {
namespace {

// The first `count` of 16 lanes.
inline __mmask16 lanes_of(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : count > 0 ? (1 << count) - 1 : 0);
}

}  // namespace

void encode_int8_avx512(const Int8Row& row) noexcept {
  // Magnitudes of floats order like their bits; infinities and NaN come above all others.
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  int32_t limit_bits;
  memcpy(&limit_bits, &row.limit, sizeof limit_bits);
  const __m512i below = _mm512_set1_epi32(limit_bits);
  __m512i most = _mm512_setzero_si512(), most_of_all = most;
  for (int64_t i = 0; i < row.count; i += 16) {
    const __m512i bits =
        _mm512_and_si512(_mm512_maskz_loadu_epi32(lanes_of(row.count - i), row.x + i), magnitude);
    most = _mm512_mask_max_epi32(most, _mm512_cmplt_epi32_mask(bits, below), most, bits);
    most_of_all = _mm512_max_epi32(most_of_all, bits);
  }
  if (_mm512_reduce_max_epi32(most_of_all) >= 0x7f800000) {
    memset(row.codes, 0, static_cast<size_t>(row.padded));
    memset(row.outliers, 0, static_cast<size_t>(row.padded / 8));
    *row.scale = __builtin_nanf("");
    *row.sum = 0;
    return;
  }
  const int32_t largest_bits = _mm512_reduce_max_epi32(most);
  float largest;
  memcpy(&largest, &largest_bits, sizeof largest);
  if (largest < kLeastMagnitude) largest = 0;
  const __m512 factor = _mm512_set1_ps(largest > 0 ? 127.0f * (1 / largest) : 0.0f);
  __m512i total = _mm512_setzero_si512();
  for (int64_t i = 0; i < row.padded; i += 64) {
    uint64_t outliers = 0;
    for (int64_t part = 0; part < 64; part += 16) {
      const int64_t at = i + part;
      const __m512 x = _mm512_maskz_loadu_ps(lanes_of(row.count - at), row.x + at);
      const __mmask16 is_below =
          _mm512_cmplt_epi32_mask(_mm512_and_si512(_mm512_castps_si512(x), magnitude), below);
      outliers |= static_cast<uint64_t>(static_cast<__mmask16>(~is_below)) << part;
      const __m512i codes = _mm512_maskz_cvtps_epi32(is_below, _mm512_mul_ps(x, factor));
      total = _mm512_add_epi32(total, codes);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(row.codes + at), _mm512_cvtepi32_epi8(codes));
    }
    row.outliers[i / 64] = outliers;
  }
  *row.scale = largest / 127.0f;
  *row.sum = _mm512_reduce_add_epi32(total);
}

}  // namespace lowbit
