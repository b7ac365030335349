// Decode: y = x W^T for few rows of x and codes of 4 bits that point into a codebook, in integers.
//
// A byte shuffle looks up 32 codes at once, in floats a permute eight. So values are integers of 13 bits
// here,
//   value = scale * (256 * upper + lower)
// and x is of 16 bits (kInt16). Products are summed exactly over 32 columns, then in float:
//   y += w_scale * scale * x_scale * sum
// one pass of 64 columns after the other: the same numbers for a row alone and among others.
#include "ops/cpu/matmul_kernels.h"

#include <immintrin.h>
#include <string.h>

namespace lowbit {
namespace {

#include "ops/cpu/start_rows.inc"

constexpr float kLargestValue = 4095;
constexpr int64_t kUnit = 8;                        // codes in a word
constexpr int64_t kPassWords = 8, kExactWords = 4;  // word rows of a pass; of which sums have 32 bits
constexpr int64_t kAheadBytes = 1024;
constexpr int64_t kLanes = 8, kMostRows = 64;

struct Values {
  __m256i lower, upper;  // bytes by code, twice
  float scale;
};

Values values_of(const float* codebook) {
  float largest = 0;
  for (int i = 0; i < 16; ++i) {
    const float size = codebook[i] < 0 ? -codebook[i] : codebook[i];
    if (size > largest) largest = size;
  }
  const float factor = largest > 0 ? kLargestValue / largest : 0.0f;
  alignas(16) uint8_t lower[16], upper[16];
  for (int i = 0; i < 16; ++i) {
    const int value = _mm_cvtss_si32(_mm_set_ss(codebook[i] * factor));
    lower[i] = static_cast<uint8_t>(value & 255);
    upper[i] = static_cast<uint8_t>(value >> 8 & 255);
  }
  auto twice = [](const uint8_t* bytes) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
  };
  return {twice(lower), twice(upper), largest / kLargestValue};
}

// What a row's word rows are multiplied by: four codes of x for the lower digits of their bytes, four for the
// upper ones.
using Factors = int64_t[kPassWords][2];

void take_factors(const int16_t* x, int64_t words, Factors& factors) {
  // Columns 0 2 4 6 1 3 5 7 of 0 4 1 5 2 6 3 7 (position_order of 4 bits).
  const __m128i order = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
  for (int64_t w = 0; w < words; ++w) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + w * kUnit));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(factors[w]), _mm_shuffle_epi8(codes, order));
  }
}

struct Pass {
  const uint8_t* codes;    // its first word row
  const float* scales;     // of its group, [out]
  int64_t stride, words;   // bytes between word rows; word rows
  int64_t ahead;           // bytes from what is read to what is prefetched
  const Factors* factors;  // of each row
  const float* x_scales;   // x_stride apart from row to row
  int64_t x_stride;
};

// kVectors * kLanes columns of rows [row, row + kRows); `codes`, `scales` and y are already there. kWords:
// the pass has so many; 0: some other number.
template <int kRows, int kVectors, int kWords>
inline void add_pass(const Pass& pass, const Values& values, int64_t row, const uint8_t* codes,
                     const float* scales, float* y, int64_t y_stride) {
  const __m256i digit = _mm256_set1_epi8(15);
  const int64_t words = kWords > 0 ? kWords : pass.words;
  // Of columns 0 and 1 (of each half of a vector), and of 2 and 3: for each of them two sums.
  __m256 sums[kRows][kVectors][2];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sums[r][v][0] = sums[r][v][1] = _mm256_setzero_ps();
  }
  for (int64_t first = 0; first < words; first += kExactWords) {
    __m256i exact[kRows][kVectors][2];
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) exact[r][v][0] = exact[r][v][1] = _mm256_setzero_si256();
    }
    const int64_t end = kWords > 0 || first + kExactWords < words ? first + kExactWords : words;
#pragma GCC unroll 4
    for (int64_t w = first; w < end; ++w) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const uint8_t* from = codes + w * pass.stride + v * kLanes * 4;
        const __m256i word = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        if (v % 2 == 0) _mm_prefetch(reinterpret_cast<const char*>(from + pass.ahead), _MM_HINT_T0);
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const __m256i index = _mm256_and_si256(half == 0 ? word : _mm256_srli_epi16(word, 4), digit);
          const __m256i lower = _mm256_shuffle_epi8(values.lower, index),
                        upper = _mm256_shuffle_epi8(values.upper, index);
          const __m256i first_two = _mm256_unpacklo_epi8(lower, upper),
                        last_two = _mm256_unpackhi_epi8(lower, upper);
#pragma GCC unroll 4
          for (int r = 0; r < kRows; ++r) {
            const __m256i x = _mm256_set1_epi64x(pass.factors[row + r][w][half]);
            exact[r][v][0] = _mm256_add_epi32(exact[r][v][0], _mm256_madd_epi16(first_two, x));
            exact[r][v][1] = _mm256_add_epi32(exact[r][v][1], _mm256_madd_epi16(last_two, x));
          }
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        for (int i = 0; i < 2; ++i) {
          sums[r][v][i] = _mm256_add_ps(sums[r][v][i], _mm256_cvtepi32_ps(exact[r][v][i]));
        }
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const __m256 x_scale = _mm256_set1_ps(values.scale * pass.x_scales[(row + r) * pass.x_stride]);
    for (int v = 0; v < kVectors; ++v) {
      const __m256 a = sums[r][v][0], b = sums[r][v][1];
      const __m256 sum = _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
      const __m256 scale = _mm256_mul_ps(_mm256_loadu_ps(scales + v * kLanes), x_scale);
      float* to = y + r * y_stride + v * kLanes;
      _mm256_storeu_ps(to, _mm256_fmadd_ps(scale, sum, _mm256_loadu_ps(to)));
    }
  }
}

