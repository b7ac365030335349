#include "format/weight.h"

#include "format/bits.h"
#include "format/codebook.h"
#include "tensor/half.h"

namespace lowbit {

size_t QuantizedTensor::byte_count() const {
  return codes.byte_count() + scales.byte_count() + codebook.byte_count() + zero_points.byte_count() +
         column_order.byte_count();
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
  const bool is_affine = weight.format == Format::kAffine;
  const uint16_t* scales = is_affine ? weight.scales.data<uint16_t>() : nullptr;
  const float* wide_scales = is_affine ? nullptr : weight.scales.data<float>();
  const Codebook codebook = is_affine ? Codebook() : codebook_of(weight);
  const uint8_t* zeros = weight.zero_points.empty() ? nullptr : weight.zero_points.data<uint8_t>();
  const int32_t* order = weight.column_order.empty() ? nullptr : weight.column_order.data<int32_t>();
  std::vector<uint8_t> codes(static_cast<size_t>(columns));
  for (int64_t row = 0; row < rows; ++row) {
    unpack_bits(words + row, rows, columns, weight.bits, codes.data(), 1);
    for (int64_t position = 0; position < columns; ++position) {
      const int64_t group = position / weight.group_size;
      const int64_t column = order ? order[position] : position;
      const int code = codes[static_cast<size_t>(position)];
      float& value = values[row * columns + column];
      if (!is_affine) {
        value = decode_code(codebook, code, wide_scales[group * rows + row]);
        continue;
      }
      const int zero_point = zeros ? zeros[group * rows + row] : 1 << (weight.bits - 1);
      value = f16_to_float(scales[group * rows + row]) * static_cast<float>(code - zero_point);
    }
  }
  return out;
}

}  // namespace lowbit
