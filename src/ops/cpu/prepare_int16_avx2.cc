#include "ops/cpu/prepare_kernels.h"

#include <immintrin.h>
#include <string.h>

namespace lowbit {

void encode_int16_avx2(const Int16Block& block) noexcept {
  alignas(32) float values[kXBlock];
  alignas(32) int16_t codes[kXBlock];
  const float* x = block.x;
  if (block.count % 32 != 0) {  // whole vectors and units below
    memset(values, 0, sizeof values);
    memcpy(values, x, static_cast<size_t>(block.count) * sizeof(float));
    x = values;
  }
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i most = _mm256_setzero_si256();
  for (int64_t i = 0; i < block.count; i += 8) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
    most = _mm256_max_epi32(most, _mm256_and_si256(bits, magnitude));
  }
  __m128i half = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
  half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1));
  const int32_t largest_bits = _mm_cvtsi128_si32(half);
  const float largest = _mm_cvtss_f32(_mm_castsi128_ps(half));
  const bool is_finite = largest_bits < 0x7f800000;
  if (!is_finite || largest < kLeastMagnitude) {
    memset(block.codes, 0, static_cast<size_t>(block.padded) * sizeof(int16_t));
    *block.scale = is_finite ? 0.0f : __builtin_nanf("");
    *block.sum = 0;
    return;
  }
  // A unit of up to eight codes is in order after one shuffle of its 16 bytes.
  const bool is_shuffled = block.unit <= 8;
  const __m128i order = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(block.order)));
  const __m256i shuffle = _mm256_broadcastsi128_si256(
      is_shuffled ? _mm_add_epi16(_mm_mullo_epi16(order, _mm_set1_epi16(0x0202)), _mm_set1_epi16(0x0100))
                  : _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  const bool is_direct = is_shuffled && block.padded % 16 == 0;
  int16_t* const to = is_direct ? block.codes : codes;
  const __m256 inverse = _mm256_set1_ps(kLargestCode / largest);
  __m256i total = _mm256_setzero_si256();
  for (int64_t i = 0; i < block.padded; i += 16) {
    const __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), inverse));
    const __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8), inverse));
    total = _mm256_add_epi32(total, _mm256_add_epi32(low, high));
    const __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), _mm256_shuffle_epi8(both, shuffle));
  }
  half = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1));
  *block.sum = _mm_cvtsi128_si32(half);
  *block.scale = largest / kLargestCode;
  if (is_shuffled) {
    if (!is_direct) memcpy(block.codes, codes, static_cast<size_t>(block.padded) * sizeof(int16_t));
    return;
  }
  for (int64_t i = 0; i < block.padded; i += block.unit) {
    for (int64_t j = 0; j < block.unit; ++j) block.codes[i + j] = codes[i + block.order[j]];
  }
}

}  // namespace lowbit