template <int kVectors, int kWords>
inline void add_rows(const MatmulArgs& args, const Pass& pass, const Values& values, int64_t n) {
  const uint8_t* codes = pass.codes + n * 4;
  const float* scales = pass.scales + n;
  float* y = args.y + n;
  int64_t row = 0;
  if constexpr (kVectors == 1) {
    for (; row + 4 <= args.rows; row += 4)
      add_pass<4, 1, kWords>(pass, values, row, codes, scales, y + row * args.out, args.out);
  }
  for (; row < args.rows; ++row)
    add_pass<1, kVectors, kWords>(pass, values, row, codes, scales, y + row * args.out, args.out);
}

// Fewer columns than lanes: through copies that whole vectors may read.
void add_tail(const MatmulArgs& args, const Pass& pass, const Values& values, int64_t n, int64_t count) {
  alignas(32) uint8_t words[kPassWords][kLanes * 4] = {};
  alignas(32) float scales[kLanes] = {}, y[kLanes] = {};
  for (int64_t w = 0; w < pass.words; ++w)
    memcpy(words[w], pass.codes + w * pass.stride + n * 4, static_cast<size_t>(count) * 4);
  memcpy(scales, pass.scales + n, static_cast<size_t>(count) * 4);
  Pass copy = pass;
  copy.stride = kLanes * 4;
  copy.ahead = 0;
  for (int64_t row = 0; row < args.rows; ++row) {
    float* const to = args.y + row * args.out + n;
    memcpy(y, to, static_cast<size_t>(count) * 4);
    add_pass<1, 1, 0>(copy, values, row, words[0], scales, y, 0);
    memcpy(to, y, static_cast<size_t>(count) * 4);
  }
}

template <int kWords>
void add_columns(const MatmulArgs& args, const Pass& pass, const Values& values, int64_t begin, int64_t end) {
  int64_t n = begin;
  if (args.rows < 4) {
    for (; n + 2 * kLanes <= end; n += 2 * kLanes) add_rows<2, kWords>(args, pass, values, n);
  }
  for (; n + kLanes <= end; n += kLanes) add_rows<1, kWords>(args, pass, values, n);
  if (n < end) add_tail(args, pass, values, n, end - n);
}

// Of at most kMostRows rows.
void run(const MatmulArgs& args, const Values& values, int64_t begin, int64_t end) {
  start_rows(args, begin, end);
  const int64_t all_words = (args.in + kUnit - 1) / kUnit;
  alignas(64) Factors factors[kMostRows];
  Pass pass;
  pass.stride = args.out * 4;
  pass.factors = factors;
  pass.x_scales = args.x_scales;
  pass.x_stride = args.x_blocks;
  for (int64_t group = 0; group < args.in; group += args.group_size) {
    const int64_t group_end = args.in - group < args.group_size ? args.in : group + args.group_size;
    pass.scales = static_cast<const float*>(args.scales) + group / args.group_size * args.out;
    for (int64_t block = group; block < group_end; block += kXBlock, ++pass.x_scales) {
      const int64_t block_end = group_end - block < kXBlock ? group_end : block + kXBlock;
      for (int64_t column = block; column < block_end; column += kPassWords * kUnit) {
        const int64_t word = column / kUnit, left = (block_end - column + kUnit - 1) / kUnit;
        pass.words = left < kPassWords ? left : kPassWords;
        pass.codes = static_cast<const uint8_t*>(args.codes) + word * pass.stride;
        // Whole passes ahead where a row of this thread is short.
        pass.ahead = word + 2 * kPassWords <= all_words && (end - begin) * 4 <= kAheadBytes
                         ? kPassWords * pass.stride
                         : kAheadBytes;
        for (int64_t row = 0; row < args.rows; ++row)
          take_factors(args.x_codes + row * args.x_stride + column, pass.words, factors[row]);
        if (pass.words == kPassWords) {
          add_columns<kPassWords>(args, pass, values, begin, end);
        } else {
          add_columns<0>(args, pass, values, begin, end);
        }
      }
    }
  }
}

}  // namespace

void matmul_decode_codebook_int16_avx2(const MatmulArgs& args, int64_t begin, int64_t end, void*) noexcept {
  const Values values = values_of(args.codebook);
  MatmulArgs some = args;
  for (int64_t row = 0; row < args.rows; row += kMostRows) {
    some.rows = args.rows - row < kMostRows ? args.rows - row : kMostRows;
    some.y = args.y + row * args.out;
    some.x_codes = args.x_codes + row * args.x_stride;
    some.x_scales = args.x_scales + row * args.x_blocks;
    run(some, values, begin, end);
  }
}

}  // namespace lowbit
