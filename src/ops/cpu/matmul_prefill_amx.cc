// Prefill with AMX tiles: x and W rounded to BF16, sums in FP32.
//
// A tile of W holds 16 output columns x 32 columns of x as AMX wants its second operand: [16 pairs][16 output
// columns][2]. Affine codes come in just this shape: a shifted and masked word row is a pair of codes for
// each lane (ops/cpu/affine_codes.inc), so dequantizing needs no shuffle; x stands in the same order of
// columns (XForm::kBf16Tiles). A panel of W, kPanel output columns x kDepth tiles, is converted once and
// stays in L2 while all rows of x pass.
#include "ops/cpu/amx_tiles.h"
#include "ops/cpu/matmul_kernels.h"

#include <immintrin.h>
#include <string.h>

namespace lowbit {
namespace {
#include "ops/cpu/vec_avx512.inc"
}  // namespace

namespace {
#include "ops/cpu/affine_codes.inc"
#include "ops/cpu/start_rows.inc"

constexpr int64_t kTile = 512;   // elements of a tile
constexpr int64_t kDepth = 16;   // tiles, 512 columns of x
constexpr int64_t kPanel = 512;  // output columns
constexpr int64_t kEdge = 32;    // rows and output columns of a block of 2 x 2 tiles
constexpr size_t kPanelBytes = sizeof(uint16_t) * 32 * kDepth * kPanel;
static_assert(kPanelBytes + sizeof(float) * kEdge * kEdge <= kMatmulScratchBytes);

// Tile instructions do not tell the compiler which memory they touch.
inline void memory_barrier() { __asm__ volatile("" ::: "memory"); }

// The BF16 nearest to each finite lane, ties away from zero, in the upper half.
inline VecI rounded_up_half(VecF value) { return add_i32(_mm512_castps_si512(value), set_i32(0x8000)); }

// Tiles [0, depth) of one strip of 16 output columns; `lanes` of them exist.
template <int kBits>
void pack_affine(const MatmulArgs& args, int64_t n, int64_t lanes, int64_t k, int64_t depth,
                 uint16_t* strip) {
  using C = Codes<kBits>;
  const __mmask16 mask = static_cast<__mmask16>(lanes >= 16 ? 0xffff : (1 << lanes) - 1);
  const int64_t stride = args.out * 4, total_words = (args.in * kBits + 31) / 32;
  const VecI low_half = set_i32(0xffff), high_half = set_i32(static_cast<int>(0xffff0000u));
  const int64_t end = args.in < k + depth * 32 ? args.in : k + depth * 32;
  int64_t group = -1;
  VecF scale = zero_f32(), offset = zero_f32();
  uint8_t* to = reinterpret_cast<uint8_t*>(strip);
  int64_t column = k;
  for (; column < end; column += C::kUnit) {
    if (column / args.group_size != group) {
      group = column / args.group_size;
      const int64_t at = group * args.out + n;
      scale =
          _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, static_cast<const uint8_t*>(args.scales) + at * 2));
      const VecI zero = args.zero_points ? _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(
                                               mask, static_cast<const uint8_t*>(args.zero_points) + at))
                                         : set_i32(1 << (kBits - 1));
      offset = mul_f32(scale, convert_i32(zero));  // exact: 11 and 8 bits
    }
    const int64_t word = column / C::kUnit * C::kWords;
    const uint8_t* codes = static_cast<const uint8_t*>(args.codes) + word * stride + n * 4;
    UnitWords<kBits> unit;
    if (lanes >= 16) {
      unit = load_unit<kBits>(codes, stride, total_words - word);
    } else {
      alignas(64) uint8_t copy[C::kWords][64] = {};
      for (int w = 0; w < C::kWords && word + w < total_words; ++w) {
        memcpy(copy[w], codes + w * stride, static_cast<size_t>(lanes) * 4);
      }
      unit = load_unit<kBits>(copy[0], 64, C::kWords);
    }
#pragma GCC unroll 16
    for (int p = 0; p < C::kPairs; ++p) {
      const VecI pair = pair_of<kBits>(unit, p);
      const VecF low = _mm512_fmsub_ps(scale, convert_i32(and_bits(pair, low_half)), offset);
      const VecF high = _mm512_fmsub_ps(scale, convert_i32(shift_right(pair, 16)), offset);
      const VecI both =
          or_bits(shift_right(rounded_up_half(low), 16), and_bits(rounded_up_half(high), high_half));
      _mm512_store_si512(to, both);
      to += 64;
    }
  }
  for (uint8_t* last = reinterpret_cast<uint8_t*>(strip + depth * kTile); to < last; to += 64) {
    _mm512_store_si512(to, zero_i32());
  }
}

