#include "ops/columns.h"

#include "base/fail.h"
#include "format/bits.h"
#include "ops/cuda/quantize_gpu.h"
#include "ops/dense_rows.h"
#include "ops/parallel.h"
#include "tensor/half.h"

#include <atomic>
#include <cmath>
#include <cstring>

namespace lowbit {

void read_rows(const Tensor& weight, int64_t first_row, int64_t rows, float* values) {
  const int64_t width = weight.size(1);
  read_elements(weight, first_row * width, rows * width, values);
}

bool load_columns(const OpContext& context, const Tensor& weight, int64_t first_row, int64_t rows,
                  const int32_t* columns, int64_t count, float* w) {
  if constexpr (kHasCuda) {
    if (context.gpu) {
      const Scratch flag = context.workspace->take(sizeof(int32_t));
      context.gpu->clear(flag.as<void>(), sizeof(int32_t));
      gpu_load_columns({.weight = weight.bytes(),
                        .dtype = weight.dtype(),
                        .in = weight.size(1),
                        .first_row = first_row,
                        .rows = rows,
                        .columns = columns,
                        .count = count,
                        .w = w,
                        .not_finite = flag.as<int32_t>()},
                       context.gpu->stream());
      int32_t not_finite = 0;
      context.gpu->copy_out(&not_finite, flag.as<void>(), sizeof not_finite);
      return not_finite == 0;
    }
  }
  constexpr int64_t kRowTile = 16;
  const int64_t width = weight.size(1);
  std::atomic<bool> finite = true;
  split_work(context, rows, kRowTile, [&](int64_t begin, int64_t end, int) {
    std::vector<float> tile(static_cast<size_t>((end - begin) * width));
    read_rows(weight, first_row + begin, end - begin, tile.data());
    for (float value : tile) {
      if (!std::isfinite(value)) finite = false;
    }
    for (int64_t i = 0; i < count; ++i) {
      const float* source = tile.data() + columns[i];
      for (int64_t row = begin; row < end; ++row) w[i * rows + row] = source[(row - begin) * width];
    }
  });
  return finite;
}

void decode_columns(const OpContext& context, const CodeColumns& columns, int64_t begin, int64_t end,
                    float* values) {
  if constexpr (kHasCuda) {
    refuse_levels_on_gpu(context, columns.levels);
    if (context.gpu) return gpu_decode_columns(columns, begin, end, values, context.gpu->stream());
  }
  for (int64_t i = begin; i < end; ++i) {
    const int64_t grid = columns.groups[i] * columns.rows;
    const float* scales = columns.scales + grid;
    const uint8_t* codes = columns.codes + i * columns.rows;
    float* to = values + (i - begin) * columns.rows;
    if (columns.levels) {
      for (int64_t row = 0; row < columns.rows; ++row)
        to[row] = columns.levels->by_code[codes[row]] * scales[row];
      continue;
    }
    const float* zero_points = columns.zero_points + grid;
    for (int64_t row = 0; row < columns.rows; ++row)
      to[row] = scales[row] * (static_cast<float>(codes[row]) - zero_points[row]);
  }
}

void refuse_levels_on_gpu(const OpContext& context, const Levels* levels) {
  if (context.gpu && levels)
    fail(ErrorCode::kInternal, "the kernels of a GPU choose codes of format affine alone");
}

void subtract(const OpContext& context, const float* a, const float* b, int64_t count, float* out) {
  if constexpr (kHasCuda) {
    if (context.gpu) return gpu_subtract(a, b, count, out, context.gpu->stream());
  }
  for (int64_t i = 0; i < count; ++i) out[i] = a[i] - b[i];
}

void add_dot(const OpContext& context, const float* a, const float* b, const float* weights, int64_t columns,
             int64_t rows, double* sum) {
  if constexpr (kHasCuda) {
    if (context.gpu) {
      const Scratch parts = context.workspace->take(kGpuDotBlocks * sizeof(double));
      return gpu_add_dot({a, b, weights, columns, rows, parts.as<double>(), sum}, context.gpu->stream());
    }
  }
  for (int64_t i = 0; i < columns; ++i) {
    double part = 0;
    for (int64_t at = i * rows; at < (i + 1) * rows; ++at) part += double{a[at]} * double{b[at]};
    *sum += weights ? double{weights[i]} * part : part;
  }
}

void pack_columns(const OpContext& context, const PackColumnsArgs& args) {
  if constexpr (kHasCuda) {
    if (context.gpu) return gpu_pack_columns(args, context.gpu->stream());
  }
  const uint8_t* codes = args.codes;
  const OpScratch placed(context, static_cast<size_t>(args.column_of ? args.columns * args.rows : 1));
  if (args.column_of) {
    for (int64_t position = 0; position < args.columns; ++position) {
      std::memcpy(placed.as<uint8_t>() + position * args.rows, codes + args.column_of[position] * args.rows,
                  static_cast<size_t>(args.rows));
    }
    codes = placed.as<uint8_t>();
  }
  split_work(context, args.rows, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row)
      pack_bits(codes + row, args.rows, args.columns, args.bits, args.words + row, args.stride);
  });
}

}  // namespace lowbit
