#include "checkpoint/lowbit_dialect.h"

#include "base/fail.h"
#include "format/affine.h"
#include "format/bits.h"
#include "format/codebook.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace lowbit {
namespace {

constexpr std::string_view kCodes = ".codes", kScales = ".scales", kShape = ".shape";
constexpr int kVersion = 1;
constexpr int64_t kMostSize = std::numeric_limits<int32_t>::max();

const Json& member(const Json& object, std::string_view key, std::string_view where) {
  const Json* value = object.find(key);
  if (!value) fail(ErrorCode::kCorruptFile, "{} has no {}, which quant_method lowbit needs", where, key);
  return *value;
}

int64_t integer(const Json& value, std::string_view key, std::string_view where) {
  if (!value.is_integer())
    fail(ErrorCode::kCorruptFile, "{}: {} is {}, expected a whole number", where, key, value.dump());
  return value.as_integer();
}

int64_t group_size(const Json& value, std::string_view key, std::string_view where) {
  const int64_t size = integer(value, key, where);
  if (size != -1 && (size < 1 || size > kMostSize)) {
    fail(ErrorCode::kCorruptFile, "{}: {} is {}, expected -1 or a positive number of columns", where, key,
         size);
  }
  return size;
}

class Reader {
 public:
  Reader(const LowbitSettings& settings, std::string_view where, Checkpoint& checkpoint)
      : settings_(settings), where_(where), tensors_(checkpoint.files.tensors), checkpoint_(checkpoint) {
    if (settings.format == Format::kLog2) codebook_ = log_codebook({settings.bits, settings.log_base});
  }

  void read() {
    size_t modules = 0;
    for (const auto& [name, tensor] : tensors_) {
      if (!name.ends_with(kCodes)) continue;
      const std::string module = name.substr(0, name.size() - kCodes.size());
      checkpoint_.weights.insert_or_assign(module + ".weight", weight(module));
      ++modules;
    }
    for (const auto& [name, tensor] : tensors_) {
      if (!is_part(name)) checkpoint_.weights.emplace(name, tensor);
    }
    if (modules == 0) {
      fail(ErrorCode::kCorruptFile,
           "{} says quant_method lowbit, but no tensor is called <module>{}: the weights are not quantized; "
           "remove quantization_config from the config",
           where_, kCodes);
    }
    for (const auto& [module, size] : settings_.group_sizes) {
      if (!tensors_.contains(module + std::string(kCodes)))
        fail(ErrorCode::kCorruptFile, "{}: group_sizes names {}, but there is no tensor {}{}", where_, module,
             module, kCodes);
    }
  }

 private:
  bool is_part(std::string_view name) const {
    for (const std::string_view ending : {kCodes, kScales, kShape}) {
      if (name.ends_with(ending) &&
          tensors_.contains(std::string(name.substr(0, name.size() - ending.size())) + std::string(kCodes)))
        return true;
    }
    return false;
  }

  const Tensor& tensor(const std::string& name, DType dtype, const Shape& shape) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end())
      fail(ErrorCode::kCorruptFile, "[lowbit] {} is missing: the file is incomplete", name);
    if (found->second.dtype() != dtype || found->second.shape() != shape) {
      fail(ErrorCode::kCorruptFile,
           "[lowbit] {} is {} {}, expected {} {}: the config or the file is not its own", name,
           dtype_name(found->second.dtype()), shape_text(found->second.shape()), dtype_name(dtype),
           shape_text(shape));
    }
    return found->second;
  }

  QuantizedTensor weight(const std::string& module) const {
    const std::string shape_name = module + std::string(kShape);
    int64_t shape[2];
    std::memcpy(shape, tensor(shape_name, DType::kI64, {2}).bytes(), sizeof shape);
    const auto [out, in] = shape;
    if (out < 1 || in < 1 || out > kMostSize || in > kMostSize) {
      fail(ErrorCode::kCorruptFile, "[lowbit] {} says [{}, {}], expected two sizes up to {}", shape_name, out,
           in, kMostSize);
    }
    const auto own = settings_.group_sizes.find(module);
    const int64_t size = own == settings_.group_sizes.end() ? settings_.group_size : own->second;
    QuantizedTensor weight{.format = settings_.format,
                           .bits = settings_.bits,
                           .group_size = effective_group_size(in, static_cast<int>(size)),
                           .out_features = out,
                           .in_features = in};
    weight.codebook = codebook_;
    weight.codes = tensor(module + std::string(kCodes), DType::kI32, {packed_words(in, settings_.bits), out});
    require_numbers(module, weight);
    weight.scales = tensor(module + std::string(kScales), DType::kF32, {weight.groups(), out});
    for (int64_t i = 0; i < weight.scales.element_count(); ++i) {
      float scale;
      std::memcpy(&scale, static_cast<const char*>(weight.scales.bytes()) + i * 4, sizeof scale);
      if (!std::isfinite(scale))
        fail(ErrorCode::kCorruptFile, "[lowbit] {}{}: scale {} of {} is not finite", module, kScales, i,
             weight.scales.element_count());
    }
    return weight;
  }

  // fp8 has codes that are infinite or no number. Bytes of padding are 0.
  void require_numbers(const std::string& module, const QuantizedTensor& weight) const {
    const std::span<const uint8_t> codes(static_cast<const uint8_t*>(weight.codes.bytes()),
                                         weight.codes.byte_count());
    const size_t odd = first_odd_code(settings_.format, codes);
    if (odd < codes.size()) {
      fail(ErrorCode::kCorruptFile, "[lowbit] {}{}: byte {} is {:#04x}, which is no number in {}", module,
           kCodes, odd, codes[odd], format_name(settings_.format));
    }
  }

  const LowbitSettings& settings_;
  std::string_view where_;
  const std::map<std::string, Tensor, std::less<>>& tensors_;
  Checkpoint& checkpoint_;
  Tensor codebook_;
};

}  // namespace

