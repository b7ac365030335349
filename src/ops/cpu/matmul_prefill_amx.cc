// Prefill with AMX tiles: x and W rounded to BF16, sums in FP32.
//
// A tile of W holds 16 output columns x 32 columns of x as AMX wants its second operand: [16 pairs][16 output
// columns][2]. Affine codes come in just this shape: a shifted and masked word row is a pair of codes for
// each lane (ops/cpu/affine_codes.inc), so dequantizing needs no shuffle; x stands in the same order of
// columns (XForm::kBf16Tiles). A panel of W is converted once and stays in L2 while all rows of x pass.
// Gated, it has strips of both weights in turn, and the sums of a block become y while the next block's tiles
// are multiplied: the vector units have nothing else to do then.
#include "ops/cpu/matmul_kernels.h"

#include <immintrin.h>
#include <string.h>

namespace lowbit {
namespace {
#include "ops/cpu/vector_avx512.inc"
}  // namespace

namespace {
#include "ops/cpu/affine_codes.inc"
#include "ops/cpu/amx.inc"
#include "ops/cpu/exp.inc"
#include "ops/cpu/gated_row.inc"
#include "ops/cpu/parts.inc"
#include "ops/cpu/start_rows.inc"

constexpr int64_t kTile = 512;   // elements of a tile
constexpr int64_t kEdge = 32;    // rows and output columns of a block of 2 x 2 tiles
constexpr int64_t kDepth = 48;   // tiles: columns of x / 32 that a panel of W spans at most
constexpr int64_t kSlice = 18;   // tiles: part of them whose x (32 rows) stays in L1
constexpr int64_t kPanel = 512;  // output columns of a panel at most
constexpr int64_t kPanelTiles = 1024;
constexpr int64_t kCodesAtOnce = 4;  // tiles: of codes that are converted for a strip before the next strip
constexpr size_t kPanelBytes = sizeof(uint16_t) * kTile * kPanelTiles;
constexpr size_t kSumBytes = sizeof(float) * kEdge * kPanel;
static_assert(kPanelBytes + kSumBytes + sizeof(float) * kEdge * kEdge <= kMatmulScratchBytes);

// Tiles [0, depth) of one strip of 16 output columns; `lanes` of them exist.
template <int kBits>
void pack_affine(const MatmulArgs& args, int64_t n, int64_t lanes, int64_t k, int64_t depth,
                 uint16_t* strip) {
  using C = Codes<kBits>;
  const __mmask16 mask = static_cast<__mmask16>(lanes >= 16 ? 0xffff : (1 << lanes) - 1);
  const int64_t stride = args.out * 4, total_words = (args.in * kBits + 31) / 32;
  const VecI low_half = set_i32(0xffff);
  const int64_t end = args.in < k + depth * 32 ? args.in : k + depth * 32;
  int64_t group = -1;
  Vec scale = zero(), offset = zero();
  uint8_t* to = reinterpret_cast<uint8_t*>(strip);
  int64_t column = k;
  for (; column < end; column += C::kUnit) {
    if (column / args.group_size != group) {
      group = column / args.group_size;
      const int64_t at = group * args.out + n;
      const uint8_t* scales = static_cast<const uint8_t*>(args.scales) + at * (args.has_wide_scales ? 4 : 2);
      scale = args.has_wide_scales ? _mm512_maskz_loadu_ps(mask, scales)
                                   : _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, scales));
      const VecI zero = args.zero_points ? _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(
                                               mask, static_cast<const uint8_t*>(args.zero_points) + at))
                                         : set_i32(1 << (kBits - 1));
      offset = mul(scale, convert_i32(zero));  // exact: 11 and 8 bits, or times 128
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
      const Vec low = _mm512_fmsub_ps(scale, convert_i32(and_bits(pair, low_half)), offset);
      const Vec high = _mm512_fmsub_ps(scale, convert_i32(shift_right(pair, 16)), offset);
      _mm512_store_si512(to, bf16_pairs(low, high));
      to += 64;
    }
  }
  for (uint8_t* last = reinterpret_cast<uint8_t*>(strip + depth * kTile); to < last; to += 64) {
    _mm512_store_si512(to, zero_i32());
  }
}

