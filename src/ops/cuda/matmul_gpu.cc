#include "ops/cuda/matmul_gpu.h"

#include "base/fail.h"
#include "format/codebook.h"
#include "ops/cuda/elementwise_gpu.h"
#include "ops/cuda/fragments.h"
#include "ops/cuda/fragments_gpu.h"
#include "ops/cuda/libraries.h"
#include "ops/cuda/matmul_decode.h"
#include "ops/cuda/matmul_int8.h"
#include "ops/cuda/matmul_prompt.h"
#include "tensor/half.h"

#include <algorithm>
#include <optional>
#include <vector>

namespace lowbit {
namespace {

std::span<const float> codebook_or_none(const QuantizedTensor& weight) {
  if (!has_codebook(weight.format)) return {};
  return codebook_of(weight);
}

}  // namespace

GpuWeightKind kind_of(const Weight& weight) {
  if (const auto* quantized = std::get_if<QuantizedTensor>(&weight)) {
    return {quantized->format,
            quantized->bits,
            quantized->group_size,
            !quantized->zero_points.empty(),
            quantized->column_order.empty() ? nullptr : quantized->column_order.data<int32_t>(),
            quantized->activations,
            quantized->outlier_threshold,
            quantized->input_grid,
            code_table(quantized->format, codebook_or_none(*quantized))};
  }
  const DType dtype = std::get<Tensor>(weight).dtype();
  if (dtype != DType::kBF16) {
    fail(ErrorCode::kInternal, "matmul on a GPU: a dense weight is {}, expected BF16", dtype_name(dtype));
  }
  return {};
}

float kept_scale_factor(Format format) {
  return format == Format::kFp8 || format == Format::kFp8E5m2 ? kFloatShrink : 1;
}

CodeTable code_table(Format format) {
  return has_codebook(format) ? code_table(format, codebook_of(format)) : CodeTable{};
}

CodeTable code_table(Format format, std::span<const float> values) {
  if (format == Format::kFp8) return float_codes(3);
  if (format == Format::kFp8E5m2) return float_codes(2);
  CodeTable table;
  for (size_t i = 0; i < std::min<size_t>(values.size(), 16); ++i) {
    const uint32_t value = float_to_bf16(values[i]), shift = static_cast<uint32_t>(i % 4 * 8);
    table.lower[i / 4] |= (value & 0xff) << shift;
    table.upper[i / 4] |= value >> 8 << shift;
  }
  return table;
}

GpuMatrix matrix_of(const MatmulOutput& output) {
  GpuMatrix matrix;
  matrix.out = out_features(*output.weight);
  if (const auto* quantized = std::get_if<QuantizedTensor>(output.weight)) {
    matrix.weight = quantized->codes.bytes();
    matrix.scales = quantized->scales.bytes();
    matrix.zero_points = quantized->zero_points.empty() ? nullptr : quantized->zero_points.bytes();
  } else {
    matrix.weight = std::get<Tensor>(*output.weight).bytes();
  }
  if (output.bias && !output.bias->empty()) matrix.bias = output.bias->data<float>();
  if (output.add_to) {
    matrix.add_to = output.add_to;
  } else {
    matrix.y = output.y;
  }
  return matrix;
}

namespace {

// Of up to kMostMatrices outputs; what x is comes later.
GpuDecodeArgs args_of(int64_t tokens, int64_t in, std::span<const MatmulOutput> outputs,
                      const GpuWeightKind& kind) {
  GpuDecodeArgs args{.rows = tokens,
                     .in = in,
                     .bits = kind.bits,
                     .group_size = kind.group_size,
                     .has_table = has_codebook(kind.format),
                     .table = kind.table,
                     .matrices = static_cast<int>(outputs.size())};
  for (size_t i = 0; i < outputs.size(); ++i) args.matrix[i] = matrix_of(outputs[i]);
  return args;
}

// Whether the product's x may be kept rows, and its outputs be left so.
bool keeps(const GpuDecodeArgs& args, const GpuWeightKind& kind) {
  return !kind.column_order && keeps_rows(args.rows, args.in, tiles_of(args), args.bits, args.group_size);
}
// Leaves hidden to the next norm's product, or forgets what is there.
void set_next(GpuDecodeArgs& args, const MatmulOutput& output, bool keeps) {
  if (!output.kept) return;
  output.kept->forget();
  if (!keeps || !output.next_norm || !output.kept->has_room() || args.matrix[0].out % 128 != 0) return;
  args.matrix[0].next = {output.kept->x(), output.next_norm->data<float>(), output.kept->squares()};
  output.kept->keep(*output.next_norm);
}

// Few rows: outputs of one kind share a launch.
void multiply_few(const OpContext& context, const uint16_t* x, int64_t tokens, int64_t in,
                  std::span<const MatmulOutput> outputs, const GpuWeightKind& kind) {
  GpuDecodeArgs all = args_of(tokens, in, outputs, kind);
  const bool fits = fits_gpu_decode(in, kind.bits, kind.group_size);
  const bool prepares = fits && prepares_in_decode(std::min(kDecodeRows, tokens), in, tiles_of(all),
                                                   kind.bits, kind.group_size);
  std::optional<Scratch> gathered;
  if (kind.column_order && !prepares) {
    gathered.emplace(context.workspace->take(static_cast<size_t>(tokens * in) * 2));
    gpu_gather_columns(x, kind.column_order, tokens, in, gathered->as<uint16_t>(), context.gpu->stream());
    x = gathered->as<uint16_t>();
  }
  all.x = x;
  all.column_order = prepares ? kind.column_order : nullptr;
  if (outputs.size() == 1) set_next(all, outputs[0], keeps(all, kind));
  for (int64_t row = 0; row < tokens; row += kDecodeRows) {
    (fits ? gpu_matmul_decode : gpu_matmul_plain)(rows_of(all, row, std::min(kDecodeRows, tokens - row)),
                                                  context.gpu->stream());
  }
}

// A prompt's rows: codes that become BF16 on the way. False where there is no kernel for it.
bool multiply_prompt(const OpContext& context, const uint16_t* x, int64_t tokens, int64_t in,
                     std::span<const MatmulOutput> outputs, const GpuWeightKind& kind) {
  if (kind.bits == 16 || tokens > most_prompt_rows(outputs.size()) || !has_prompt_product()) return false;
  GpuDecodeArgs args = args_of(tokens, in, outputs, kind);
  args.x = x;
  args.column_order = kind.column_order;
  if (!fits_prompt_product(args)) return false;
  for (const MatmulOutput& output : outputs)
    if (output.kept) output.kept->forget();
  const Scratch blocks = context.workspace->take(static_cast<size_t>(prompt_block_bytes(tokens, in)));
  gpu_prompt_product(args, blocks.as<void>(), context.gpu->stream());
  return true;
}

// Many rows: the weight as BF16, which the library multiplies.
void multiply_many(const OpContext& context, const uint16_t* x, int64_t tokens, int64_t in,
                   const MatmulOutput& output, const GpuWeightKind& kind) {
  void* const stream = context.gpu->stream();
  const GpuMatrix matrix = matrix_of(output);
  if (output.kept) output.kept->forget();
  std::optional<Scratch> unpacked, bias;
  GpuLibraries::Product product{.rows = tokens, .in = in, .out = matrix.out, .x = x};
  product.w = static_cast<const uint16_t*>(matrix.weight);
  if (kind.bits != 16) {
    unpacked.emplace(context.workspace->take(static_cast<size_t>(matrix.out * in) * 2));
    gpu_unpack_fragments({.out = matrix.out,
                          .in = in,
                          .group_size = kind.group_size,
                          .bits = kind.bits,
                          .codebook = codebook_or_none(std::get<QuantizedTensor>(*output.weight)),
                          .scale_factor = kept_scale_factor(kind.format),
                          .fragments = matrix.weight,
                          .scales = matrix.scales,
                          .zero_points = matrix.zero_points,
                          .column_order = kind.column_order,
                          .to = unpacked->as<uint16_t>()},
                         stream);
    product.w = unpacked->as<uint16_t>();
  }
  product.y = matrix.add_to ? Activations(matrix.add_to) : matrix.y;
  product.adds = matrix.add_to != nullptr;
  if (matrix.bias && product.y.dtype == DType::kBF16) {
    bias.emplace(context.workspace->take(static_cast<size_t>(matrix.out) * 2));
    gpu_convert_to_bf16(matrix.bias, matrix.out, bias->as<uint16_t>(), stream);
    product.bias = bias->as<uint16_t>();
  }
  context.libraries->multiply(product);
  if (matrix.bias && !product.bias) {
    gpu_add_bias(static_cast<float*>(product.y.data), matrix.bias, tokens, matrix.out, stream);
  }
}

int64_t outlier_capacity(int64_t in) { return std::min(kInt8OutlierColumns, (in + 63) / 64 * 64); }

// x rounded to int8, times codes. Outputs of one kind.
void multiply_codes(const OpContext& context, GpuInt8Rows rows, std::span<const MatmulOutput> outputs) {
  void* const stream = context.gpu->stream();
  const bool has_outliers = rows.threshold > 0;
  auto take = [&](int64_t bytes) { return context.workspace->take(static_cast<size_t>(bytes)); };
  const int64_t in = rows.in, capacity = outlier_capacity(in);
  const Scratch codes = take(int8_code_bytes(rows.rows, in, kInt8TileRows)), scales = take(rows.rows * 4);
  std::optional<Scratch> lists, outliers;
  if (has_outliers) {
    lists.emplace(take(int8_list_words(in) * 4));
    outliers.emplace(take(int8_outlier_bytes(rows.rows, capacity, kInt8TileRows)));
    rows.mask = lists->as<uint32_t>();
    rows.outlier_count = lists->as<int32_t>() + int8_mask_words(in);
    rows.outlier_columns = rows.outlier_count + 1;
  }
  rows.codes = codes.as<int8_t>();
  rows.scales = scales.as<float>();

  GpuInt8Product product{.x = rows,
                         .x_outliers = has_outliers ? outliers->as<uint16_t>() : nullptr,
                         .capacity = capacity,
                         .matrices = static_cast<int>(outputs.size())};
  std::vector<Scratch> made;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const GpuMatrix given = matrix_of(outputs[i]);
    const auto& weight = std::get<QuantizedTensor>(*outputs[i].weight);
    GpuInt8Matrix& matrix = product.matrix[i];
    matrix = {.out = given.out,
              .fragments = given.weight,
              .scales = given.scales,
              .bias = given.bias,
              .y = given.y,
              .add_to = given.add_to};
    if (!weight.input_offsets.empty()) matrix.input_offsets = weight.input_offsets.data<int32_t>();
    matrix.codes = made.emplace_back(take(int8_code_bytes(given.out, in, kInt8TileOutputs))).as<int8_t>();
    matrix.wide_scales = made.emplace_back(take(given.out * 4)).as<float>();
    if (has_outliers)
      matrix.outliers =
          made.emplace_back(take(int8_outlier_bytes(given.out, capacity, kInt8TileOutputs))).as<uint16_t>();
    if (outputs[i].kept) outputs[i].kept->forget();
  }
  gpu_int8_weights(product, stream);
  gpu_round_to_int8(rows, stream);
  if (has_outliers) gpu_gather_outliers(product, stream);
  gpu_int8_product(product, stream);
}

bool fits_codes(int64_t tokens, std::span<const MatmulOutput> outputs, const GpuWeightKind& kind) {
  return tokens > (has_prompt_product() ? kMostRoundedRows : kDecodeRows) && !kind.column_order &&
         has_int8_product() &&
         std::ranges::all_of(outputs, [](const MatmulOutput& y) { return out_features(*y.weight) % 8 == 0; });
}

const QuantizedTensor* rounding_inputs(const Weight& weight) {
  const auto* quantized = std::get_if<QuantizedTensor>(&weight);
  return quantized && quantized->activations != ActivationFormat::kNone ? quantized : nullptr;
}

}  // namespace

