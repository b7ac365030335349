// What matrix product kernels get: both factors packed into panels. Plain data only.
//   a: panels of kGemmPanelRows rows, each [depth][kGemmPanelRows]
//   b: panels of kGemmPanelColumns (float) or kGemmPanelColumns / 2 (double) columns, each [depth][columns of
//   a panel]
// Both are padded with zero panels to whole tiles, so that a kernel may take two neighbouring panels at once.
#pragma once

#include <cstdint>

namespace lowbit {

constexpr int64_t kGemmPanelRows = 6;
constexpr int64_t kGemmPanelColumns = 16;
constexpr int64_t kGemmTileRows = 96;      // a unit of work is a tile of c
constexpr int64_t kGemmTileColumns = 128;  // 64 for double
constexpr int64_t kGemmDepth = 512;        // most depth of one call; more is cut by the op

struct GemmArgs {
  const void* a;
  const void* b;
  void* c;  // [rows, columns], float or double
  int64_t c_stride;
  int64_t rows, columns, depth;
  int64_t a_depth;          // of the panels of a, of which `depth` are used; b's panels have depth
  bool subtract = false;    // c -= a b, else c += a b
  bool only_upper = false;  // only elements with row <= column are touched
  int64_t tile = 0;         // rows and columns of a unit of gram_amx
};

// A unit is tile begin / column_tiles, begin % column_tiles of c.
void gemm_ref(const GemmArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void gemm_avx2(const GemmArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void gemm_avx512(const GemmArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void gemm_double_ref(const GemmArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void gemm_double_avx2(const GemmArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void gemm_double_avx512(const GemmArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;

// c -= a^T b with factors split into BF16 pairs (cpu/packed_gemm_amx.cc). args.a_depth and args.depth are
// those of the panels in rows; a unit is 32 rows of c.
void packed_gemm_amx(const GemmArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
constexpr int64_t split_panel_bytes(int64_t depth) { return (depth + 31) / 32 * 4096; }
// Packs `columns` <= 32 columns of x [depth, *], `lead` rows of zeros before them.
void pack_split_amx(const float* x, int64_t stride, int64_t depth, int64_t columns, bool as_a, char* to,
                    int64_t lead = 0) noexcept;

// x^T x with BF16 tiles. Panels are 32 columns of x; see cpu/gram_amx.cc for their layout.
constexpr int64_t kGramAmxDepth = 2048;  // most tokens of one call
// A unit is a tile of h of args.tile rows and columns, a multiple of 32: large, since panels come from memory
// for each, but so small that threads have enough of them. Scratch: its square of floats.
constexpr int64_t kGramTileMost = 256, kGramTileLeast = 128;
void gram_amx_bf16(const GemmArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
constexpr int64_t gram_amx_panel_bytes(int64_t tokens) { return (tokens + 31) / 32 * 32 * 32 * 2; }
// Packs panels [begin, end) of x [tokens, width]: a and b each of ceil(width / 32) panels of
// gram_amx_panel_bytes.
void gram_amx_pack(const float* x, int64_t tokens, int64_t width, void* a, void* b, int64_t begin,
                   int64_t end) noexcept;

}  // namespace lowbit