void pack_codebook(const MatmulArgs& args, int64_t n, int64_t lanes, int64_t k, int64_t depth,
                   uint16_t* strip) {
  constexpr int64_t kUnit = 8;
  const __mmask16 mask = static_cast<__mmask16>(lanes >= 16 ? 0xffff : (1 << lanes) - 1);
  const Codebook16 codebook = load_codebook(args.codebook);
  const int64_t end = args.in < k + depth * 32 ? args.in : k + depth * 32;
  int64_t group = -1;
  Vec scale = zero();
  uint8_t* to = reinterpret_cast<uint8_t*>(strip);
  for (int64_t column = k; column < end; column += kUnit) {
    if (column / args.group_size != group) {
      group = column / args.group_size;
      scale = _mm512_maskz_loadu_ps(mask, static_cast<const float*>(args.scales) + group * args.out + n);
    }
    const VecI word = _mm512_maskz_loadu_epi32(
        mask, static_cast<const uint8_t*>(args.codes) + (column / kUnit * args.out + n) * 4);
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) {  // codes p and 4 + p
      const Vec low = mul(lookup(codebook, shift_right(word, 4 * p)), scale);
      const Vec high = mul(lookup(codebook, shift_right(word, 16 + 4 * p)), scale);
      _mm512_store_si512(to, bf16_pairs(low, high));
      to += 64;
    }
  }
  for (uint8_t* last = reinterpret_cast<uint8_t*>(strip + depth * kTile); to < last; to += 64) {
    _mm512_store_si512(to, zero_i32());
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
    transpose16(rows);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) _mm512_store_si512(strip + tile * kTile + i * 32, rows[i]);
  }
}

