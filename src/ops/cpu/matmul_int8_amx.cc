// int8 weights times int8 inputs with AMX tiles. A tile of W, 16 word rows of 16 output columns, is what AMX
// wants as its second operand, as it lies in the codes; 16 rows of x, 64 columns of each, are the first. A
// panel of W is copied tile by tile, so that all rows of x read it from end to end. Sums are exact: between
// panels they lie in y, as integers; with the last panel they become the product while they are in L2. Gated,
// a panel has the columns of both weights, and the sums of 32 rows become y in a room of their own.
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
constexpr int64_t kEdge = 32;       // rows and output columns of a block of 2 x 2 tiles
constexpr int64_t kDepth = 16;      // tiles of a panel: 1,024 columns of x, of which 32 rows stay in L1
constexpr int64_t kWidth = 1024;    // output columns of a panel
constexpr int64_t kFinished = 128;  // output columns whose sums become the product while they are in L1
constexpr size_t kPanelBytes = kWidth / 16 * kDepth * kTileBytes;
// Gated: sums of kFinished columns of each weight; rows a line apart from where they would share cache sets.
constexpr int64_t kRoomColumns = 2 * kFinished + 16;
constexpr size_t kRoomBytes = kEdge * kRoomColumns * sizeof(int32_t);
static_assert(kPanelBytes + kRoomBytes <= kMatmulScratchBytes);

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

// Two strips of a panel, and where their sums stand: `stride` bytes from row to row.
struct Strips {
  const uint8_t *first, *second;
  char *sums, *second_sums;
  int64_t stride;
};
// kTwo: 32 rows of x, else 16. is_first: as if the sums were 0.
template <bool kTwo>
void multiply(const int8_t* x, int64_t x_stride, const Strips& strips, int64_t depth, bool is_first) {
  const auto [first, second, sums, second_sums, stride] = strips;
  if (is_first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, stride);
    _tile_loadd(1, second_sums, stride);
    if constexpr (kTwo) {
      _tile_loadd(2, sums + 16 * stride, stride);
      _tile_loadd(3, second_sums + 16 * stride, stride);
    }
  }
  for (int64_t tile = 0; tile < depth; ++tile) {
    _tile_stream_loadd(6, first + tile * kTileBytes, 64);
    _tile_stream_loadd(7, second + tile * kTileBytes, 64);
    _tile_loadd(4, x + tile * 64, x_stride);
    if constexpr (kTwo) _tile_loadd(5, x + 16 * x_stride + tile * 64, x_stride);
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 7);
    if constexpr (kTwo) {
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    }
  }
  _tile_stored(0, sums, stride);
  _tile_stored(1, second_sums, stride);
  if constexpr (kTwo) {
    _tile_stored(2, sums + 16 * stride, stride);
    _tile_stored(3, second_sums + 16 * stride, stride);
  }
}

void multiply(const int8_t* x, int64_t x_stride, int64_t rows, const Strips& strips, int64_t depth,
              bool is_first) {
  memory_barrier();
  if (rows > 16) {
    multiply<true>(x, x_stride, strips, depth, is_first);
  } else {
    multiply<false>(x, x_stride, strips, depth, is_first);
  }
  memory_barrier();
}

// A block of y [rows, columns) += x * panel, or = where it is the first; `room` [kEdge, kEdge] stands in
// where y has only a part of it.
void multiply_block(const int8_t* x, int64_t x_stride, const uint8_t* w, int64_t depth, float* y,
                    int64_t y_stride, int64_t rows, int64_t columns, bool is_first, char* room) {
  const bool is_whole = columns >= kEdge && rows % 16 == 0;
  const int64_t room_stride = kEdge * 4;
  const auto bytes = static_cast<size_t>(smaller(columns, kEdge) * 4);
  char* const sums = is_whole ? reinterpret_cast<char*>(y) : room;
  const int64_t stride = is_whole ? y_stride * 4 : room_stride;
  if (!is_whole && !is_first) {
    memset(room, 0, static_cast<size_t>(kEdge * room_stride));
    for (int64_t r = 0; r < rows; ++r) memcpy(room + r * room_stride, y + r * y_stride, bytes);
  }
  multiply(x, x_stride, rows, {w, w + depth * kTileBytes, sums, sums + 64, stride}, depth, is_first);
  for (int64_t r = 0; !is_whole && r < rows; ++r) memcpy(y + r * y_stride, room + r * room_stride, bytes);
}