inline void transpose_sixteen(VecI (&row)[16]) {
  VecI a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  // b[4q + j]: lane 4c + r holds element 4c + j of row 4q + r. Now gather the quarters.
  for (int j = 0; j < 4; ++j) {
    const VecI low01 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x44),
               high01 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xee);
    const VecI low23 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x44),
               high23 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xee);
    row[j] = _mm512_shuffle_i32x4(low01, low23, 0x88);
    row[4 + j] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
    row[8 + j] = _mm512_shuffle_i32x4(high01, high23, 0x88);
    row[12 + j] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
  }
}

void pack_dense(const MatmulArgs& args, int64_t n, int64_t lanes, int64_t k, int64_t depth, uint16_t* strip) {
  for (int64_t tile = 0; tile < depth; ++tile) {
    const int64_t column = k + tile * 32, columns = args.in - column;
    const __mmask32 mask = columns >= 32 ? 0xffffffffu : (1u << columns) - 1u;
    VecI rows[16];
#pragma GCC unroll 16
    for (int64_t i = 0; i < 16; ++i) {
      const uint8_t* from = static_cast<const uint8_t*>(args.weight) + ((n + i) * args.in + column) * 2;
      rows[i] = i < lanes ? _mm512_maskz_loadu_epi16(mask, from) : zero_i32();
    }
    transpose_sixteen(rows);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) _mm512_store_si512(strip + tile * kTile + i * 32, rows[i]);
  }
}

void pack_strip(const MatmulArgs& args, int64_t n, int64_t lanes, int64_t k, int64_t depth, uint16_t* strip) {
  if (args.kind == WeightKind::kBF16) return pack_dense(args, n, lanes, k, depth, strip);
  switch (args.bits) {
    case 2:
      return pack_affine<2>(args, n, lanes, k, depth, strip);
    case 3:
      return pack_affine<3>(args, n, lanes, k, depth, strip);
    case 4:
      return pack_affine<4>(args, n, lanes, k, depth, strip);
    case 8:
      return pack_affine<8>(args, n, lanes, k, depth, strip);
  }
}