int64_t matmul_weight_bytes(const Weight& weight) {
  if (std::holds_alternative<Tensor>(weight)) return 0;
  const int64_t out = out_features(weight), in = in_features(weight), unpacked = out * in * 2;
  const QuantizedTensor* rounding = rounding_inputs(weight);
  const int64_t others = std::max(unpacked, prompt_block_bytes(most_prompt_rows(kMostMatrices), in));
  if (!rounding) return others;
  int64_t blocks = int8_code_bytes(out, in, kInt8TileOutputs) + out * 4;
  if (rounding->outlier_threshold > 0)
    blocks += int8_outlier_bytes(out, outlier_capacity(in), kInt8TileOutputs);
  return std::max(others, blocks);
}

int64_t matmul_rows_bytes(const Weight& weight, int64_t rows) {
  const QuantizedTensor* rounding = rounding_inputs(weight);
  if (!rounding) return 0;
  const int64_t in = in_features(weight), rounded = rows * in * 2;
  int64_t blocks = int8_code_bytes(rows, in, kInt8TileRows) + rows * 4;
  if (rounding->outlier_threshold > 0)
    blocks += int8_list_words(in) * 4 + int8_outlier_bytes(rows, outlier_capacity(in), kInt8TileRows);
  return std::max(rounded, blocks);
}

