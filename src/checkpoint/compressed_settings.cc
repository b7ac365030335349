#include "base/fail.h"
#include "checkpoint/compressed.h"

#include <optional>

namespace lowbit {
namespace {

const Json* present(const Json& object, std::string_view key) {
  const Json* value = object.is_object() ? object.find(key) : nullptr;
  return value && !value->is_null() ? value : nullptr;
}

// Whether object[key] is `expected`; a key that is not there is its default.
bool is(const Json& object, std::string_view key, const Json& expected, const Json& otherwise) {
  const Json* value = present(object, key);
  return (value ? *value : otherwise).dump() == expected.dump();
}

[[noreturn]] void refuse(std::string_view where, std::string_view what, const Json& found,
                         std::string_view expected) {
  fail(ErrorCode::kUnsupported, "{}: {} is {}; of compressed-tensors lowbit reads {}", where, what,
       found.dump().substr(0, 300), expected);
}

ActivationFormat read_group(const Json& group, const std::string& where) {
  if (!group.is_object())
    fail(ErrorCode::kCorruptFile, "{} is {}, expected an object", where, group.type_name());
  const Json* weights = present(group, "weights");
  if (!weights) refuse(where, "weights", Json(), "groups with quantized weights");
  const bool is_row_scaled =
      is(*weights, "strategy", "channel", "tensor") || is(*weights, "strategy", "tensor", "tensor");
  if (!is(*weights, "num_bits", 8, 8) || !is(*weights, "type", "int", "int") ||
      !is(*weights, "symmetric", true, true) || !is(*weights, "dynamic", false, false) || !is_row_scaled) {
    refuse(where, "weights", *weights, "symmetric int weights of 8 bits with strategy channel or tensor");
  }
  if (const Json* outputs = present(group, "output_activations"))
    refuse(where, "output_activations", *outputs, "none");
  const Json* inputs = present(group, "input_activations");
  if (!inputs) return ActivationFormat::kNone;
  if (!is(*inputs, "num_bits", 8, 8) || !is(*inputs, "type", "int", "int") ||
      !is(*inputs, "symmetric", true, true) || !is(*inputs, "dynamic", true, false) ||
      !is(*inputs, "strategy", "token", "tensor")) {
    refuse(where, "input_activations", *inputs,
           "none, or symmetric int of 8 bits, dynamic, with strategy token");
  }
  return ActivationFormat::kInt8Dynamic;
}

}  // namespace

bool is_compressed_config(const Json& object) {
  const Json* method = present(object, "quant_method");
  if (!method) return present(object, "config_groups") != nullptr;
  return method->is_string() && method->as_string() == "compressed-tensors";
}

ActivationFormat read_compressed_settings(const Json& object, std::string_view where) {
  const Json* format = present(object, "format");
  if (format && format->dump() != "\"int-quantized\"" && format->dump() != "\"pack-quantized\"" &&
      format->dump() != "\"naive-quantized\"") {
    refuse(where, "format", *format, "int-quantized, naive-quantized and pack-quantized");
  }
  if (const Json* scheme = present(object, "kv_cache_scheme"))
    refuse(where, "kv_cache_scheme", *scheme, "none");
  if (const Json* sparsity = present(object, "sparsity_config")) {
    const Json* kind = present(*sparsity, "format");
    if (kind && kind->dump() != "\"dense\"") refuse(where, "sparsity_config", *sparsity, "dense weights");
  }
  const Json* groups = present(object, "config_groups");
  if (!groups || !groups->is_object() || groups->as_object().empty())
    fail(ErrorCode::kCorruptFile, "{}: config_groups is no object of groups", where);
  std::optional<ActivationFormat> activations;
  for (const auto& [name, group] : groups->as_object()) {
    const ActivationFormat found = read_group(group, fmt::format("{}: config_groups.{}", where, name));
    if (activations && *activations != found)
      refuse(where, "config_groups", *groups, "groups that treat their inputs alike");
    activations = found;
  }
  return *activations;
}

Json compressed_config_json(ActivationFormat activations, Json ignore) {
  const bool rounds_inputs = activations == ActivationFormat::kInt8Dynamic;
  auto scheme = [](bool dynamic, const char* strategy) {
    return Json::Object{{"num_bits", 8},        {"type", "int"},        {"symmetric", true},
                        {"group_size", Json()}, {"strategy", strategy}, {"dynamic", dynamic}};
  };
  const char* format = rounds_inputs ? "int-quantized" : "pack-quantized";
  const Json group = Json::Object{{"targets", Json::Array{"Linear"}},
                                  {"weights", scheme(false, "channel")},
                                  {"input_activations", rounds_inputs ? Json(scheme(true, "token")) : Json()},
                                  {"output_activations", Json()},
                                  {"format", format}};
  return Json::Object{{"config_groups", Json::Object{{"group_0", group}}},
                      {"format", format},
                      {"ignore", std::move(ignore)},
                      {"kv_cache_scheme", Json()},
                      {"quant_method", "compressed-tensors"},
                      {"quantization_status", "compressed"}};
}

}  // namespace lowbit
