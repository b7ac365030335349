#include "base/fail.h"
#include "checkpoint/compressed_parts.h"
#include "checkpoint/dynamic_rules.h"
#include "format/bits.h"
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

// One number, as any type that holds it.
double number(const CompressedParts& parts, std::string_view ending, bool is_float) {
  const Tensor& stored = parts.get(ending);
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
  fail(ErrorCode::kCorruptFile, "[compressed-tensors] {} is {} {}, expected one {}", parts.name(ending),
       dtype_name(stored.dtype()), shape_text(stored.shape()),
       is_float ? "floating number" : "I8, I32 or I64");
}

float input_scale(const CompressedParts& parts) {
  const auto scale = static_cast<float>(number(parts, ".input_scale", true));
  if (scale > 0 && std::isfinite(scale)) return scale;
  fail(ErrorCode::kCorruptFile, "[compressed-tensors] {} is {}, expected a positive number",
       parts.name(".input_scale"), scale);
}

int input_zero_point(const CompressedParts& parts, bool is_symmetric) {
  constexpr std::string_view kEnding = ".input_zero_point";
  if (is_symmetric && !parts.find(kEnding)) return 0;
  const double zero_point = number(parts, kEnding, false);
  if (zero_point >= -128 && zero_point <= 127 && !(is_symmetric && zero_point != 0))
    return static_cast<int>(zero_point);
  fail(ErrorCode::kCorruptFile, "[compressed-tensors] {} is {}, expected {}", parts.name(kEnding), zero_point,
       is_symmetric ? "0, since the config says symmetric" : "-128 to 127");
}

QuantizedTensor read_int8(const CompressedParts& parts, const CompressedInputs& inputs) {
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
  weight.activations = inputs.activations;
  if (inputs.activations == ActivationFormat::kInt8Static) {
    set_static_inputs(weight, {input_scale(parts), input_zero_point(parts, inputs.is_symmetric)});
    return weight;
  }
  for (const std::string_view ending : {".input_scale", ".input_zero_point"}) {
    if (parts.find(ending))
      fail(ErrorCode::kCorruptFile,
           "[compressed-tensors] {} is there, but the config has no static inputs for it",
           parts.name(ending));
  }
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
  const Groups groups(settings.groups, where);
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
      weight = read_int8(parts, groups.inputs_of(module));
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