void matmul_on_gpu(const OpContext& context, ConstActivations given, int64_t tokens,
                   std::span<const MatmulOutput> outputs, MatmulMode mode) {
  const uint16_t* const x = halves(given);
  const int64_t in = in_features(*outputs[0].weight);
  const bool is_few = mode == MatmulMode::kDecode || tokens <= kDecodeRows || in % 8 != 0 ||
                      !context.libraries->gemm_problem().empty();
  for (size_t begin = 0, end = 0; begin < outputs.size(); begin = end) {
    const GpuWeightKind kind = kind_of(*outputs[begin].weight);
    for (end = begin + 1; end < outputs.size() && end - begin < static_cast<size_t>(kMostMatrices); ++end) {
      if (!(kind_of(*outputs[end].weight) == kind)) break;
    }
    const std::span<const MatmulOutput> some = outputs.subspan(begin, end - begin);
    const uint16_t* multiplied = x;
    std::optional<Scratch> rounded;
    if (kind.activations != ActivationFormat::kNone && mode == MatmulMode::kPrefill) {
      GpuInt8Rows rows{.rows = tokens,
                       .in = in,
                       .x = x,
                       .threshold = kind.outlier_threshold,
                       .input_scale = kind.input_grid.scale,
                       .input_zero_point = kind.input_grid.zero_point};
      if (fits_codes(tokens, some, kind)) {
        multiply_codes(context, rows, some);
        continue;
      }
      rounded.emplace(context.workspace->take(static_cast<size_t>(tokens * in) * sizeof(uint16_t)));
      multiplied = rows.rounded = rounded->as<uint16_t>();
      gpu_round_to_int8(rows, context.gpu->stream());
    }
    if (is_few) {
      multiply_few(context, multiplied, tokens, in, some, kind);
    } else if (!multiply_prompt(context, multiplied, tokens, in, some, kind)) {
      for (const MatmulOutput& output : some) multiply_many(context, multiplied, tokens, in, output, kind);
    }
  }
}

