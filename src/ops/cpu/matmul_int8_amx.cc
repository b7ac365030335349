// int8 weights times int8 inputs with AMX tiles. A tile of W, 16 word rows of 16 output columns, is what AMX
// wants as its second operand, as it lies in the codes; 16 rows of x, 64 columns of each, are the first. A
// panel of W is copied tile by tile, so that all rows of x read it from end to end. Sums are exact: between
// panels they lie in y, as integers. Those of the last panel go to a room, and become y while the tiles of
// the next block are multiplied: the vector units have nothing else to do then. Gated, a panel has the
// columns of both weights, and a block 16 of each.
#include "ops/cpu/matmul_kernels.h"

#include <immintrin.h>
#include <string.h>

namespace lowbit {
namespace {
#include "ops/cpu/vector_avx512.inc"
}  // namespace

namespace {
#include "ops/cpu/amx.inc"
#include "ops/cpu/exp.inc"
#include "ops/cpu/gated_row.inc"
#include "ops/cpu/int8_finish.inc"
#include "ops/cpu/parts.inc"

constexpr int64_t kTileBytes = 1024;
constexpr int64_t kEdge = 32;     // rows and output columns of a block of 2 x 2 tiles
constexpr int64_t kDepth = 16;    // tiles of a panel: 1,024 columns of x, of which 32 rows stay in L1
constexpr int64_t kWidth = 1024;  // output columns of a panel
template <bool kGated>
constexpr int64_t kBlockColumns = kGated ? 16 : kEdge;  // of y
constexpr size_t kPanelBytes = kWidth / 16 * kDepth * kTileBytes;
constexpr size_t kRoomBytes = kEdge * kEdge * sizeof(int32_t);  // sums of a block

// What a thread keeps beside its panel.
struct Rooms {
  alignas(64) char sums[2][kRoomBytes];  // of a block, and of the one before
  Finish finishes[kEdge];                // of the rows at hand
  Outlier outliers[kEdge][kOutliersAtOnce];
};
static_assert(kPanelBytes + sizeof(Rooms) <= kMatmulScratchBytes);

// Columns [n, n + width) of word rows [word, word + 16 * depth): [strip of 16 columns][16 * depth][16]; zeros
// where the matrix has ended.
void pack(const MatmulArgs& args, int64_t n, int64_t width, int64_t word, int64_t depth, uint8_t* to) {
  const int64_t words = smaller(16 * depth, (args.in + 3) / 4 - word);
  // One word row after the other, as they lie in memory.
  for (int64_t w = 0; w < 16 * depth; ++w, to += 64) {
    const uint8_t* from = static_cast<const uint8_t*>(args.codes) + ((word + w) * args.out + n) * 4;
    uint8_t* strip = to;
    for (int64_t column = 0; column < (width + kEdge - 1) / kEdge * kEdge; column += 16) {
      const int64_t lanes = w < words ? width - column : 0;
      const __mmask16 mask = static_cast<__mmask16>(lanes >= 16 ? 0xffff : lanes > 0 ? (1 << lanes) - 1 : 0);
      _mm512_store_si512(strip, _mm512_maskz_loadu_epi32(mask, from + column * 4));
      strip += depth * kTileBytes;
    }
  }
}

// Where the sums of a block stand, 16 columns of each of two strips: `stride` bytes from row to row.
struct Sums {
  char *first, *second;
  int64_t stride;
};
Sums in_room(char* room) { return {room, room + 64, kEdge * 4}; }

// kTwo: 32 rows of x, else 16. w: two strips of a panel. from: null first for zeros. between(): what else
// there is to do, after each tile.
template <bool kTwo, class Between>
inline void multiply(const int8_t* x, int64_t x_stride, const uint8_t* const (&w)[2], int64_t depth,
                     const Sums& from, const Sums& to, const Between& between) {
  memory_barrier();
  if (from.first) {
    _tile_loadd(0, from.first, from.stride);
    _tile_loadd(1, from.second, from.stride);
    if constexpr (kTwo) {
      _tile_loadd(2, from.first + 16 * from.stride, from.stride);
      _tile_loadd(3, from.second + 16 * from.stride, from.stride);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t tile = 0; tile < depth; ++tile) {
    _tile_stream_loadd(6, w[0] + tile * kTileBytes, 64);
    _tile_stream_loadd(7, w[1] + tile * kTileBytes, 64);
    _tile_loadd(4, x + tile * 64, x_stride);
    if constexpr (kTwo) _tile_loadd(5, x + 16 * x_stride + tile * 64, x_stride);
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 7);
    if constexpr (kTwo) {
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    }
    between();
  }
  memory_barrier();
  _tile_stored(0, to.first, to.stride);
  _tile_stored(1, to.second, to.stride);
  if constexpr (kTwo) {
    _tile_stored(2, to.first + 16 * to.stride, to.stride);
    _tile_stored(3, to.second + 16 * to.stride, to.stride);
  }
  memory_barrier();
}

// The rows of a block whose sums are complete, as far as they are not yet y.
struct Unfinished {
  float* sums;  // room
  int64_t next, rows, n, columns;
};
// What finish_next has no time for: parts of vectors, and outliers.
__attribute__((noinline)) void finish_rest(const MatmulArgs& args, int64_t row, const Finish& finish,
                                           const Unfinished& left, float* sums, float* y) {
  const int64_t end = left.n + left.columns;
  if (!args.gated) return finish_columns(args, row, finish, sums, y, left.n, end);
  finish_columns(args, row, finish, sums, sums, left.n, end);
  finish_columns(*args.gated, row, finish, sums + 16, sums + 16, left.n, end);
  gate_row(sums, sums + 16, left.columns, y);
}
template <bool kGated>
inline void finish_next(const MatmulArgs& args, int64_t first_row, const Finish* finishes, Unfinished& left) {
  float* const sums = left.sums + left.next * kEdge;
  const Finish& finish = finishes[left.next];
  const int64_t row = first_row + left.next++;
  float* const y = args.y + row * args.out + left.n;
  if (!is_plain(finish) || left.columns < kBlockColumns<kGated>)
    return finish_rest(args, row, finish, left, sums, y);
  const Vec first = product_of<true>(args, finish, sums, left.n, kLanes);
  if constexpr (kGated) {
    store(y, mul(silu_of(first), product_of<true>(*args.gated, finish, sums + 16, left.n, kLanes)));
  } else {
    store(y, first);
    store(y + 16, product_of<true>(args, finish, sums + 16, left.n + 16, kLanes));
  }
}

// What a thread works on: tiles [tile, tile + depth) of output columns [n, n + width). second: gated, where
// the other weight's strips stand.
struct Panel {
  const uint8_t *strips, *second;
  int64_t tile, depth, n, width;
  bool is_last;
};

// The panel's product with up to 32 rows of x.
template <bool kTwo, bool kGated>
void multiply_rows(const MatmulArgs& args, const Panel& panel, int64_t row, Rooms& rooms) {
  const int64_t rows = smaller(args.rows - row, kEdge), edge = kBlockColumns<kGated>;
  const int64_t strip = panel.depth * kTileBytes;
  const int8_t* const x = args.x_bytes + row * args.x_stride + 64 * panel.tile;
  for (int64_t r = 0; panel.is_last && r < rows; ++r)
    rooms.finishes[r] = begin_finish(args, row + r, rooms.outliers[r]);
  char *room = rooms.sums[0], *other = rooms.sums[1];
  Unfinished left = {};
  const int64_t share = (kEdge + panel.depth - 1) / panel.depth;
  for (int64_t column = 0; column < panel.width; column += edge) {
    const int64_t columns = smaller(panel.width - column, edge);
    char* const y = reinterpret_cast<char*>(args.y + row * args.out + panel.n + column);
    const auto bytes = static_cast<size_t>(columns * 4);
    const bool is_whole = columns == kEdge && rows % 16 == 0;
    const Sums in_y = {y, y + 64, args.out * 4};
    Sums from = {}, to = in_room(room);
    if (panel.tile > 0 && is_whole) from = in_y;
    if (panel.tile > 0 && !is_whole) {
      from = in_room(room);
      for (int64_t r = 0; r < rows; ++r) memcpy(room + r * kEdge * 4, y + r * args.out * 4, bytes);
    }
    if (!panel.is_last && is_whole) to = in_y;
    const uint8_t* const first = panel.strips + column / 16 * strip;
    multiply<kTwo>(x, args.x_stride, {first, kGated ? panel.second + column / 16 * strip : first + strip},
                   panel.depth, from, to, [&] {
                     for (int64_t i = 0; i < share && left.next < left.rows; ++i)
                       finish_next<kGated>(args, row, rooms.finishes, left);
                   });
    if (panel.is_last) {
      left = {reinterpret_cast<float*>(room), 0, rows, panel.n + column, columns};
      char* const done = room;
      room = other;
      other = done;
    } else if (!is_whole) {
      for (int64_t r = 0; r < rows; ++r) memcpy(y + r * args.out * 4, room + r * kEdge * 4, bytes);
    }
  }
  while (left.next < left.rows) finish_next<kGated>(args, row, rooms.finishes, left);
}

}  // namespace

void matmul_int8_amx(const MatmulArgs& args, int64_t begin, int64_t end, void* scratch) noexcept {
  uint8_t* const strips = static_cast<uint8_t*>(scratch);
  Rooms& rooms = *reinterpret_cast<Rooms*>(strips + kPanelBytes);
  const int64_t tiles = (args.in + 63) / 64;
  if (tiles == 0) return finish_without_columns(args, begin, end);  // gated: never
  _tile_loadconfig(&kTiles);
  // Gated, a panel has all tiles: kMostGatedColumns.
  const int64_t most_depth = args.gated ? tiles : kDepth;
  const int64_t most_width =
      args.gated ? smaller(kWidth / 2, kWidth / 2 * kDepth / tiles / kEdge * kEdge) : kWidth;
  uint8_t* const second = strips + most_width / 16 * tiles * kTileBytes;
  Panel panel = {.strips = strips, .second = second};
  for (panel.n = begin; panel.n < end; panel.n += most_width) {
    panel.width = smaller(end - panel.n, most_width);
    for (panel.tile = 0; panel.tile < tiles; panel.tile += most_depth) {
      panel.depth = smaller(tiles - panel.tile, most_depth);
      panel.is_last = panel.tile + panel.depth == tiles;
      pack(args, panel.n, panel.width, 16 * panel.tile, panel.depth, strips);
      if (args.gated) pack(*args.gated, panel.n, panel.width, 0, panel.depth, second);
      for (int64_t row = 0; row < args.rows; row += kEdge) {
        const bool are_two = args.rows - row > 16;
        const auto multiply = args.gated ? (are_two ? multiply_rows<true, true> : multiply_rows<false, true>)
                              : are_two  ? multiply_rows<true, false>
                                         : multiply_rows<false, false>;
        multiply(args, panel, row, rooms);
      }
    }
  }
  _tile_release();
}

}  // namespace lowbit
