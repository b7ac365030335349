#include "checkpoint/gptq_settings.h"

#include "base/fail.h"
#include "format/bits.h"

#include <algorithm>
#include <optional>

namespace lowbit {
namespace {

constexpr size_t kMaxKeys = 1000;

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : static_cast<char>(c);
  });
  return text;
}

// The first of the names that is there and not null.
const Json* first_of(const Json& object, std::initializer_list<std::string_view> names) {
  for (std::string_view name : names) {
    if (const Json* value = object.find(name); value && !value->is_null()) return value;
  }
  return nullptr;
}

std::optional<std::string> text_of(const Json& object, std::initializer_list<std::string_view> names,
                                   std::string_view where) {
  const Json* value = first_of(object, names);
  if (!value) return std::nullopt;
  if (!value->is_string()) {
    fail(ErrorCode::kCorruptFile, "{}: {} is {}, expected a string", where, *names.begin(),
         value->type_name());
  }
  return value->as_string();
}

bool bool_of(const Json& object, std::string_view name, bool otherwise, std::string_view where) {
  const Json* value = first_of(object, {name});
  if (!value) return otherwise;
  if (!value->is_bool()) {
    fail(ErrorCode::kCorruptFile, "{}: {} is {}, expected true or false", where, name, value->type_name());
  }
  return value->as_bool();
}

int64_t integer_of(const Json& value, std::string_view name, std::string_view where) {
  if (!value.is_integer()) {
    fail(ErrorCode::kCorruptFile, "{}: {} is {}, expected an integer", where, name,
         value.is_number() ? value.dump() : value.type_name());
  }
  return value.as_integer();
}

void read_affine(const Json& object, std::string_view where, AffineOptions& options) {
  if (const Json* value = first_of(object, {"bits", "w_bit"})) {
    const int64_t bits = integer_of(*value, "bits", where);
    if (bits == 5 || bits == 6 || bits == 7) {
      fail(ErrorCode::kUnsupported, "{}: bits is {}; lowbit reads 2, 3, 4 and 8", where, bits);
    }
    if (bits < 0 || bits > 8 || !is_supported_bits(static_cast<int>(bits))) {
      fail(ErrorCode::kCorruptFile, "{}: bits is {}, expected 2, 3, 4 or 8", where, bits);
    }
    options.bits = static_cast<int>(bits);
  }
  if (const Json* value = first_of(object, {"group_size", "q_group_size"})) {
    const int64_t size = integer_of(*value, "group_size", where);
    if (size != -1 && (size <= 0 || size > INT32_MAX)) {
      fail(ErrorCode::kCorruptFile, "{}: group_size is {}, expected -1 or a positive number of columns",
           where, size);
    }
    options.group_size = static_cast<int>(size);
  }
  options.sym = bool_of(object, "sym", options.sym, where);
}

void check_method(const Json& object, std::string_view where) {
  for (std::string_view key : {"quant_method", "method"}) {
    const std::optional<std::string> text = text_of(object, {key}, where);
    if (!text || lower(*text) == "gptq") continue;
    fail(ErrorCode::kUnsupported,
         "{}: {} is \"{}\"; lowbit reads models that are not quantized, and \"gptq\"", where, key,
         text->substr(0, 100));
  }
  if (!first_of(object, {"quant_method", "method"})) {
    // Keys that only other methods use; without a method only GPTQ was ever written.
    for (std::string_view key :
         {"load_in_4bit", "load_in_8bit", "config_groups", "zero_point", "weight_block_size"}) {
      if (first_of(object, {key})) {
        fail(ErrorCode::kUnsupported,
             "{}: no quant_method, and the key \"{}\", which GPTQ does not have; lowbit reads models "
             "that are not quantized, and \"gptq\"",
             where, key);
      }
    }
  }
  if (bool_of(object, "is_marlin_format", false, where)) {
    fail(ErrorCode::kUnsupported,
         "{}: the weights are packed for the Marlin kernel; lowbit reads the formats gptq and gptq_v2",
         where);
  }
  if (const auto pack = text_of(object, {"pack_dtype"}, where); pack && *pack != "int32") {
    fail(ErrorCode::kUnsupported, "{}: pack_dtype is \"{}\"; lowbit reads int32", where,
         pack->substr(0, 100));
  }
}

std::string read_version(const Json& object, std::string_view where) {
  std::string version = "gptq";
  for (std::string_view key : {"format", "checkpoint_format"}) {
    const std::optional<std::string> text = text_of(object, {key}, where);
    if (!text) continue;
    version = lower(*text);
    if (version == "gptq_p") {
      fail(ErrorCode::kUnsupported, "{}: {} is \"gptq_p\" (planar packing); lowbit reads gptq and gptq_v2",
           where, key);
    }
    if (version != "gptq" && version != "gptq_v2") {
      fail(ErrorCode::kUnsupported, "{}: {} is \"{}\"; lowbit reads gptq and gptq_v2", where, key,
           text->substr(0, 100));
    }
  }
  return version;
}

std::string read_quantizer(const Json& object) {
  const Json* meta = object.find("meta");
  const Json* quantizer = meta ? meta->find("quantizer") : nullptr;
  if (!quantizer) return "";
  if (quantizer->is_string()) return quantizer->as_string();
  std::string text;
  if (quantizer->is_array()) {
    for (const Json& element : quantizer->as_array()) {
      if (element.is_string()) text += (text.empty() ? "" : ", ") + element.as_string();
    }
  }
  return text;
}

}  // namespace

bool GptqSettings::subtracts_from_words() const {
  return lower(quantizer).find("gptqmodel") != std::string::npos;
}

AffineOptions GptqSettings::module_options(std::string_view module, std::string_view where) const {
  AffineOptions options = affine;
  if (dynamic.empty()) return options;
  if (const Json* overrides = dynamic.match(module).overrides) {
    read_affine(*overrides, fmt::format("{}: the dynamic rule of {}", where, module), options);
  }
  return options;
}

GptqSettings read_gptq_settings(const Json& object, std::string_view where) {
  if (!object.is_object()) {
    fail(ErrorCode::kCorruptFile, "{}: the quantization config is {}, expected an object", where,
         object.type_name());
  }
  if (object.size() > kMaxKeys) {
    fail(ErrorCode::kCorruptFile, "{}: the quantization config has {} keys, at most {} make sense", where,
         object.size(), kMaxKeys);
  }
  Json keys = Json::object();  // AutoGPTQ lowers the keys as well
  for (const auto& [key, value] : object.as_object()) {
    const std::string name = lower(key);
    if (!keys.find(name)) keys.set(name, value);
  }
  check_method(keys, where);
  GptqSettings settings;
  settings.version = read_version(keys, where);
  if (!first_of(keys, {"bits", "w_bit"})) {
    fail(ErrorCode::kCorruptFile, "{}: the key \"bits\" is missing", where);
  }
  settings.affine.group_size = -1;  // AutoGPTQ's default when the key is absent
  read_affine(keys, where, settings.affine);
  settings.desc_act = bool_of(keys, "desc_act", false, where);
  settings.base_name = text_of(keys, {"model_file_base_name"}, where).value_or("");
  settings.quantizer = read_quantizer(keys);
  if (const Json* dynamic = keys.find("dynamic")) settings.dynamic = DynamicRules(*dynamic, where);
  return settings;
}

}  // namespace lowbit
