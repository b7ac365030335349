#include "base/fail.h"
#include "checkpoint/compressed.h"
#include "format/int8.h"

#include <cmath>
#include <cstring>
#include <set>

namespace lowbit {
namespace {

constexpr std::string_view kScale = ".weight_scale";
// A packed code is 128 more than the code.
constexpr uint8_t kMiddle = 128;

int64_t packed_width(int64_t in) { return (in + 3) / 4; }

class Reader {
 public:
  Reader(ActivationFormat activations, Checkpoint& checkpoint)
      : activations_(activations), checkpoint_(checkpoint) {}

  QuantizedTensor read(const std::string& module) const {
    std::vector<int8_t> unpacked;
    int64_t out = 0, in = 0;
    const int8_t* codes = nullptr;
    if (const Tensor* packed = find(module + ".weight_packed")) {
      unpacked = unpack(module, *packed, out, in);
      codes = unpacked.data();
    } else {
      const Tensor& weight = get(module + ".weight");
      if (weight.dtype() != DType::kI8 || weight.shape().size() != 2) {
        fail(ErrorCode::kCorruptFile, "[compressed-tensors] {}.weight is {} {}, expected an I8 matrix",
             module, dtype_name(weight.dtype()), shape_text(weight.shape()));
      }
      out = weight.size(0);
      in = weight.size(1);
      codes = static_cast<const int8_t*>(weight.bytes());
    }
    require_symmetric(module);
    QuantizedTensor weight = from_int8_rows(codes, scales(module, out), in);
    weight.activations = activations_;
    return weight;
  }

 private:
  const Tensor* find(const std::string& name) const {
    const auto found = checkpoint_.files.tensors.find(name);
    return found == checkpoint_.files.tensors.end() ? nullptr : &found->second;
  }
  const Tensor& get(const std::string& name) const {
    if (const Tensor* tensor = find(name)) return *tensor;
    fail(ErrorCode::kCorruptFile,
         "[compressed-tensors] {} is missing: the file is incomplete; download or save the model again",
         name);
  }

  std::vector<int8_t> unpack(const std::string& module, const Tensor& packed, int64_t& out,
                             int64_t& in) const {
    const Tensor& shape = get(module + ".weight_shape");
    if (shape.element_count() != 2 || (shape.dtype() != DType::kI64 && shape.dtype() != DType::kI32)) {
      fail(ErrorCode::kCorruptFile, "[compressed-tensors] {}.weight_shape is {} {}, expected two I64", module,
           dtype_name(shape.dtype()), shape_text(shape.shape()));
    }
    const bool is_wide = shape.dtype() == DType::kI64;
    out = is_wide ? shape.data<int64_t>()[0] : shape.data<int32_t>()[0];
    in = is_wide ? shape.data<int64_t>()[1] : shape.data<int32_t>()[1];
    const Shape& found = packed.shape();
    if (packed.dtype() != DType::kI32 || found.size() != 2 || out < 1 || in < 1 || found[0] != out ||
        found[1] != packed_width(in)) {
      fail(ErrorCode::kCorruptFile,
           "[compressed-tensors] {}.weight_packed is {} {}, expected I32 for 8 bits of [{}, {}], as "
           "weight_shape says",
           module, dtype_name(packed.dtype()), shape_text(found), out, in);
    }
    std::vector<int8_t> codes(static_cast<size_t>(out * in));
    const auto* bytes = static_cast<const uint8_t*>(packed.bytes());
    for (int64_t row = 0; row < out; ++row) {
      for (int64_t column = 0; column < in; ++column) {
        codes[static_cast<size_t>(row * in + column)] =
            static_cast<int8_t>(bytes[row * packed_width(in) * 4 + column] ^ kMiddle);
      }
    }
    return codes;
  }

  // Files with symmetric weights may hold zero points all the same.
  void require_symmetric(const std::string& module) const {
    const Tensor* zeros = find(module + ".weight_zero_point");
    if (!zeros) return;
    const auto* bytes = static_cast<const uint8_t*>(zeros->bytes());
    for (size_t i = 0; i < zeros->byte_count(); ++i) {
      if (bytes[i] != 0) {
        fail(ErrorCode::kCorruptFile,
             "[compressed-tensors] {}.weight_zero_point is not all zero, but the config says symmetric",
             module);
      }
    }
  }

  std::vector<float> scales(const std::string& module, int64_t out) const {
    const std::string name = module + std::string(kScale);
    const Tensor& stored = get(name);
    const int64_t count = stored.element_count();
    if (!is_floating(stored.dtype()) || (count != out && count != 1)) {
      fail(ErrorCode::kCorruptFile, "[compressed-tensors] {} is {} {}, expected floats, one or {} of them",
           name, dtype_name(stored.dtype()), shape_text(stored.shape()), out);
    }
    const Tensor wide = converted(stored, DType::kF32);
    std::vector<float> scales(static_cast<size_t>(out));
    for (int64_t row = 0; row < out; ++row) {
      const float scale = wide.data<float>()[count == 1 ? 0 : row];
      if (!std::isfinite(scale))
        fail(ErrorCode::kCorruptFile, "[compressed-tensors] {}: scale {} of {} is not finite", name, row,
             count);
      scales[static_cast<size_t>(row)] = scale;
    }
    return scales;
  }

  ActivationFormat activations_;
  Checkpoint& checkpoint_;
};

}  // namespace

void read_compressed_weights(ActivationFormat activations, std::string_view where, Checkpoint& checkpoint) {
  const Reader reader(activations, checkpoint);
  std::set<std::string> parts;
  for (const auto& [name, tensor] : checkpoint.files.tensors) {
    if (!name.ends_with(kScale)) continue;
    const std::string module = name.substr(0, name.size() - kScale.size());
    checkpoint.weights.emplace(module + ".weight", reader.read(module));
    for (const CompressedPart& part : kCompressedParts) parts.insert(module + std::string(part.ending));
    parts.insert(module + ".weight_zero_point");
  }
  if (parts.empty()) {
    fail(
        ErrorCode::kCorruptFile,
        "{} says compressed-tensors, but no weight has a {} beside it: the weights are not quantized; remove "
        "quantization_config from the config",
        where, kScale);
  }
  for (const auto& [name, tensor] : checkpoint.files.tensors) {
    if (!parts.contains(name)) checkpoint.weights.emplace(name, tensor);
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
