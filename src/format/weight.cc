#include "format/weight.h"

#include "base/fail.h"
#include "format/bits.h"
#include "format/codebook.h"
#include "tensor/half.h"

namespace lowbit {

namespace {

struct FormatRow {
  Format format;
  std::string_view name;
  std::optional<int> bits;
};
constexpr FormatRow kFormats[] = {{Format::kAffine, "affine", {}},   {Format::kNf4, "nf4", 4},
                                  {Format::kFp4, "fp4", 4},          {Format::kFp8, "fp8", 8},
                                  {Format::kFp8E5m2, "fp8_e5m2", 8}, {Format::kLog2, "log2", {}},
                                  {Format::kInt8, "int8", 8}};

const FormatRow& row_of(Format format) {
  for (const FormatRow& row : kFormats) {
    if (row.format == format) return row;
  }
  fail(ErrorCode::kInternal, "format {} is not in the table", static_cast<int>(format));
}

}  // namespace

std::string_view format_name(Format format) { return row_of(format).name; }

std::optional<Format> find_format(std::string_view name) {
  for (const FormatRow& row : kFormats) {
    if (row.name == name) return row.format;
  }
  return std::nullopt;
}

std::optional<int> bits_of(Format format) { return row_of(format).bits; }

std::string_view activation_name(ActivationFormat format) {
  switch (format) {
    case ActivationFormat::kNone:
      return "none";
    case ActivationFormat::kInt8Dynamic:
      return "int8-dynamic";
    case ActivationFormat::kInt8Static:
      return "int8-static";
  }
  fail(ErrorCode::kInternal, "unknown format of activations");
}

size_t QuantizedTensor::byte_count() const {
  return codes.byte_count() + scales.byte_count() + codebook.byte_count() + zero_points.byte_count() +
         column_order.byte_count() + input_offsets.byte_count();
}

int64_t out_features(const Weight& weight) {
  if (const auto* quantized = std::get_if<QuantizedTensor>(&weight)) return quantized->out_features;
  return std::get<Tensor>(weight).size(0);
}

int64_t in_features(const Weight& weight) {
  if (const auto* quantized = std::get_if<QuantizedTensor>(&weight)) return quantized->in_features;
  return std::get<Tensor>(weight).size(1);
}

size_t weight_bytes(const Weight& weight) {
  if (const auto* quantized = std::get_if<QuantizedTensor>(&weight)) return quantized->byte_count();
  return std::get<Tensor>(weight).byte_count();
}

Tensor dequantized(const QuantizedTensor& weight) {
  const int64_t rows = weight.out_features, columns = weight.in_features;
  Tensor out = Tensor::allocate(DType::kF32, {rows, columns});
  float* values = out.mutable_data<float>();
  const uint32_t* words = weight.codes.data<uint32_t>();
  const bool is_wide = scale_dtype(weight.format) == DType::kF32;
  const uint16_t* half_scales = is_wide ? nullptr : weight.scales.data<uint16_t>();
  const float* wide_scales = is_wide ? weight.scales.data<float>() : nullptr;
  const bool is_table = has_codebook(weight.format);
  const Codebook codebook = is_table ? codebook_of(weight) : Codebook();
  const uint8_t* zeros = weight.zero_points.empty() ? nullptr : weight.zero_points.data<uint8_t>();
  const int32_t* order = weight.column_order.empty() ? nullptr : weight.column_order.data<int32_t>();
  std::vector<uint8_t> codes(static_cast<size_t>(columns));
  for (int64_t row = 0; row < rows; ++row) {
    unpack_bits(words + row, rows, columns, weight.bits, codes.data(), 1);
    for (int64_t position = 0; position < columns; ++position) {
      const int64_t group = position / weight.group_size;
      const int64_t column = order ? order[position] : position;
      const int code = codes[static_cast<size_t>(position)];
      const int64_t at = group * rows + row;
      const float scale = is_wide ? wide_scales[at] : f16_to_float(half_scales[at]);
      const int zero_point = zeros ? zeros[at] : 1 << (weight.bits - 1);
      values[row * columns + column] =
          is_table ? decode_code(codebook, code, scale) : scale * static_cast<float>(code - zero_point);
    }
  }
  return out;
}

}  // namespace lowbit
