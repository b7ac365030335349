#include "quantize/matrix.h"

#include "base/fail.h"
#include "format/affine.h"
#include "format/bits.h"
#include "format/codebook.h"
#include "tensor/half.h"

#include <algorithm>
#include <vector>

namespace lowbit {

std::optional<CodebookChoice> codebook_choice(const QuantizeOptions& options) {
  const Format format = *find_format(options.format);
  if (format == Format::kAffine) return std::nullopt;
  if (format != Format::kLog2) return CodebookChoice{format, *bits_of(format), levels_of(format), Tensor()};
  const LogOptions log{options.affine.bits, options.log_base};
  return CodebookChoice{format, log.bits, log_levels(log), log_codebook(log)};
}

void for_each_slab(const OpContext& ops, int64_t rows,
                   const std::function<void(const OpContext& one_thread, int64_t slab, int64_t first_row,
                                            int64_t rows)>& body) {
  if (ops.gpu) return body(ops, 0, 0, rows);
  const ThreadPool one_thread(1);
  const OpContext inner{&one_thread, ops.workspace, ops.kernels};
  ops.threads->parallel_for(slab_count(rows), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t slab = begin; slab < end; ++slab) {
      const int64_t first = slab * kSlabRows;
      body(inner, slab, first, std::min(kSlabRows, rows - first));
    }
  });
}

void load_weights(const OpContext& ops, const MatrixProblem& problem, int64_t first_row, int64_t rows,
                  const int32_t* columns, int64_t count, float* w) {
  const Tensor& weight = ops.gpu ? problem.weight_there : problem.weight;
  if (!load_columns(ops, weight, first_row, rows, columns, count, w)) {
    fail(ErrorCode::kCorruptFile, "{}.weight holds values that are not finite: the source model is damaged",
         problem.module);
  }
}

QuantizedTensor allocate_quantized(const MatrixProblem& problem) {
  QuantizedTensor out;
  out.bits = problem.affine.bits;
  if (problem.codebook) {
    out.format = problem.codebook->format;
    out.bits = problem.codebook->bits;
    out.codebook = problem.codebook->codebook;
  }
  out.out_features = problem.weight.size(0);
  out.in_features = problem.weight.size(1);
  out.group_size = effective_group_size(out.in_features, problem.affine.group_size);
  out.codes = Tensor::allocate(DType::kI32, {packed_words(out.in_features, out.bits), out.out_features});
  out.scales =
      Tensor::allocate(problem.codebook ? DType::kF32 : DType::kF16, {out.groups(), out.out_features});
  if (!problem.codebook && !problem.affine.sym)
    out.zero_points = Tensor::allocate(DType::kU8, {out.groups(), out.out_features});
  return out;
}

void store_slab(const OpContext& ops, const CodeSlab& slab, QuantizedTensor& out) {
  const int64_t stride = out.out_features, groups = out.groups();
  PackColumnsArgs pack{.codes = slab.codes,
                       .column_of = slab.step_of,
                       .columns = out.in_features,
                       .rows = slab.rows,
                       .bits = out.bits,
                       .words = out.codes.mutable_data<uint32_t>() + slab.first_row,
                       .stride = stride};
  const float *scales = slab.scales, *zero_points = slab.zero_points;
  std::vector<float> grids;
  if (ops.gpu) {
    const Scratch words = ops.workspace->take(out.codes.byte_count());
    pack.words = words.as<uint32_t>();
    pack_columns(ops, pack);
    copy_here(ops, out.codes.mutable_bytes(), words.as<void>(), out.codes.byte_count());
    const size_t count = static_cast<size_t>(groups * slab.rows);
    grids.resize(2 * count);
    copy_here(ops, grids.data(), slab.scales, count * sizeof(float));
    copy_here(ops, grids.data() + count, slab.zero_points, count * sizeof(float));
    scales = grids.data();
    zero_points = scales + count;
  } else {
    pack_columns(ops, pack);
  }
  const bool is_affine = out.format == Format::kAffine;
  uint8_t* to_zeros = out.zero_points.empty() ? nullptr : out.zero_points.mutable_data<uint8_t>();
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t row = 0; row < slab.rows; ++row) {
      const int64_t place = group * stride + slab.first_row + row;
      const float scale = scales[group * slab.rows + row];
      if (is_affine) {
        out.scales.mutable_data<uint16_t>()[place] = float_to_f16(scale);
      } else {
        out.scales.mutable_data<float>()[place] = scale;
      }
      if (to_zeros) to_zeros[place] = static_cast<uint8_t>(zero_points[group * slab.rows + row]);
    }
  }
}

void decode_rows(const QuantizedTensor& weight, int64_t first_row, int64_t rows, float* values) {
  const int64_t width = weight.in_features, stride = weight.out_features;
  const uint8_t* zeros = weight.zero_points.empty() ? nullptr : weight.zero_points.data<uint8_t>();
  const int32_t* order = weight.column_order.empty() ? nullptr : weight.column_order.data<int32_t>();
  const bool is_affine = weight.format == Format::kAffine;
  const Codebook codebook = is_affine ? Codebook() : codebook_of(weight);
  std::vector<uint8_t> codes(static_cast<size_t>(width));
  for (int64_t row = first_row; row < first_row + rows; ++row) {
    unpack_bits(weight.codes.data<uint32_t>() + row, stride, width, weight.bits, codes.data(), 1);
    float* out = values + (row - first_row) * width;
    for (int64_t position = 0; position < width; ++position) {
      const int64_t place = position / weight.group_size * stride + row;
      float& value = out[order ? order[position] : position];
      const int code = codes[static_cast<size_t>(position)];
      if (!is_affine) {
        value = decode_code(codebook, code, weight.scales.data<float>()[place]);
        continue;
      }
      const int zero_point = zeros ? zeros[place] : 1 << (weight.bits - 1);
      value = f16_to_float(weight.scales.data<uint16_t>()[place]) * static_cast<float>(code - zero_point);
    }
  }
}

}  // namespace lowbit
