#include "ops/cuda/gram_gpu.h"

#include "ops/cuda/libraries.h"
#include "ops/cuda/quantize_gpu.h"
#include "ops/parallel.h"

#include <algorithm>

namespace lowbit {
namespace {

// Of the rows of split matrices: whole 16 bytes of BF16.
int64_t split_stride(int64_t columns) { return (columns + 7) / 8 * 8; }

// y = c^-1, both upper [n, n] and zero below: block rows from the last to the first, as invert_factor does
// it, but with the inverses of all diagonal blocks known beforehand.
void invert_upper_on_gpu(const OpContext& context, const float* c, int64_t n, float* y) {
  constexpr int64_t kBlock = kGpuInvertBlock;
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  const OpScratch inverses(context, static_cast<size_t>(blocks * kBlock * kBlock) * sizeof(float));
  const OpScratch panel(context, static_cast<size_t>(kBlock * n) * sizeof(float));
  context.gpu->clear(y, static_cast<size_t>(n * n) * sizeof(float));
  gpu_invert_diagonal_blocks(c, n, inverses.as<float>(), y, context.gpu->stream());
  for (int64_t block = blocks - 1; block >= 0; --block) {
    const int64_t k = block * kBlock, width = std::min(kBlock, n - k), right = n - k - width;
    float* const row = y + k * n + k;
    if (right > 0) {  // what the blocks below have left there, times the block's inverse
      context.gpu->clear(panel.as<void>(), static_cast<size_t>(width * right) * sizeof(float));
      context.libraries->add_product({.a = inverses.as<float>() + block * kBlock * kBlock,
                                      .b = row + width,
                                      .c = panel.as<float>(),
                                      .a_stride = kBlock,
                                      .b_stride = n,
                                      .c_stride = right,
                                      .rows = width,
                                      .columns = right,
                                      .depth = width});
      context.gpu->copy_rows_within({row + width, static_cast<size_t>(n) * sizeof(float)}, panel.as<void>(),
                                    static_cast<size_t>(right) * sizeof(float), static_cast<size_t>(width));
    }
    if (k > 0) {
      context.libraries->add_product({.a = c + k,
                                      .b = row,
                                      .c = y + k,
                                      .a_stride = n,
                                      .b_stride = n,
                                      .c_stride = n,
                                      .rows = k,
                                      .columns = n - k,
                                      .depth = width,
                                      .scale = -1,
                                      .a_is_rows_first = true});
    }
  }
}

// `depth` rows of a, `rows` long, as PackedFactor keeps them.
void pack_rows(const OpContext& context, const float* a, int64_t stride, int64_t rows, int64_t depth,
               uint16_t* to) {
  gpu_split({.from = a,
             .stride = stride,
             .rows = depth,
             .columns = rows,
             .to = to,
             .to_stride = split_stride(rows),
             .parts = kHighHighLow},
            context.gpu->stream());
}

}  // namespace

// Row panels of h, each from its first column on: nearly only the upper triangle is computed.
void gram_accumulate_on_gpu(const OpContext& context, ConstActivations x, int64_t tokens, int64_t width,
                            float* h) {
  constexpr int64_t kPanel = 1280;
  for (int64_t first = 0; first < width; first += kPanel) {
    const void* const from = Activations(const_cast<void*>(x.data), x.dtype).from(first).data;
    context.libraries->add_product({.dtype = x.dtype,
                                    .a = from,
                                    .b = from,
                                    .c = h + first * (width + 1),
                                    .a_stride = width,
                                    .b_stride = width,
                                    .c_stride = width,
                                    .rows = std::min(kPanel, width - first),
                                    .columns = width - first,
                                    .depth = tokens});
  }
}

// The library's triangle is that of the matrix turned about, columns first: L L^T = J H J, U = J L^-1 J. Its
// inversion is slow, so in F32 only the factor is the library's.
bool inverse_cholesky_on_gpu(const OpContext& context, const float* h, int64_t n, FactorPrecision precision,
                             float* u) {
  const DType dtype = precision == FactorPrecision::kDouble ? DType::kF64 : DType::kF32;
  void* const stream = context.gpu->stream();
  const OpScratch work(context, static_cast<size_t>(n * n) * dtype_size(dtype));
  void* const turned = work.as<void>();
  gpu_turn({h, DType::kF32, turned, dtype, n}, stream);
  if (!context.libraries->factor(dtype, n, turned)) return false;
  if (dtype == DType::kF64) {
    if (!context.libraries->invert_triangle(dtype, n, turned)) return false;
    gpu_turn({turned, dtype, u, DType::kF32, n}, stream);
  } else {
    invert_upper_on_gpu(context, work.as<float>(), n, u);
    gpu_turn({u, dtype, turned, dtype, n}, stream);
    context.gpu->copy_within(u, turned, static_cast<size_t>(n * n) * sizeof(float));
  }
  return true;
}

Tensor pack_factor_on_gpu(const OpContext& context, const float* a, int64_t stride, int64_t rows,
                          int64_t depth) {
  Tensor packed = allocate(context, DType::kBF16, {3 * depth, split_stride(rows)});
  pack_rows(context, a, stride, rows, depth, packed.mutable_data<uint16_t>());
  return packed;
}

Tensor pack_permuted_gram_on_gpu(const OpContext& context, const PermuteGramArgs& gram) {
  const int64_t width = gram.width, stride = split_stride(width);
  Tensor packed = allocate(context, DType::kBF16, {3 * width, stride});
  const OpScratch panel(context,
                        static_cast<size_t>(std::min(kPackedGramRows, width) * width) * sizeof(float));
  PermuteGramArgs part = gram;
  part.to = panel.as<float>();
  for (part.first = 0; part.first < width; part.first += kPackedGramRows) {
    part.rows = std::min(kPackedGramRows, width - part.first);
    permute_gram(context, part);
    pack_rows(context, part.to, width, width, part.rows,
              packed.mutable_data<uint16_t>() + 3 * part.first * stride);
  }
  return packed;
}

// The three products of parts as one, of three times the depth.
void subtract_product_on_gpu(const OpContext& context, const Tensor& packed, const GemmOperands& operands,
                             int64_t begin) {
  const int64_t stride = split_stride(operands.columns);
  if (operands.depth <= 0 || operands.columns <= 0) return;
  const Scratch split = context.workspace->take(static_cast<size_t>(3 * operands.depth * stride) * 2);
  gpu_split({.from = operands.b,
             .stride = operands.b_stride,
             .rows = operands.depth,
             .columns = operands.columns,
             .to = split.as<uint16_t>(),
             .to_stride = stride,
             .parts = kHighLowHigh},
            context.gpu->stream());
  context.libraries->add_product({.dtype = DType::kBF16,
                                  .a = packed.data<uint16_t>() + 3 * begin * packed.size(1),
                                  .b = split.as<void>(),
                                  .c = operands.c,
                                  .a_stride = packed.size(1),
                                  .b_stride = stride,
                                  .c_stride = operands.c_stride,
                                  .rows = operands.rows,
                                  .columns = operands.columns,
                                  .depth = 3 * operands.depth,
                                  .scale = -1});
}

}  // namespace lowbit
