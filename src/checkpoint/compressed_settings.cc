#include "base/fail.h"
#include "checkpoint/compressed.h"

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

std::vector<std::string> read_targets(const Json& group, const std::string& where) {
  const Json* targets = present(group, "targets");
  std::vector<std::string> names;
  const bool is_list = targets && targets->is_array();
  for (const Json& target : is_list ? targets->as_array() : Json::Array{}) {
    if (target.is_string()) names.push_back(target.as_string());
  }
  if (!is_list || names.empty() || names.size() != targets->as_array().size())
    fail(ErrorCode::kCorruptFile, "{}: targets is {}, expected a list of names", where,
         targets ? targets->dump().substr(0, 300) : "missing");
  return names;
}

CompressedInputs read_inputs(const Json& inputs, const std::string& where) {
  const bool is_symmetric = is(inputs, "symmetric", true, true),
             is_dynamic = is(inputs, "dynamic", true, false) && is(inputs, "strategy", "token", "tensor"),
             is_static = is(inputs, "dynamic", false, false) && is(inputs, "strategy", "tensor", "tensor");
  if (!is(inputs, "num_bits", 8, 8) || !is(inputs, "type", "int", "int") || !(is_dynamic || is_static) ||
      !(is_symmetric || (is_static && is(inputs, "symmetric", false, true)))) {
    refuse(
        where, "input_activations", inputs,
        "none, or int of 8 bits: dynamic with strategy token and symmetric, or static with strategy tensor");
  }
  return {is_dynamic ? ActivationFormat::kInt8Dynamic : ActivationFormat::kInt8Static, is_symmetric};
}

CompressedInputs read_group(const Json& group, const std::string& where) {
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
  return inputs ? read_inputs(*inputs, where) : CompressedInputs{};
}

}  // namespace

bool is_compressed_config(const Json& object) {
  const Json* method = present(object, "quant_method");
  if (!method) return present(object, "config_groups") != nullptr;
  return method->is_string() && method->as_string() == "compressed-tensors";
}

std::vector<CompressedGroup> read_compressed_settings(const Json& object, std::string_view where) {
  const Json* format = present(object, "format");
  if (format && format->dump() != "\"int-quantized\"" && format->dump() != "\"pack-quantized\"" &&
      format->dump() != "\"naive-quantized\"" && format->dump() != "\"mixed-precision\"") {
    refuse(where, "format", *format, "int-quantized, naive-quantized, pack-quantized and mixed-precision");
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
  std::vector<CompressedGroup> result;
  for (const auto& [name, group] : groups->as_object()) {
    const std::string place = fmt::format("{}: config_groups.{}", where, name);
    const CompressedInputs inputs = read_group(group, place);
    result.push_back({read_targets(group, place), inputs});
  }
  return result;
}

Json compressed_config_json(const CompressedInputs& inputs, const std::vector<std::string>& float_inputs,
                            Json ignore) {
  const auto scheme = [](bool is_symmetric, bool is_dynamic, const char* strategy) {
    return Json(Json::Object{{"num_bits", 8},
                             {"type", "int"},
                             {"symmetric", is_symmetric},
                             {"group_size", Json()},
                             {"strategy", strategy},
                             {"dynamic", is_dynamic}});
  };
  const auto format_of = [](ActivationFormat activations) {
    return activations == ActivationFormat::kNone ? "pack-quantized" : "int-quantized";
  };
  const auto group = [&](Json targets, const CompressedInputs& of) {
    const bool is_dynamic = of.activations == ActivationFormat::kInt8Dynamic;
    return Json(Json::Object{
        {"targets", std::move(targets)},
        {"weights", scheme(true, false, "channel")},
        {"input_activations", of.activations == ActivationFormat::kNone
                                  ? Json()
                                  : scheme(of.is_symmetric, is_dynamic, is_dynamic ? "token" : "tensor")},
        {"output_activations", Json()},
        {"format", format_of(of.activations)}});
  };
  Json groups = Json::Object{{"group_0", group(Json::Array{"Linear"}, inputs)}};
  if (!float_inputs.empty()) {
    Json targets = Json::array();
    for (const std::string& module : float_inputs) targets.push_back(Json(module));
    groups.set("group_1", group(std::move(targets), {}));
  }
  return Json::Object{{"config_groups", std::move(groups)},
                      {"format", float_inputs.empty() ? format_of(inputs.activations) : "mixed-precision"},
                      {"ignore", std::move(ignore)},
                      {"kv_cache_scheme", Json()},
                      {"quant_method", "compressed-tensors"},
                      {"quantization_status", "compressed"}};
}

}  // namespace lowbit