void multiply_gated(const MatmulArgs& args, int64_t begin, int64_t end, uint8_t* panel) {
  const int64_t depth = (args.in + 63) / 64, strip = depth * kTileBytes;
  const int64_t most = smaller(kWidth / 2, kWidth / 2 * kDepth / depth / kEdge * kEdge);
  int32_t* const room = reinterpret_cast<int32_t*>(panel + kPanelBytes);
  for (int64_t n = begin; n < end; n += most) {
    const int64_t width = smaller(end - n, most);
    uint8_t* const second = panel + most / 16 * strip;
    pack(args, n, width, 0, depth, panel);
    pack(*args.gated, n, width, 0, depth, second);
    for (int64_t row = 0; row < args.rows; row += kEdge) {
      const int8_t* x = args.x_bytes + row * args.x_stride;
      const int64_t rows = smaller(args.rows - row, kEdge);
      for (int64_t first = 0; first < width; first += kFinished) {
        const int64_t last = smaller(width, first + kFinished);
        for (int64_t column = first; column < last; column += 16) {
          int32_t* const sums = room + column - first;
          multiply(x, args.x_stride, rows,
                   {panel + column / 16 * strip, second + column / 16 * strip, reinterpret_cast<char*>(sums),
                    reinterpret_cast<char*>(sums + kFinished), kRoomColumns * 4},
                   depth, true);
        }
        for (int64_t r = 0; r < rows; ++r) {
          float* const sums = reinterpret_cast<float*>(room + r * kRoomColumns);
          finish_row(args, row + r, sums, n + first, n + last);
          finish_row(*args.gated, row + r, sums + kFinished, n + first, n + last);
          gate_row(sums, sums + kFinished, last - first, args.y + (row + r) * args.out + n + first);
        }
      }
    }
  }
}

}  // namespace

void matmul_int8_amx(const MatmulArgs& args, int64_t begin, int64_t end, void* scratch) noexcept {
  uint8_t* const panel = static_cast<uint8_t*>(scratch);
  char* const room = reinterpret_cast<char*>(panel + kPanelBytes);
  const int64_t tiles = (args.in + 63) / 64;
  if (tiles == 0) return finish_without_columns(args, begin, end);  // gated: never
  _tile_loadconfig(&kTiles);
  if (args.gated) {
    multiply_gated(args, begin, end, panel);
    return _tile_release();
  }
  for (int64_t n = begin; n < end; n += kWidth) {
    const int64_t width = smaller(end - n, kWidth);
    for (int64_t tile = 0; tile < tiles; tile += kDepth) {
      const int64_t depth = smaller(tiles - tile, kDepth);
      pack(args, n, width, 16 * tile, depth, panel);
      for (int64_t row = 0; row < args.rows; row += kEdge) {
        const int8_t* x = args.x_bytes + row * args.x_stride + 64 * tile;
        const int64_t rows = smaller(args.rows - row, kEdge);
        for (int64_t column = 0; column < width; column += kEdge) {
          multiply_block(x, args.x_stride, panel + column / 16 * depth * kTileBytes, depth,
                         args.y + row * args.out + n + column, args.out, rows, width - column, tile == 0,
                         room);
          const int64_t done = column + kEdge;
          if (tile + depth == tiles && (done % kFinished == 0 || done >= width)) {
            const int64_t from = n + (done - 1) / kFinished * kFinished;
            for (int64_t r = 0; r < rows; ++r) finish_row(args, row + r, from, n + smaller(done, width));
          }
        }
      }
    }
  }
  _tile_release();
}

}  // namespace lowbit
