#include "base/fail.h"
#include "checkpoint/compressed.h"
#include "checkpoint/dynamic_rules.h"
#include "format/int8.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

namespace lowbit {
namespace {

constexpr std::string_view kScale = ".weight_scale";
// A packed code is 128 more than the code.
constexpr uint8_t kMiddle = 128;

int64_t packed_width(int64_t in) { return (in + 3) / 4; }

// Which group has a module: by its name, by a pattern, or as any linear, in this order.
class Groups {
 public:
  Groups(const std::vector<CompressedGroup>& groups, std::string_view where)
      : groups_(groups), where_(where) {
    for (const CompressedGroup& group : groups) {
      Json patterns = Json::object();
      for (const std::string& target : group.targets) {
        if (target.starts_with(kPattern)) patterns.set(target.substr(kPattern.size()), Json::object());
      }
      patterns_.emplace_back(patterns, where);
    }
  }

  const CompressedInputs& inputs_of(const std::string& module) const {
    const auto is_like_first = [&](const CompressedGroup& group) {
      return group.inputs == groups_[0].inputs;
    };
    if (std::all_of(groups_.begin(), groups_.end(), is_like_first)) return groups_[0].inputs;
    if (const CompressedGroup* group = with_target(module)) return group->inputs;
    for (size_t i = 0; i < groups_.size(); ++i) {
      if (patterns_[i].match(module).overrides) return groups_[i].inputs;
    }
    if (const CompressedGroup* group = with_target("Linear")) return group->inputs;
    fail(ErrorCode::kCorruptFile,
         "{}: config_groups differ in what they do with inputs, but {} is in none of them", where_, module);
  }

 private:
  const CompressedGroup* with_target(std::string_view name) const {
    for (const CompressedGroup& group : groups_) {
      if (std::find(group.targets.begin(), group.targets.end(), name) != group.targets.end()) return &group;
    }
    return nullptr;
  }

  static constexpr std::string_view kPattern = "re:";
  const std::vector<CompressedGroup>& groups_;
  std::string_view where_;
  std::vector<DynamicRules> patterns_;
};

class Reader {
 public:
  Reader(const std::vector<CompressedGroup>& groups, std::string_view where, Checkpoint& checkpoint)
      : groups_(groups, where), checkpoint_(checkpoint) {}

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
    const CompressedInputs& inputs = groups_.inputs_of(module);
    weight.activations = inputs.activations;
    if (inputs.activations == ActivationFormat::kInt8Static) {
      set_static_inputs(weight, {input_scale(module), input_zero_point(module, inputs.is_symmetric)});
      return weight;
    }
    for (const char* ending : {".input_scale", ".input_zero_point"}) {
      if (find(module + ending))
        fail(ErrorCode::kCorruptFile,
             "[compressed-tensors] {}{} is there, but the config has no static inputs for it", module,
             ending);
    }
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

  // One number, as any type that holds it.
  double number(const std::string& name, bool is_float) const {
    const Tensor& stored = get(name);
    if (stored.element_count() == 1 && is_floating(stored.dtype()) && is_float) return float_at(stored, 0);
    if (stored.element_count() == 1 && !is_float) {
      switch (stored.dtype()) {
        case DType::kI8:
          return *stored.data<int8_t>();
        case DType::kI32:
          return *stored.data<int32_t>();
        case DType::kI64:
          return static_cast<double>(*stored.data<int64_t>());
        default:
          break;
      }
    }
    fail(ErrorCode::kCorruptFile, "[compressed-tensors] {} is {} {}, expected one {}", name,
         dtype_name(stored.dtype()), shape_text(stored.shape()),
         is_float ? "floating number" : "I8, I32 or I64");
  }

  float input_scale(const std::string& module) const {
    const std::string name = module + ".input_scale";
    const auto scale = static_cast<float>(number(name, true));
    if (scale > 0 && std::isfinite(scale)) return scale;
    fail(ErrorCode::kCorruptFile, "[compressed-tensors] {} is {}, expected a positive number", name, scale);
  }

  int input_zero_point(const std::string& module, bool is_symmetric) const {
    const std::string name = module + ".input_zero_point";
    if (is_symmetric && !find(name)) return 0;
    const double zero_point = number(name, false);
    if (zero_point >= -128 && zero_point <= 127 && !(is_symmetric && zero_point != 0))
      return static_cast<int>(zero_point);
    fail(ErrorCode::kCorruptFile, "[compressed-tensors] {} is {}, expected {}", name, zero_point,
         is_symmetric ? "0, since the config says symmetric" : "-128 to 127");
  }

  Groups groups_;
  Checkpoint& checkpoint_;
};

}  // namespace

void read_compressed_weights(const std::vector<CompressedGroup>& groups, std::string_view where,
                             Checkpoint& checkpoint) {
  const Reader reader(groups, where, checkpoint);
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
  if (matrix.activations == ActivationFormat::kInt8Static) {
    Tensor scale = Tensor::allocate(DType::kF32, {1}), zero_point = Tensor::allocate(DType::kI8, {1});
    scale.mutable_data<float>()[0] = matrix.input_grid.scale;
    zero_point.mutable_data<int8_t>()[0] = static_cast<int8_t>(matrix.input_grid.zero_point);
    tensors.push_back({matrix.module + ".input_scale", converted(scale, matrix.scale_dtype)});
    if (matrix.has_zero_point) tensors.push_back({matrix.module + ".input_zero_point", zero_point});
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
