// What a matmul kernel gets: pointers and sizes. Files of every instruction set include this, so it holds no
// code.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lowbit {

enum class WeightKind : uint8_t { kBF16, kF16, kF32, kAffine, kCodebook, kInt8 };

// How a kernel wants x (ops/matmul_prepare.h makes it; columns are already in the order of the weight's
// positions).
enum class XForm : uint8_t {
  kPlain,      // F32 [rows, in]
  kPadded,     // F32 [rows, x_stride], zeros behind column `in`; for kernels that work on whole vectors
  kEvenOdd,    // the same, per row first the even columns, then (from x_stride / 2 on) the odd ones
  kInt16,      // x_codes, x_scales, x_sums
  kBf16Tiles,  // x_tiles
  kInt8,       // x_bytes, x_scales, x_sums, x_outliers; x as kPlain beside them
};

// Columns of x that share a scale in kInt16; a block never crosses a group. The products of so many with
// codes of 8 bits still have a sum of 32 bits.
constexpr int64_t kXBlock = 128;

// The part that a kernel computes is split over the output columns [0, out). Nothing it writes for one
// element depends on the split or on the other rows. Pointers into weights have any alignment.
struct MatmulArgs {
  int64_t rows = 0, in = 0, out = 0;

  WeightKind kind = WeightKind::kF32;
  const void* weight = nullptr;  // dense: [out, in]
  int bits = 0;                  // codes: see format/weight.h; a symmetric weight has no zero_points
  int64_t group_size = 0;        // at most `in`
  const void* codes = nullptr;
  const void* scales = nullptr;  // F16; F32 where has_wide_scales
  const void* zero_points = nullptr;
  const float* codebook = nullptr;  // of 2^bits values, 16 at least; of 5 bits and more but fp8: log_codebook
  int fp8_mantissa = 0;  // 3 or 2: the codebook is that of fp8 E4M3 or E5M2, and no code is NaN or infinite
  bool has_wide_scales = false;  // kCodebook, kInt8, and kAffine of format int8

  const float* bias = nullptr;  // [out] or null
  float* y = nullptr;           // [rows, out]

  const float* x = nullptr;  // kPlain, kPadded, kEvenOdd
  int64_t x_stride = 0;      // elements from row to row, of x or x_codes

  // kInt16: x = x_scales * x_codes. The blocks of a group follow each other, the last of a group may be
  // short. Within the columns of `bits` words (32 columns for 3 bits, else 32 / bits) the codes stand in the
  // order of kernel lanes (position_order in ops/matmul_prepare.h); zeros behind column `in`.
  const int16_t* x_codes = nullptr;  // [rows, x_stride]
  const float* x_scales = nullptr;   // [rows, x_blocks]; NaN when the block has a value that is not finite
  const int32_t* x_sums = nullptr;   // [rows, x_blocks]: sum of the block's codes
  int64_t x_blocks = 0;

  // kBf16Tiles: BF16 [ceil(rows / 16), x_depth, 16 rows, 32 columns], columns in the order of kInt16 (dense:
  // their own); zeros in padding.
  const uint16_t* x_tiles = nullptr;
  int64_t x_depth = 0;  // ceil(in / 32)

  // kInt8: x = x_scales * x_bytes, but for outliers, |x| >= outlier_threshold > 0: their code is 0, and bit
  // column % 64 of word column / 64 is set. x_bytes has zeros behind column `in`, and rows of zeros up to a
  // multiple of 16. x_scales and x_sums as for kInt16, one of a row: x_blocks is 1.
  float outlier_threshold = 0;
  const int8_t* x_bytes = nullptr;       // [ceil(rows / 16) * 16, x_stride], x_stride a multiple of 64
  const uint64_t* x_outliers = nullptr;  // [rows, ceil(in / 64)]
  // > 0: x_scales is this for all rows, and x = input_scale * (x_bytes - input_zero_point); no outliers.
  float input_scale = 0;
  int input_zero_point = 0;
  const int32_t* input_offsets = nullptr;  // [out] or null: input_zero_point * sum of the row's codes

  // AMX prefill, `in` at most kMostGatedColumns: another weight of this size and the same x (its y is not
  // used), and y = silu(x W^T) * (x gated->W^T), which never lie in memory whole.
  const MatmulArgs* gated = nullptr;
};
constexpr int64_t kMostGatedColumns = 1536;

// Columns whose products with codes of 8 bits and x_bytes still have a sum of 32 bits, at -128 and 127; and
// with x_bytes less a zero point, at -128 and 255.
constexpr int64_t kMostInt8Columns = int64_t{1} << 17, kMostStaticColumns = int64_t{1} << 16;

// Scratch bytes that a kernel may use: this, and 4 * in more.
constexpr size_t kMatmulScratchBytes = size_t{1120} << 10;

}  // namespace lowbit