void pack_strip(const MatmulArgs& args, int64_t n, int64_t lanes, int64_t k, int64_t depth, uint16_t* strip) {
  if (args.kind == WeightKind::kBF16) return pack_dense(args, n, lanes, k, depth, strip);
  if (args.kind == WeightKind::kCodebook) return pack_codebook(args, n, lanes, k, depth, strip);
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

// Where a block of 2 x 2 tiles comes from or goes to; null data: zeros. A stride of 0 repeats one row.
struct Place {
  float* data;
  int64_t stride;  // elements
};

// to = from + two row blocks of x (or one) times two strips of W. between(): what else there is to do, after
// each tile.
template <bool kTwoRowBlocks, class Between>
inline void multiply(const uint16_t* x0, const uint16_t* x1, const uint16_t* w0, const uint16_t* w1,
                     int64_t depth, Place from, Place to, const Between& between) {
  memory_barrier();
  if (from.data) {
    _tile_loadd(0, from.data, from.stride * 4);
    _tile_loadd(1, from.data + 16, from.stride * 4);
    if constexpr (kTwoRowBlocks) {
      _tile_loadd(2, from.data + 16 * from.stride, from.stride * 4);
      _tile_loadd(3, from.data + 16 * from.stride + 16, from.stride * 4);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < depth; ++k) {
    _tile_stream_loadd(6, w0 + k * kTile, 64);
    _tile_stream_loadd(7, w1 + k * kTile, 64);
    _tile_loadd(4, x0 + k * kTile, 64);
    if constexpr (kTwoRowBlocks) {
      _tile_loadd(5, x1 + k * kTile, 64);
      multiply_two_by_two();
    } else {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
    }
    between();
  }
  memory_barrier();
  _tile_stored(0, to.data, to.stride * 4);
  _tile_stored(1, to.data + 16, to.stride * 4);
  if constexpr (kTwoRowBlocks) {
    _tile_stored(2, to.data + 16 * to.stride, to.stride * 4);
    _tile_stored(3, to.data + 16 * to.stride + 16, to.stride * 4);
  }
  memory_barrier();
}

// What a thread works on: a panel of W that spans tiles [k, k + depth) of x and output columns [n, n +
// width).
struct Panel {
  const uint16_t* tiles;       // [strip][depth]
  int64_t k, depth, n, width;  // width: gated, of both weights
  float* sums;                 // [kEdge, kPanel] of the rows at hand
  float* block;                // [kEdge, kEdge], for blocks that y has only a part of
  int64_t end;                 // of the output columns that the thread has
};

// The rows of a gated block whose sums are complete, as far as they are not yet y.
struct Ungated {
  float *sums, *y;
  int64_t next, rows, columns;
};
inline void gate_next(const MatmulArgs& args, Ungated& left) {
  const float* const sums = left.sums + left.next * kPanel;
  float* const y = left.y + left.next++ * args.out;
  if (left.columns < 16) return gate_row(sums, sums + 16, left.columns, y);
  store(y, mul(silu_of(load(sums)), load(sums + 16)));
}

// Sums of one slice for one block: the first slice starts from the bias (or from y, when the panel is not the
// first of its columns), the last one ends in y, and between slices they stay in panel.sums.
void multiply_block(const MatmulArgs& args, const Panel& panel, int64_t row, int64_t column, int64_t slice,
                    int64_t slice_depth, Ungated& left) {
  const int64_t rows = smaller(args.rows - row, kEdge), columns = smaller(panel.width - column, kEdge);
  const bool is_whole = columns == kEdge && rows % 16 == 0;
  const bool is_first = slice == 0, is_last = !args.gated && slice + slice_depth == panel.depth;
  const size_t bytes = static_cast<size_t>(columns) * sizeof(float);
  float* y = args.y + row * args.out + panel.n + column;
  const Place sums = {panel.sums + column, kPanel};
  Place from = sums, to = sums;
  if (is_first && panel.k > 0) {
    from = is_whole ? Place{y, args.out} : Place{panel.block, kEdge};
    for (int64_t r = 0; !is_whole && r < rows; ++r) memcpy(panel.block + r * kEdge, y + r * args.out, bytes);
  } else if (is_first && args.gated) {
    from = {nullptr, 0};
    if (args.bias || args.gated->bias) {
      const int64_t n = panel.n + column / 2;
      const size_t part = static_cast<size_t>(smaller(args.out - n, 16)) * sizeof(float);
      memset(panel.block, 0, kEdge * sizeof(float));
      if (args.bias) memcpy(panel.block, args.bias + n, part);
      if (args.gated->bias) memcpy(panel.block + 16, args.gated->bias + n, part);
      from = {panel.block, 0};
    }
  } else if (is_first && args.bias) {
    memcpy(panel.block, args.bias + panel.n + column, bytes);
    from = {panel.block, 0};
  } else if (is_first) {
    from = {nullptr, 0};
  }
  if (is_last) to = is_whole ? Place{y, args.out} : Place{panel.block, kEdge};
  const uint16_t* x0 = args.x_tiles + (row / 16 * args.x_depth + panel.k + slice) * kTile;
  const uint16_t* x1 = x0 + args.x_depth * kTile;
  const uint16_t* w0 = panel.tiles + (column / 16 * panel.depth + slice) * kTile;
  const uint16_t* w1 = w0 + panel.depth * kTile;
  const int64_t share = (kEdge + slice_depth - 1) / slice_depth;
  auto gate_some = [&] {
    for (int64_t i = 0; i < share && left.next < left.rows; ++i) gate_next(args, left);
  };
  if (rows > 16) {
    multiply<true>(x0, x1, w0, w1, slice_depth, from, to, gate_some);
  } else {
    multiply<false>(x0, x1, w0, w1, slice_depth, from, to, gate_some);
  }
  if (args.gated && slice + slice_depth == panel.depth) {
    const int64_t n = panel.n + column / 2;
    left = {sums.data, args.y + row * args.out + n, 0, rows, smaller(panel.end - n, 16)};
  }
  if (is_last && !is_whole) {
    for (int64_t r = 0; r < rows; ++r) memcpy(y + r * args.out, panel.block + r * kEdge, bytes);
  }
}

// Tiles [tile, tile + depth) of all strips.
void pack_tiles(const MatmulArgs& args, const Panel& panel, int64_t strips, int64_t tile, int64_t depth,
                uint16_t* tiles) {
  for (int64_t strip = 0; strip < strips; ++strip) {
    uint16_t* to = tiles + (strip * panel.depth + tile) * kTile;
    const MatmulArgs& source = args.gated && strip % 2 ? *args.gated : args;
    const int64_t n = panel.n + (args.gated ? strip / 2 : strip) * 16;
    const int64_t lanes = smaller(args.gated ? args.out - n : panel.n + panel.width - n, 16);
    if (lanes > 0) {
      pack_strip(source, n, lanes, (panel.k + tile) * 32, depth, to);
    } else {
      memset(to, 0, static_cast<size_t>(depth * kTile) * sizeof(uint16_t));
    }
  }
}

}  // namespace

void matmul_prefill_amx(const MatmulArgs& args, int64_t begin, int64_t end, void* scratch) noexcept {
  if (args.in == 0) return start_rows(args, begin, end);  // gated: never
  uint16_t* tiles = static_cast<uint16_t*>(scratch);
  Panel panel;
  panel.tiles = tiles;
  panel.sums = reinterpret_cast<float*>(static_cast<uint8_t*>(scratch) + kPanelBytes);
  panel.block = panel.sums + kEdge * kPanel;
  panel.end = end;
  // Like parts, so that no slice is so short that moving its sums would cost more than its products.
  const int64_t most_depth = even_part(args.x_depth, kDepth);
  const int64_t room = smaller(kPanel, kPanelTiles / most_depth * 16 / kEdge * kEdge);
  const int64_t weights = args.gated ? 2 : 1;
  const int64_t most_width = (even_part((end - begin) * weights, room) + kEdge - 1) / kEdge * kEdge;
  _tile_loadconfig(&kTiles);
  for (panel.n = begin; panel.n < end; panel.n += most_width / weights) {
    panel.width = smaller(args.gated ? (end - panel.n + 15) / 16 * kEdge : end - panel.n, most_width);
    const int64_t strips = (panel.width + kEdge - 1) / kEdge * 2;
    for (panel.k = 0; panel.k < args.x_depth; panel.k += most_depth) {
      panel.depth = smaller(args.x_depth - panel.k, most_depth);
      // Codes a few tiles of all strips at a time, so that word rows are read along; rows of dense weights
      // from end to end.
      const int64_t step = args.kind == WeightKind::kBF16 ? panel.depth : kCodesAtOnce;
      for (int64_t tile = 0; tile < panel.depth; tile += step) {
        pack_tiles(args, panel, strips, tile, smaller(step, panel.depth - tile), tiles);
      }
      const int64_t most_slice = even_part(panel.depth, kSlice);
      Ungated left = {};
      for (int64_t row = 0; row < args.rows; row += kEdge) {
        for (int64_t slice = 0; slice < panel.depth; slice += most_slice) {
          const int64_t slice_depth = smaller(panel.depth - slice, most_slice);
          for (int64_t column = 0; column < panel.width; column += kEdge) {
            multiply_block(args, panel, row, column, slice, slice_depth, left);
          }
        }
      }
      while (left.next < left.rows) gate_next(args, left);
    }
  }
  _tile_release();
}

void prepare_bf16_tiles(const MatmulArgs& args, const uint8_t* order, int64_t begin, int64_t end) noexcept {
  alignas(64) uint16_t positions[32];
  for (int i = 0; i < 32; ++i) positions[i] = order[i];
  const VecI permutation = load_i32(positions);
  uint16_t* tiles = const_cast<uint16_t*>(args.x_tiles);
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
        const Vec low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(exists), from);
        const Vec high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(exists >> 16), from + 16);
        _mm512_store_si512(to, _mm512_permutexvar_epi16(permutation, bf16_halves(low, high)));
      }
    }
  }
}

}  // namespace lowbit
