// Packed integers and fp8 of compressed-tensors, from the file to what layers hold and back.
#include "base/fail.h"
#include "checkpoint/compressed_parts.h"
#include "checkpoint/reorder.h"
#include "format/affine.h"
#include "format/bits.h"
#include "format/codebook.h"

#include <algorithm>
#include <cstring>

namespace lowbit {
namespace {

[[noreturn]] void refuse(const CompressedParts& parts, std::string_view ending, const Tensor& found,
                         const std::string& expected) {
  fail(ErrorCode::kCorruptFile, "[compressed-tensors] {} is {} {}, expected {}", parts.name(ending),
       dtype_name(found.dtype()), shape_text(found.shape()), expected);
}

// Words of 32 bits [rows, columns] to [columns, rows].
Tensor turned_words(const Tensor& words) {
  const int64_t rows = words.size(0), columns = words.size(1);
  Tensor turned = Tensor::allocate(DType::kI32, {columns, rows});
  const char* from = static_cast<const char*>(words.bytes());
  char* to = static_cast<char*>(turned.mutable_bytes());
  // Blocks whose lines stay in the cache.
  constexpr int64_t kBlock = 32;
  for (int64_t first_row = 0; first_row < rows; first_row += kBlock) {
    for (int64_t first = 0; first < columns; first += kBlock) {
      for (int64_t row = first_row; row < std::min(first_row + kBlock, rows); ++row) {
        for (int64_t column = first; column < std::min(first + kBlock, columns); ++column)
          std::memcpy(to + (column * rows + row) * 4, from + (row * columns + column) * 4, 4);
      }
    }
  }
  return turned;
}

// As many bytes of each row as both have.
void copy_rows(const void* from, int64_t from_bytes, void* to, int64_t to_bytes, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(static_cast<char*>(to) + row * to_bytes, static_cast<const char*>(from) + row * from_bytes,
                static_cast<size_t>(std::min(from_bytes, to_bytes)));
  }
}

// U8 [groups, out]. Files hold them packed along the rows, [packed_words(out), groups]; old ones as I8 [out,
// groups], less the middle code.
Tensor read_zero_points(const CompressedParts& parts, const QuantizedTensor& weight) {
  const Tensor& stored = parts.get(".weight_zero_point");
  const int64_t out = weight.out_features, groups = weight.groups(), words = packed_words(out, weight.bits);
  Tensor zeros = Tensor::allocate(DType::kU8, {groups, out});
  uint8_t* to = zeros.mutable_data<uint8_t>();
  if (stored.dtype() == DType::kI32 && stored.shape() == Shape{words, groups}) {
    const Tensor turned = turned_words(stored);
    for (int64_t group = 0; group < groups; ++group)
      unpack_bits(turned.data<uint32_t>() + group * words, 1, out, weight.bits, to + group * out, 1);
    return zeros;
  }
  if (stored.dtype() != DType::kI8 || stored.shape() != Shape{out, groups}) {
    refuse(parts, ".weight_zero_point", stored,
           fmt::format("I32 [{}, {}] or I8 [{}, {}]", words, groups, out, groups));
  }
  const auto* from = static_cast<const int8_t*>(stored.bytes());
  const int middle = 1 << (weight.bits - 1);
  for (int64_t i = 0; i < out * groups; ++i) {
    const int zero = from[i] + middle;
    if (zero < 0 || zero >= 2 * middle) {
      fail(ErrorCode::kCorruptFile, "[compressed-tensors] {}: element {} is {}, expected {} to {}",
           parts.name(".weight_zero_point"), i, from[i], -middle, middle - 1);
    }
    to[i % groups * out + i / groups] = static_cast<uint8_t>(zero);
  }
  return zeros;
}

// The same packed.
Tensor packed_zero_points(const QuantizedTensor& weight) {
  const int64_t out = weight.out_features, groups = weight.groups(), words = packed_words(out, weight.bits);
  Tensor packed = Tensor::zeros(DType::kI32, {groups, words});
  const std::vector<uint8_t> middle(static_cast<size_t>(out), static_cast<uint8_t>(1 << (weight.bits - 1)));
  for (int64_t group = 0; group < groups; ++group) {
    const uint8_t* zeros =
        weight.zero_points.empty() ? middle.data() : weight.zero_points.data<uint8_t>() + group * out;
    pack_bits(zeros, 1, out, weight.bits, packed.mutable_data<uint32_t>() + group * words, 1);
  }
  return turned_words(packed);
}

std::vector<NamedTensor> packed_tensors(const std::string& module, const QuantizedTensor& weight,
                                        bool is_symmetric) {
  Tensor shape = Tensor::allocate(DType::kI64, {2});
  shape.mutable_data<int64_t>()[0] = weight.out_features;
  shape.mutable_data<int64_t>()[1] = weight.in_features;
  std::vector<NamedTensor> tensors = {
      {module + ".weight_packed",
       Tensor::borrow(nullptr, nullptr, DType::kI32, {weight.out_features, weight.codes.size(0)}),
       [weight] { return turned_words(weight.codes); }},
      {module + ".weight_scale", transposed(weight.scales)},
      {module + ".weight_shape", shape}};
  if (!is_symmetric) tensors.push_back({module + ".weight_zero_point", packed_zero_points(weight)});
  return tensors;
}

std::vector<NamedTensor> fp8_tensors(const std::string& module, const QuantizedTensor& weight) {
  const Shape shape = {weight.out_features, weight.in_features};
  return {{module + ".weight", Tensor::borrow(nullptr, nullptr, DType::kF8E4M3, shape),
           [weight, shape] {
             const Tensor words = turned_words(weight.codes);
             Tensor rows = Tensor::allocate(DType::kF8E4M3, shape);
             copy_rows(words.bytes(), words.size(1) * 4, rows.mutable_bytes(), shape[1], shape[0]);
             return rows;
           }},
          {module + ".weight_scale", transposed(weight.scales)}};
}

}  // namespace

