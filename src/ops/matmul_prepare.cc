#include "ops/matmul_prepare.h"

#include "base/fail.h"
#include "format/int8.h"
#include "ops/cpu/prepare_kernels.h"
#include "ops/kernel_table.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

namespace lowbit {
namespace {

constexpr std::array<uint8_t, 32> pair_order(int bits) {
  std::array<uint8_t, 32> order{};
  if (bits == 3) {
    int at = 0;
    for (int word = 0; word < 3; ++word) {
      for (int i = 0; i < 5; ++i) {
        order[at++] = static_cast<uint8_t>(11 * word + i);
        order[at++] = static_cast<uint8_t>(11 * word + 5 + i);
      }
    }
    order[30] = 10;
    order[31] = 21;
    return order;
  }
  // Repeated up to 32 columns, so that all widths fill a tile of AMX alike.
  const int unit = bits == 0 ? 2 : 32 / bits;
  for (int i = 0; i < 32; ++i) {
    const int in_unit = i % unit;
    order[i] = static_cast<uint8_t>(i - in_unit + in_unit / 2 + (in_unit % 2) * (unit / 2));
  }
  return order;
}

constexpr std::array<uint8_t, 32> kOrderDense = pair_order(0), kOrder2 = pair_order(2),
                                  kOrder3 = pair_order(3), kOrder4 = pair_order(4), kOrder8 = pair_order(8);

int64_t blocks_of(int64_t in, int64_t group_size, int64_t block) {
  const int64_t whole = in / group_size, rest = in % group_size;
  return whole * ((group_size + block - 1) / block) + (rest + block - 1) / block;
}

void pad_row(const float* x, int64_t in, int64_t padded, float* to) {
  std::copy(x, x + in, to);
  std::fill(to + in, to + padded, 0.0f);
}

// Even columns, then odd ones.
void separate_row(const float* x, int64_t in, int64_t padded, float* to) {
  float* const odd = to + padded / 2;
  std::fill(to + in / 2, odd, 0.0f);
  std::fill(odd + in / 2, to + padded, 0.0f);
  for (int64_t i = 0; i < in / 2; ++i) {
    to[i] = x[2 * i];
    odd[i] = x[2 * i + 1];
  }
  if (in % 2) to[in / 2] = x[in - 1];
}

// The members of args point at memory that place_x has taken.
void encode_row(const MatmulArgs& args, const float* x, int64_t row) {
  int16_t* const codes = const_cast<int16_t*>(args.x_codes) + row * args.x_stride;
  float* scales = const_cast<float*>(args.x_scales) + row * args.x_blocks;
  int32_t* sums = const_cast<int32_t*>(args.x_sums) + row * args.x_blocks;
  const auto encode = isa_available(Isa::kAvx2) ? encode_int16_avx2 : encode_int16_ref;
  Int16Block block = {};
  block.order = position_order(args.bits);
  block.unit = unit_columns(args.bits);
  for (int64_t group = 0; group < args.in; group += args.group_size) {
    const int64_t group_end = std::min(args.in, group + args.group_size);
    for (int64_t column = group; column < group_end; column += kXBlock) {
      block.x = x + column;
      block.count = std::min(kXBlock, group_end - column);
      block.padded = (block.count + block.unit - 1) / block.unit * block.unit;
      block.codes = codes + column;
      block.scale = scales++;
      block.sum = sums++;
      encode(block);
    }
  }
}

int64_t mask_words(int64_t in) { return (in + 63) / 64; }

void encode_int8_grid_row(const MatmulArgs& args, int64_t row) {
  const Int8GridRow part = {.x = args.x + row * args.in,
                            .count = args.in,
                            .padded = mask_words(args.in) * 64,
                            .input_scale = args.input_scale,
                            .zero_point = args.input_zero_point,
                            .codes = const_cast<int8_t*>(args.x_bytes) + row * args.x_stride,
                            .scale = const_cast<float*>(args.x_scales) + row,
                            .sum = const_cast<int32_t*>(args.x_sums) + row};
  uint64_t* outliers = const_cast<uint64_t*>(args.x_outliers) + row * mask_words(args.in);
  std::fill(outliers, outliers + mask_words(args.in), uint64_t{0});
  (isa_available(Isa::kAvx2) ? encode_int8_grid_avx2 : encode_int8_grid_ref)(part);
}

void encode_int8_row(const MatmulArgs& args, int64_t row) {
  if (args.input_scale > 0) return encode_int8_grid_row(args, row);
  Int8Row part = {};
  part.x = args.x + row * args.in;
  part.count = args.in;
  part.padded = mask_words(args.in) * 64;
  part.limit = args.outlier_threshold > 0 ? args.outlier_threshold : std::numeric_limits<float>::infinity();
  part.codes = const_cast<int8_t*>(args.x_bytes) + row * args.x_stride;
  part.outliers = const_cast<uint64_t*>(args.x_outliers) + row * mask_words(args.in);
  part.scale = const_cast<float*>(args.x_scales) + row;
  part.sum = const_cast<int32_t*>(args.x_sums) + row;
  (isa_available(Isa::kAvx512) ? encode_int8_avx512
   : isa_available(Isa::kAvx2) ? encode_int8_avx2
                               : encode_int8_ref)(part);
}

template <class Body>
void for_rows(const OpContext& context, const MatmulArgs& args, int64_t count, const Body& body) {
  if (is_prepared_by_one(args)) {
    body(0, count, 0);
  } else {
    context.threads->parallel_for(count, std::max<int64_t>(1, count / (4 * context.threads->size())), body);
  }
}

}  // namespace

void encode_int16_ref(const Int16Block& block) noexcept {
  // Magnitudes of floats order like their bits; infinities and NaN come above all others.
  int32_t largest_bits = 0;
  for (int64_t i = 0; i < block.count; ++i) {
    largest_bits = std::max(largest_bits, std::bit_cast<int32_t>(block.x[i]) & 0x7fffffff);
  }
  const bool is_finite = largest_bits < 0x7f800000;
  const float largest = std::bit_cast<float>(largest_bits);
  if (!is_finite || largest < kLeastMagnitude) {
    std::fill(block.codes, block.codes + block.padded, int16_t{0});
    *block.scale = is_finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    *block.sum = 0;
    return;
  }
  const float inverse = kLargestCode / largest;
  int32_t rounded[kXBlock] = {}, total = 0;
  for (int64_t i = 0; i < block.count; ++i) {
    // Adding 1.5 * 2^23 rounds to nearest even and leaves the integer in the low bits.
    rounded[i] = std::bit_cast<int32_t>(block.x[i] * inverse + 12582912.0f) - 0x4b400000;
    total += rounded[i];
  }
  for (int64_t i = 0; i < block.padded; i += block.unit) {
    for (int64_t j = 0; j < block.unit; ++j) {
      block.codes[i + j] = static_cast<int16_t>(rounded[i + block.order[j]]);
    }
  }
  *block.scale = largest / kLargestCode;
  *block.sum = total;
}

void encode_int8_ref(const Int8Row& row) noexcept {
  float largest = 0;
  bool is_finite = true;
  for (int64_t i = 0; i < row.count; ++i) {
    const float size = std::abs(row.x[i]);
    if (size < row.limit) largest = std::max(largest, size);
    is_finite = is_finite && std::isfinite(size);
  }
  if (!is_finite || largest < kLeastMagnitude) largest = 0;
  std::fill(row.codes, row.codes + row.padded, int8_t{0});
  std::fill(row.outliers, row.outliers + row.padded / 64, uint64_t{0});
  *row.scale = is_finite ? int8_scale(largest) : std::numeric_limits<float>::quiet_NaN();
  *row.sum = 0;
  if (!is_finite) return;
  const float factor = int8_factor(largest);
  for (int64_t i = 0; i < row.count; ++i) {
    if (std::abs(row.x[i]) < row.limit) {
      encode_int8(std::span(row.x + i, 1), factor, row.codes + i);
      *row.sum += row.codes[i];
    } else {
      row.outliers[i / 64] |= uint64_t{1} << i % 64;
    }
  }
}

void encode_int8_grid_ref(const Int8GridRow& row) noexcept {
  std::fill(row.codes, row.codes + row.padded, int8_t{0});
  const bool is_finite = std::all_of(row.x, row.x + row.count, [](float x) { return std::isfinite(x); });
  *row.scale = is_finite ? row.input_scale : std::numeric_limits<float>::quiet_NaN();
  *row.sum = 0;
  if (!is_finite) return;
  for (int64_t i = 0; i < row.count; ++i) {
    row.codes[i] = static_cast<int8_t>(encode_input(row.x[i], {row.input_scale, row.zero_point}));
    *row.sum += row.codes[i];
  }
}

const uint8_t* position_order(int bits) {
  switch (bits) {
    case 2:
      return kOrder2.data();
    case 3:
      return kOrder3.data();
    case 4:
      return kOrder4.data();
    case 8:
      return kOrder8.data();
    default:
      return kOrderDense.data();
  }
}

Scratch place_x(const OpContext& context, XForm form, MatmulArgs& args) {
  const int64_t rows = args.rows, in = args.in, padded = (in + 63) / 64 * 64;
  switch (form) {
    case XForm::kPlain: {
      args.x_stride = in;
      return context.workspace->take(0);
    }
    case XForm::kPadded:
    case XForm::kEvenOdd: {
      Scratch scratch = context.workspace->take(static_cast<size_t>(rows * padded) * sizeof(float));
      args.x = scratch.as<float>();
      args.x_stride = padded;
      return scratch;
    }
    case XForm::kInt16: {
      args.x_blocks = blocks_of(in, args.group_size, kXBlock);
      args.x_stride = padded;
      const size_t code_bytes = static_cast<size_t>(rows * padded) * sizeof(int16_t);
      const size_t scale_bytes = static_cast<size_t>(rows * args.x_blocks) * sizeof(float);
      Scratch scratch = context.workspace->take(code_bytes + 2 * scale_bytes);
      args.x_codes = scratch.as<int16_t>();
      args.x_scales = reinterpret_cast<float*>(scratch.as<char>() + code_bytes);
      args.x_sums = reinterpret_cast<int32_t*>(scratch.as<char>() + code_bytes + scale_bytes);
      return scratch;
    }
    case XForm::kBf16Tiles: {
      args.x_depth = (in + 31) / 32;
      Scratch scratch = context.workspace->take(static_cast<size_t>((rows + 15) / 16 * args.x_depth) * 1024);
      args.x_tiles = scratch.as<uint16_t>();
      args.x_stride = in;
      return scratch;
    }
    case XForm::kInt8: {
      // Rows that are 512 bytes apart or a multiple would all fall into the same few lines of a cache.
      args.x_stride = padded + (padded % 512 == 0 ? 64 : 0);
      args.x_blocks = 1;
      const size_t mask_bytes = static_cast<size_t>(rows * mask_words(in)) * sizeof(uint64_t);
      const size_t code_bytes = static_cast<size_t>((rows + 15) / 16 * 16 * args.x_stride);
      const size_t scale_bytes = static_cast<size_t>(rows) * sizeof(float);
      Scratch scratch = context.workspace->take(code_bytes + mask_bytes + 2 * scale_bytes);
      char* at = scratch.as<char>();
      args.x_bytes = reinterpret_cast<int8_t*>(at);
      args.x_outliers = reinterpret_cast<uint64_t*>(at += code_bytes);
      args.x_scales = reinterpret_cast<float*>(at += mask_bytes);
      args.x_sums = reinterpret_cast<int32_t*>(at + scale_bytes);
      return scratch;
    }
  }
  fail(ErrorCode::kInternal, "matmul: unknown form of x");
}

void fill_x(const OpContext& context, XForm form, const MatmulArgs& args, const float* x,
            void (*prepare_tiles)(const MatmulArgs&, const uint8_t*, int64_t, int64_t) noexcept) {
  const int64_t rows = args.rows, in = args.in;
  switch (form) {
    case XForm::kPlain:
      return;
    case XForm::kPadded:
    case XForm::kEvenOdd:
      for_rows(context, args, rows, [&](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; ++row) {
          float* to = const_cast<float*>(args.x) + row * args.x_stride;
          (form == XForm::kPadded ? pad_row : separate_row)(x + row * in, in, args.x_stride, to);
        }
      });
      return;
    case XForm::kInt16:
      for_rows(context, args, rows, [&](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; ++row) encode_row(args, x + row * in, row);
      });
      return;
    case XForm::kBf16Tiles: {
      const uint8_t* order = position_order(args.bits);
      for_rows(context, args, (rows + 15) / 16,
               [&](int64_t begin, int64_t end, int) { prepare_tiles(args, order, begin, end); });
      return;
    }
    case XForm::kInt8: {
      for_rows(context, args, rows, [&](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; ++row) encode_int8_row(args, row);
      });
      int8_t* codes = const_cast<int8_t*>(args.x_bytes);
      std::fill(codes + rows * args.x_stride, codes + (rows + 15) / 16 * 16 * args.x_stride, int8_t{0});
      return;
    }
  }
}

}  // namespace lowbit