// c[32 or 16 rows, 32] += two (or one) row blocks of x times two strips of W
template <bool kTwoRowBlocks>
inline void multiply(const uint16_t* x0, const uint16_t* x1, const uint16_t* w0, const uint16_t* w1,
                     int64_t depth, float* c, int64_t c_stride) {
  const int64_t bytes = c_stride * 4;
  _tile_loadd(0, c, bytes);
  _tile_loadd(1, c + 16, bytes);
  if constexpr (kTwoRowBlocks) {
    _tile_loadd(2, c + 16 * c_stride, bytes);
    _tile_loadd(3, c + 16 * c_stride + 16, bytes);
  }
  for (int64_t k = 0; k < depth; ++k) {
    _tile_loadd(4, x0 + k * kTile, 64);
    _tile_loadd(6, w0 + k * kTile, 64);
    _tile_loadd(7, w1 + k * kTile, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kTwoRowBlocks) {
      _tile_loadd(5, x1 + k * kTile, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, bytes);
  _tile_stored(1, c + 16, bytes);
  if constexpr (kTwoRowBlocks) {
    _tile_stored(2, c + 16 * c_stride, bytes);
    _tile_stored(3, c + 16 * c_stride + 16, bytes);
  }
}

struct Block {
  int64_t row, rows, n, columns;  // rows and columns that exist, at most kEdge
};

// At the edges of y through a copy of a whole block.
void multiply_block(const MatmulArgs& args, const Block& block, const uint16_t* x0, const uint16_t* x1,
                    const uint16_t* w0, const uint16_t* w1, int64_t depth, float* copy) {
  float* y = args.y + block.row * args.out + block.n;
  const bool is_whole = block.columns == kEdge && block.rows % 16 == 0;
  float* c = is_whole ? y : copy;
  const int64_t c_stride = is_whole ? args.out : kEdge;
  const size_t bytes = static_cast<size_t>(block.columns) * sizeof(float);
  if (!is_whole) {
    memset(copy, 0, sizeof(float) * kEdge * kEdge);
    for (int64_t row = 0; row < block.rows; ++row) memcpy(copy + row * kEdge, y + row * args.out, bytes);
  }
  memory_barrier();
  if (block.rows > 16) {
    multiply<true>(x0, x1, w0, w1, depth, c, c_stride);
  } else {
    multiply<false>(x0, x1, w0, w1, depth, c, c_stride);
  }
  memory_barrier();
  if (!is_whole) {
    for (int64_t row = 0; row < block.rows; ++row) memcpy(y + row * args.out, copy + row * kEdge, bytes);
  }
}

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace

void matmul_prefill_amx(const MatmulArgs& args, int64_t begin, int64_t end, void* scratch) noexcept {
  uint16_t* panel = static_cast<uint16_t*>(scratch);
  float* copy = reinterpret_cast<float*>(static_cast<uint8_t*>(scratch) + kPanelBytes);
  start_rows(args, begin, end);
  _tile_loadconfig(&kFullTiles);
  for (int64_t n = begin; n < end; n += kPanel) {
    const int64_t width = smaller(end - n, kPanel), strips = (width + kEdge - 1) / kEdge * 2;
    for (int64_t k = 0; k < args.x_depth; k += kDepth) {
      const int64_t depth = smaller(args.x_depth - k, kDepth), strip_size = depth * kTile;
      for (int64_t strip = 0; strip < strips; ++strip) {
        const int64_t left = width - strip * 16;
        if (left > 0) {
          pack_strip(args, n + strip * 16, smaller(left, 16), k * 32, depth, panel + strip * strip_size);
        } else {
          memset(panel + strip * strip_size, 0, static_cast<size_t>(strip_size) * 2);
        }
      }
      for (int64_t row = 0; row < args.rows; row += kEdge) {
        const uint16_t* x0 = args.x_tiles + (row / 16 * args.x_depth + k) * kTile;
        const uint16_t* x1 = x0 + args.x_depth * kTile;
        for (int64_t c = 0; c < width; c += kEdge) {
          const Block block = {row, smaller(args.rows - row, kEdge), n + c, smaller(width - c, kEdge)};
          const uint16_t* w0 = panel + c / 16 * strip_size;
          multiply_block(args, block, x0, x1, w0, w0 + strip_size, depth, copy);
        }
      }
    }
  }
  _tile_release();
}

void prepare_bf16_tiles(const MatmulArgs& args, const uint8_t* order, int64_t begin, int64_t end) noexcept {
  alignas(64) uint16_t positions[32];
  for (int i = 0; i < 32; ++i) positions[i] = order[i];
  const VecI permutation = load_i32(positions);
  uint16_t* tiles = const_cast<uint16_t*>(args.x_tiles);
  const VecI one = set_i32(1), almost_half = set_i32(0x7fff), quiet = set_i32(0x7fc0);
  const auto rounded = [&](VecF value) __attribute__((always_inline)) {
    const VecI bits = _mm512_castps_si512(value);
    const VecI even = and_bits(shift_right(bits, 16), one);
    const VecI nearest = shift_right(add_i32(bits, add_i32(almost_half, even)), 16);
    const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(nearest, is_nan, quiet));
  };
  for (int64_t row_block = begin; row_block < end; ++row_block) {
    for (int64_t tile = 0; tile < args.x_depth; ++tile) {
      const int64_t column = tile * 32, left = args.in - column;
      const unsigned exists = left >= 32 ? 0xffffffffu : (1u << left) - 1u;
      for (int64_t i = 0; i < 16; ++i) {
        uint16_t* to = tiles + (row_block * args.x_depth + tile) * kTile + i * 32;
        const int64_t row = row_block * 16 + i;
        if (row >= args.rows) {
          _mm512_store_si512(to, zero_i32());
          continue;
        }
        const float* from = args.x + row * args.x_stride + column;
        const VecF low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(exists), from);
        const VecF high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(exists >> 16), from + 16);
        const VecI both = _mm512_inserti64x4(_mm512_castsi256_si512(rounded(low)), rounded(high), 1);
        _mm512_store_si512(to, _mm512_permutexvar_epi16(permutation, both));
      }
    }
  }
}

}  // namespace lowbit