bool is_lowbit_config(const Json& object) {
  const Json* method = object.is_object() ? object.find("quant_method") : nullptr;
  return method && method->is_string() && method->as_string() == "lowbit";
}

LowbitSettings read_lowbit_settings(const Json& object, std::string_view where) {
  const int64_t version = integer(member(object, "version", where), "version", where);
  if (version != kVersion) {
    fail(ErrorCode::kUnsupported, "{}: version is {}; this lowbit reads {}, so a newer one has written it",
         where, version, kVersion);
  }
  LowbitSettings settings;
  const Json& name = member(object, "format", where);
  const std::optional<Format> format = name.is_string() ? find_format(name.as_string()) : std::nullopt;
  if (!format || !has_codebook(*format)) {
    fail(ErrorCode::kUnsupported,
         "{}: format is {}, expected \"nf4\", \"fp4\", \"fp8\", \"fp8_e5m2\" or \"log2\"", where,
         name.dump());
  }
  settings.format = *format;
  settings.group_size = group_size(member(object, "group_size", where), "group_size", where);
  const int64_t bits = integer(member(object, "bits", where), "bits", where);
  const std::optional<int> known = bits_of(*format);
  if (known ? bits != *known : bits < 3 || bits > 8) {
    fail(ErrorCode::kCorruptFile, "{}: bits is {}, expected {} with format {}", where, bits,
         known ? fmt::format("{}", *known) : "3 to 8", format_name(*format));
  }
  settings.bits = static_cast<int>(bits);
  if (*format == Format::kLog2) {
    const Json& base = member(object, "log_base", where);
    if (!base.is_number()) {
      fail(ErrorCode::kCorruptFile, "{}: log_base is {}, expected a number", where, base.dump());
    }
    settings.log_base = static_cast<float>(base.as_number());
    try {
      validate(LogOptions{settings.bits, settings.log_base});
    } catch (const Error& error) {
      fail(ErrorCode::kCorruptFile, "{}: {}", where, error.what());
    }
  }
  if (const Json* sizes = object.find("group_sizes")) {
    if (!sizes->is_object())
      fail(ErrorCode::kCorruptFile, "{}: group_sizes is no object of modules and sizes", where);
    for (const auto& [module, size] : sizes->as_object())
      settings.group_sizes.emplace(module, group_size(size, "group_sizes." + module, where));
  }
  return settings;
}

Json lowbit_config_json(const LowbitSettings& settings) {
  Json json = Json::object();
  json.set("quant_method", "lowbit");
  json.set("version", kVersion);
  json.set("format", format_name(settings.format));
  json.set("bits", settings.bits);
  json.set("group_size", settings.group_size);
  if (settings.format == Format::kLog2) json.set("log_base", double{settings.log_base});
  if (!settings.group_sizes.empty()) {
    Json sizes = Json::object();
    for (const auto& [module, size] : settings.group_sizes) sizes.set(module, size);
    json.set("group_sizes", sizes);
  }
  return json;
}

void read_lowbit_weights(const LowbitSettings& settings, std::string_view where, Checkpoint& checkpoint) {
  Reader(settings, where, checkpoint).read();
}

std::vector<NamedTensor> lowbit_tensors(const std::string& module, const QuantizedTensor& weight) {
  Tensor shape = Tensor::allocate(DType::kI64, {2});
  shape.mutable_data<int64_t>()[0] = weight.out_features;
  shape.mutable_data<int64_t>()[1] = weight.in_features;
  return {{module + std::string(kCodes), weight.codes},
          {module + std::string(kScales), weight.scales},
          {module + std::string(kShape), shape}};
}

}  // namespace lowbit