CompressedWeight read_compressed_packed(const CompressedParts& parts, const AffineOptions& affine) {
  const CompressedParts::Sizes sizes = parts.packed_sizes(affine.bits);
  CompressedWeight result{.weight = {.bits = affine.bits,
                                     .group_size = effective_group_size(sizes.in, affine.group_size),
                                     .out_features = sizes.out,
                                     .in_features = sizes.in}};
  QuantizedTensor& weight = result.weight;
  weight.codes = turned_words(parts.get(".weight_packed"));
  bool is_exact = true;
  const Tensor scales = parts.scales(sizes.out, weight.groups());
  weight.scales = transposed(
      half_scales(fmt::format("[compressed-tensors] {}", parts.name(".weight_scale")), scales, is_exact));
  result.has_rounded_scales = !is_exact;
  if (!affine.sym) weight.zero_points = read_zero_points(parts, weight);
  if (const Tensor* index = parts.find(".weight_g_idx")) {
    if (index->dtype() != DType::kI32 || index->shape() != Shape{sizes.in})
      refuse(parts, ".weight_g_idx", *index, fmt::format("I32 [{}]", sizes.in));
    apply_group_index(fmt::format("[compressed-tensors] {}", parts.name(".weight_g_idx")), *index, weight);
  }
  return result;
}

QuantizedTensor read_compressed_fp8(const CompressedParts& parts) {
  const Tensor& stored = parts.get(".weight");
  if (stored.dtype() != DType::kF8E4M3 || stored.shape().size() != 2 || stored.element_count() == 0)
    refuse(parts, ".weight", stored, "a matrix of F8_E4M3, as the config says");
  const int64_t out = stored.size(0), in = stored.size(1);
  QuantizedTensor weight{
      .format = Format::kFp8, .bits = 8, .group_size = in, .out_features = out, .in_features = in};
  weight.scales = transposed(parts.scales(out, 1));
  const auto* codes = static_cast<const uint8_t*>(stored.bytes());
  const auto count = static_cast<size_t>(out * in);
  if (const size_t odd = first_odd_code(Format::kFp8, {codes, count}); odd < count) {
    const auto place = static_cast<int64_t>(odd);
    fail(ErrorCode::kCorruptFile, "[compressed-tensors] {}: row {}, column {} is {:#04x}, which is NaN",
         parts.name(".weight"), place / in, place % in, codes[odd]);
  }
  const int64_t words = packed_words(in, 8);
  Tensor padded = Tensor::zeros(DType::kI32, {out, words});
  copy_rows(codes, in, padded.mutable_bytes(), words * 4, out);
  weight.codes = turned_words(padded);
  return weight;
}

std::vector<NamedTensor> compressed_tensors(const std::string& module, const QuantizedTensor& weight,
                                            bool is_symmetric) {
  const bool is_fp8 = weight.format == Format::kFp8 && weight.groups() == 1;
  if (!weight.column_order.empty() || (weight.format != Format::kAffine && !is_fp8))
    fail(ErrorCode::kInternal, "{} cannot be spelled as compressed-tensors", module);
  return is_fp8 ? fp8_tensors(module, weight) : packed_tensors(module, weight, is_symmetric);
}

}  // namespace lowbit
