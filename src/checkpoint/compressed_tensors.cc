#include "base/fail.h"
#include "checkpoint/compressed_parts.h"
#include "format/bits.h"
#include "format/int8.h"

#include <cmath>
#include <cstring>
#include <set>

namespace lowbit {
namespace {

constexpr std::string_view kScale = ".weight_scale";
// A packed code is 128 more than the code.
constexpr uint8_t kMiddle = 128;

int64_t packed_width(int64_t in) { return packed_words(in, 8); }

std::vector<int8_t> unpacked(const Tensor& packed, const CompressedParts::Sizes& sizes) {
  std::vector<int8_t> codes(static_cast<size_t>(sizes.out * sizes.in));
  const auto* bytes = static_cast<const uint8_t*>(packed.bytes());
  for (int64_t row = 0; row < sizes.out; ++row) {
    for (int64_t column = 0; column < sizes.in; ++column) {
      codes[static_cast<size_t>(row * sizes.in + column)] =
          static_cast<int8_t>(bytes[row * packed_width(sizes.in) * 4 + column] ^ kMiddle);
    }
  }
  return codes;
}

QuantizedTensor read_int8(const CompressedParts& parts, ActivationFormat activations) {
  std::vector<int8_t> codes_there;
  CompressedParts::Sizes sizes;
  const int8_t* codes = nullptr;
  if (const Tensor* packed = parts.find(".weight_packed")) {
    sizes = parts.packed_sizes(8);
    codes_there = unpacked(*packed, sizes);
    codes = codes_there.data();
  } else {
    const Tensor& weight = parts.get(".weight");
    if (weight.dtype() != DType::kI8 || weight.shape().size() != 2 || weight.element_count() == 0) {
      fail(ErrorCode::kCorruptFile, "[compressed-tensors] {} is {} {}, expected an I8 matrix",
           parts.name(".weight"), dtype_name(weight.dtype()), shape_text(weight.shape()));
    }
    sizes = {weight.size(0), weight.size(1)};
    codes = static_cast<const int8_t*>(weight.bytes());
  }
  const Tensor scales = parts.scales(sizes.out, 1);
  QuantizedTensor weight =
      from_int8_rows(codes, {scales.data<float>(), static_cast<size_t>(sizes.out)}, sizes.in);
  weight.activations = activations;
  return weight;
}

// Files with symmetric weights may hold zero points all the same.
void require_symmetric(const CompressedParts& parts) {
  const Tensor* zeros = parts.find(".weight_zero_point");
  if (!zeros) return;
  const auto* bytes = static_cast<const uint8_t*>(zeros->bytes());
  for (size_t i = 0; i < zeros->byte_count(); ++i) {
    if (bytes[i] != 0) {
      fail(ErrorCode::kCorruptFile, "[compressed-tensors] {} is not all zero, but the config says symmetric",
           parts.name(".weight_zero_point"));
    }
  }
}

}  // namespace

const Tensor* CompressedParts::find(std::string_view ending) const {
  const auto found = files_.tensors.find(name(ending));
  return found == files_.tensors.end() ? nullptr : &found->second;
}

const Tensor& CompressedParts::get(std::string_view ending) const {
  if (const Tensor* tensor = find(ending)) return *tensor;
  fail(ErrorCode::kCorruptFile,
       "[compressed-tensors] {} is missing: the file is incomplete, or its config another one's; download or "
       "save the model again",
       name(ending));
}

CompressedParts::Sizes CompressedParts::packed_sizes(int bits) const {
  const Tensor &packed = get(".weight_packed"), &shape = get(".weight_shape");
  if (shape.element_count() != 2 || (shape.dtype() != DType::kI64 && shape.dtype() != DType::kI32)) {
    fail(ErrorCode::kCorruptFile, "[compressed-tensors] {} is {} {}, expected two I64", name(".weight_shape"),
         dtype_name(shape.dtype()), shape_text(shape.shape()));
  }
  int64_t wide[2];
  int32_t narrow[2];
  const bool is_wide = shape.dtype() == DType::kI64;
  std::memcpy(is_wide ? static_cast<void*>(wide) : narrow, shape.bytes(), shape.byte_count());
  const Sizes sizes = is_wide ? Sizes{wide[0], wide[1]} : Sizes{narrow[0], narrow[1]};
  const Shape& found = packed.shape();
  // Sizes that could not be multiplied are larger than any file.
  constexpr int64_t kMost = int64_t{1} << 31;
  if (packed.dtype() != DType::kI32 || found.size() != 2 || sizes.out < 1 || sizes.in < 1 ||
      sizes.in > kMost || found[0] != sizes.out || found[1] != packed_words(sizes.in, bits)) {
    fail(ErrorCode::kCorruptFile,
         "[compressed-tensors] {} is {} {}, expected I32 for {} bits of [{}, {}], as weight_shape says",
         name(".weight_packed"), dtype_name(packed.dtype()), shape_text(found), bits, sizes.out, sizes.in);
  }
  return sizes;
}

Tensor CompressedParts::scales(int64_t out, int64_t groups) const {
  const Tensor& stored = get(kScale);
  const int64_t count = stored.element_count();
  const bool is_single = count == 1 && groups == 1;
  const bool is_flat = groups == 1 && stored.shape() == Shape{out};
  if (!is_floating(stored.dtype()) || !(is_single || is_flat || stored.shape() == Shape{out, groups})) {
    fail(ErrorCode::kCorruptFile, "[compressed-tensors] {} is {} {}, expected floats [{}, {}]{}",
         name(kScale), dtype_name(stored.dtype()), shape_text(stored.shape()), out, groups,
         groups == 1 ? ", or one" : "");
  }
  Tensor scales = Tensor::allocate(DType::kF32, {out, groups});
  for (int64_t i = 0; i < scales.element_count(); ++i) {
    const float scale = float_at(stored, is_single ? 0 : i);
    if (!std::isfinite(scale)) {
      fail(ErrorCode::kCorruptFile, "[compressed-tensors] {}: scale {} of {} is not finite", name(kScale), i,
           count);
    }
    scales.mutable_data<float>()[i] = scale;
  }
  return scales;
}

void read_compressed_weights(const CompressedSettings& settings, std::string_view where,
                             Checkpoint& checkpoint) {
  std::set<std::string> names;
  int64_t rounded = 0, modules = 0;
  for (const auto& [name, tensor] : checkpoint.files.tensors) {
    if (!name.ends_with(kScale)) continue;
    const std::string module = name.substr(0, name.size() - kScale.size());
    const CompressedParts parts(checkpoint.files, module);
    ++modules;
    if (settings.affine.sym) require_symmetric(parts);
    QuantizedTensor weight;
    if (settings.format == Format::kAffine) {
      CompressedWeight packed = read_compressed_packed(parts, settings.affine);
      rounded += packed.has_rounded_scales;
      weight = std::move(packed.weight);
    } else if (settings.format == Format::kFp8) {
      weight = read_compressed_fp8(parts);
    } else {
      weight = read_int8(parts, settings.activations);
    }
    checkpoint.weights.emplace(module + ".weight", std::move(weight));
    for (const CompressedPart& part : kCompressedParts) names.insert(module + std::string(part.ending));
  }
  if (modules == 0) {
    fail(
        ErrorCode::kCorruptFile,
        "{} says compressed-tensors, but no weight has a {} beside it: the weights are not quantized; remove "
        "quantization_config from the config",
        where, kScale);
  }
  for (const auto& [name, tensor] : checkpoint.files.tensors) {
    if (!names.contains(name)) checkpoint.weights.emplace(name, tensor);
  }
  if (rounded > 0) {
    checkpoint.notes.push_back(
        fmt::format("scales of {} modules rounded to F16, which keeps 11 bits of them", rounded));
  }
  if (settings.fp8_inputs != CompressedSettings::Fp8Inputs::kFloat) {
    checkpoint.notes.push_back(
        fmt::format("the file asks for inputs in fp8 ({}); here they stay floats, so that weights alone are "
                    "rounded",
                    settings.fp8_inputs == CompressedSettings::Fp8Inputs::kPerToken ? "a scale per token"
                                                                                    : "static scales"));
  }
}

std::vector<NamedTensor> compressed_tensors_beside(const CompressedMatrix& matrix,
                                                   std::span<const float> scales) {
  const auto out = static_cast<int64_t>(scales.size());
  Tensor wide = Tensor::allocate(DType::kF32, {out, 1});
  std::memcpy(wide.mutable_bytes(), scales.data(), scales.size_bytes());
  std::vector<NamedTensor> tensors = {
      {matrix.module + std::string(kScale), converted(wide, matrix.scale_dtype)}};
  if (matrix.activations == ActivationFormat::kNone) {
    Tensor shape = Tensor::allocate(DType::kI64, {2});
    shape.mutable_data<int64_t>()[0] = out;
    shape.mutable_data<int64_t>()[1] = matrix.in_features;
    tensors.push_back({matrix.module + ".weight_shape", shape});
  }
  return tensors;
}

NamedTensor compressed_codes(const CompressedMatrix& matrix, int64_t out_features) {
  if (matrix.activations == ActivationFormat::kNone) {
    return {matrix.module + ".weight_packed",
            Tensor::borrow(nullptr, nullptr, DType::kI32, {out_features, packed_width(matrix.in_features)})};
  }
  return {matrix.module + ".weight",
          Tensor::borrow(nullptr, nullptr, DType::kI8, {out_features, matrix.in_features})};
}

Tensor compressed_code_bytes(const CompressedMatrix& matrix, const Tensor& codes) {
  if (matrix.activations != ActivationFormat::kNone) return codes;
  const int64_t out = codes.size(0), in = codes.size(1), width = packed_width(in);
  Tensor packed = Tensor::zeros(DType::kI32, {out, width});
  auto* to = static_cast<uint8_t*>(packed.mutable_bytes());
  const auto* from = static_cast<const uint8_t*>(codes.bytes());
  for (int64_t row = 0; row < out; ++row) {
    for (int64_t column = 0; column < in; ++column)
      to[row * width * 4 + column] = static_cast<uint8_t>(from[row * in + column] ^ kMiddle);
  }
  return packed;
}

}  // namespace lowbit