namespace {

// The products of outputs of one kind with normed rows; false where they are of several, or too many.
// swiglu_to: of two outputs, see GpuDecodeArgs; swiglu_next: the same, kept.
bool multiply_normed(const OpContext& context, const NormedRows& x, int64_t tokens,
                     std::span<const MatmulOutput> outputs, MatmulMode mode, Activations swiglu_to = {},
                     const GpuKeptRows& swiglu_next = {}) {
  const GpuWeightKind kind = kind_of(*outputs[0].weight);
  const int64_t in = in_features(*outputs[0].weight);
  if (mode != MatmulMode::kDecode || outputs.size() > static_cast<size_t>(kMostMatrices) ||
      !fits_gpu_decode(in, kind.bits, kind.group_size)) {
    return false;
  }
  for (const MatmulOutput& output : outputs)
    if (!(kind_of(*output.weight) == kind)) return false;

  GpuDecodeArgs all = args_of(tokens, in, outputs, kind);
  const int64_t most = std::min(kDecodeRows, tokens), tiles = tiles_of(all);
  if (swiglu_to.data && most > gated_decode_rows(in, tiles, kind.bits, kind.group_size)) return false;
  const bool is_kept = x.kept && x.kept->are_for(*x.weight) && keeps(all, kind);
  const bool prepares = is_kept || prepares_in_decode(most, in, tiles, kind.bits, kind.group_size);
  std::optional<Scratch> normed, factors;
  if (!prepares) {
    normed.emplace(context.workspace->take(static_cast<size_t>(most * in) * sizeof(uint16_t)));
    factors.emplace(context.workspace->take(static_cast<size_t>(most) * sizeof(float)));
  }
  all.epsilon = x.epsilon;
  all.swiglu = swiglu_to.data != nullptr;
  if (all.swiglu) all.matrix[0].y = swiglu_to;
  all.matrix[0].next = swiglu_next;
  if (is_kept) {
    all.kept = {.x = x.kept->x(), .squares = x.kept->squares()};
  } else {
    all.hidden = x.hidden;
    all.norm_weight = x.weight->data<float>();
    all.column_order = prepares ? kind.column_order : nullptr;
  }
  for (int64_t row = 0; row < tokens; row += kDecodeRows) {
    GpuDecodeArgs args = rows_of(all, row, std::min(kDecodeRows, tokens - row));
    if (!prepares) {
      gpu_norm_rows({.x = args.hidden,
                     .weight = args.norm_weight,
                     .order = kind.column_order,
                     .rows = args.rows,
                     .width = in,
                     .epsilon = x.epsilon,
                     .to = normed->as<uint16_t>(),
                     .factors = factors->as<float>()},
                    context.gpu->stream());
      args.x = normed->as<uint16_t>();
      args.factors = factors->as<float>();
      args.hidden = args.norm_weight = nullptr;
    }
    gpu_matmul_decode(args, context.gpu->stream());
  }
  return true;
}

}  // namespace

bool matmul_normed_on_gpu(const OpContext& context, const NormedRows& x, int64_t tokens,
                          std::span<const MatmulOutput> outputs, MatmulMode mode) {
  return multiply_normed(context, x, tokens, outputs, mode);
}

bool matmul_gated_on_gpu(const OpContext& context, const NormedRows& x, int64_t tokens,
                         const MatmulOutput& gate, const MatmulOutput& up, Activations out, MatmulMode mode) {
  const MatmulOutput outputs[] = {gate, up};
  return multiply_normed(context, x, tokens, outputs, mode, out);
}

bool gated_mlp_on_gpu(const OpContext& context, const NormedRows& x, int64_t tokens, const MatmulOutput& gate,
                      const MatmulOutput& up, const MatmulOutput& down, MatmulMode mode) {
  const MatmulOutput outputs[] = {gate, up};
  const GpuWeightKind kind = kind_of(*gate.weight), down_kind = kind_of(*down.weight);
  const int64_t inner = in_features(*down.weight);
  GpuDecodeArgs args = args_of(tokens, inner, std::span(&down, 1), down_kind);
  if (mode != MatmulMode::kDecode || !(kind_of(*up.weight) == kind) || !keeps(args, down_kind) ||
      !keeps(args_of(tokens, in_features(*gate.weight), outputs, kind), kind)) {
    return false;
  }
  const Scratch gated =
      context.workspace->take(static_cast<size_t>(kept_rows(tokens) * inner) * sizeof(uint16_t));
  args.kept = {.x = gated.as<uint16_t>()};
  if (!multiply_normed(context, x, tokens, outputs, mode, Activations(args.kept.x, DType::kBF16), args.kept))
    return false;
  set_next(args, down, true);
  gpu_matmul_decode(args, context.gpu->stream());
  return true;
}

}  // namespace lowbit
