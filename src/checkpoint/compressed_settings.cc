#include "base/fail.h"
#include "checkpoint/compressed.h"

#include <algorithm>
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

using Fp8Inputs = CompressedSettings::Fp8Inputs;

std::string_view text(const Json& object, std::string_view key, std::string_view otherwise) {
  const Json* value = present(object, key);
  return value && value->is_string() ? std::string_view(value->as_string()) : otherwise;
}

// As the package fills it in where it is not said.
std::string_view strategy_of(const Json& weights) {
  const Json* size = present(weights, "group_size");
  if (!size || !size->is_integer()) return text(weights, "strategy", "tensor");
  return text(weights, "strategy", size->as_integer() > 0 ? "group" : "channel");
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

CompressedInputs read_int8_inputs(const Json& group, const std::string& where) {
  const Json* found = present(group, "input_activations");
  if (!found) return {};
  const Json& inputs = *found;
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

Fp8Inputs read_fp8_inputs(const Json& group, const std::string& where) {
  const Json* inputs = present(group, "input_activations");
  if (!inputs) return Fp8Inputs::kFloat;
  const bool is_dynamic = is(*inputs, "dynamic", true, false),
             is_static = is(*inputs, "dynamic", false, false);
  if (!is(*inputs, "num_bits", 8, 8) || !is(*inputs, "type", "float", "int") ||
      !is(*inputs, "symmetric", true, true) || !(is_dynamic || is_static)) {
    refuse(where, "input_activations", *inputs, "none or symmetric floats of 8 bits beside weights of fp8");
  }
  return is_dynamic ? Fp8Inputs::kPerToken : Fp8Inputs::kStatic;
}

CompressedSettings read_group(const Json& group, const std::string& where) {
  if (!group.is_object())
    fail(ErrorCode::kCorruptFile, "{} is {}, expected an object", where, group.type_name());
  const Json* weights = present(group, "weights");
  if (!weights) refuse(where, "weights", Json(), "groups with quantized weights");
  if (const Json* outputs = present(group, "output_activations"))
    refuse(where, "output_activations", *outputs, "none");
  const std::string_view strategy = strategy_of(*weights);
  const bool is_row_scaled = strategy == "channel" || strategy == "tensor",
             is_symmetric = is(*weights, "symmetric", true, true);
  if (!is(*weights, "dynamic", false, false))
    refuse(where, "weights", *weights, "weights that are not dynamic");
  if (is(*weights, "type", "float", "int")) {
    if (!is(*weights, "num_bits", 8, 8) || !is_symmetric || !is_row_scaled)
      refuse(where, "weights", *weights,
             "float weights of 8 bits, symmetric, with strategy channel or tensor");
    return {.format = Format::kFp8, .fp8_inputs = read_fp8_inputs(group, where)};
  }
  const Json* bits = present(*weights, "num_bits");
  const int64_t count = bits && bits->is_integer() ? bits->as_integer() : bits ? 0 : 8;
  if (!is(*weights, "type", "int", "int") || (count != 2 && count != 4 && count != 8)) {
    refuse(where, "weights", *weights, "weights of type int with 2, 4 or 8 bits and of type float with 8");
  }
  if (count == 8 && is_symmetric && is_row_scaled)
    return {.groups = {{.inputs = read_int8_inputs(group, where)}}};
  if (!is_symmetric && !is(*weights, "symmetric", false, true))
    refuse(where, "weights", *weights, "weights that are symmetric or not");
  CompressedSettings settings{
      .format = Format::kAffine,
      .affine = {.bits = static_cast<int>(count), .group_size = -1, .sym = is_symmetric}};
  if (!is_row_scaled) {
    const Json* size = present(*weights, "group_size");
    constexpr int64_t kMost = int64_t{1} << 30;
    if (strategy != "group" || !size || !size->is_integer() || size->as_integer() < 1 ||
        size->as_integer() > kMost)
      refuse(where, "weights", *weights,
             "integers with strategy channel, tensor or group, and then a group_size");
    settings.affine.group_size = static_cast<int>(size->as_integer());
  }
  if (const Json* inputs = present(group, "input_activations"))
    refuse(where, "input_activations", *inputs, "none beside such weights");
  return settings;
}

bool have_like_weights(const CompressedSettings& a, const CompressedSettings& b) {
  return a.format == b.format && a.affine.bits == b.affine.bits &&
         a.affine.group_size == b.affine.group_size && a.affine.sym == b.affine.sym &&
         a.fp8_inputs == b.fp8_inputs;
}

constexpr std::string_view kMixed = "mixed-precision";  // of groups with formats of their own
// What files of such weights are called. The first is written.
std::vector<std::string_view> format_names(const CompressedSettings& settings,
                                           const CompressedInputs& inputs) {
  if (settings.format == Format::kFp8) return {"float-quantized", "naive-quantized"};
  if (settings.format == Format::kAffine) return {"pack-quantized"};
  if (inputs.activations == ActivationFormat::kNone)
    return {"pack-quantized", "int-quantized", "naive-quantized", kMixed};
  return {"int-quantized", "pack-quantized", "naive-quantized", kMixed};
}
std::vector<std::string_view> format_names(const CompressedSettings& settings) {
  const auto names = format_names(settings, settings.groups[0].inputs);
  for (const CompressedGroup& group : settings.groups) {
    if (format_names(settings, group.inputs)[0] != names[0])
      return {kMixed, "int-quantized", "pack-quantized", "naive-quantized"};
  }
  return names;
}

void check_format(const Json& object, std::string_view where, const CompressedSettings& settings) {
  const Json* format = present(object, "format");
  if (!format) return;
  constexpr std::string_view kKnown[] = {"int-quantized", "pack-quantized", "naive-quantized",
                                         "float-quantized", kMixed};
  const std::string_view name = text(object, "format", "");
  if (std::ranges::find(kKnown, name) == std::end(kKnown))
    refuse(where, "format", *format, "int-quantized, pack-quantized, naive-quantized and float-quantized");
  if (settings.format == Format::kAffine && (name == "int-quantized" || name == "naive-quantized")) {
    refuse(where, "format", *format,
           "pack-quantized where weights have groups, fewer bits than 8 or zero points");
  }
  const std::vector<std::string_view> names = format_names(settings);
  if (std::ranges::find(names, name) == names.end()) {
    fail(ErrorCode::kCorruptFile, "{}: format is {}, but its config_groups describe weights of {}", where,
         format->dump(), names[0]);
  }
}

}  // namespace

bool is_compressed_config(const Json& object) {
  const Json* method = present(object, "quant_method");
  if (!method) return present(object, "config_groups") != nullptr;
  return method->is_string() && method->as_string() == "compressed-tensors";
}

CompressedSettings read_compressed_settings(const Json& object, std::string_view where) {
  if (const Json* scheme = present(object, "kv_cache_scheme"))
    refuse(where, "kv_cache_scheme", *scheme, "none");
  if (const Json* sparsity = present(object, "sparsity_config")) {
    const Json* kind = present(*sparsity, "format");
    if (kind && kind->dump() != "\"dense\"") refuse(where, "sparsity_config", *sparsity, "dense weights");
  }
  const Json* groups = present(object, "config_groups");
  if (!groups || !groups->is_object() || groups->as_object().empty())
    fail(ErrorCode::kCorruptFile, "{}: config_groups is no object of groups", where);
  std::optional<CompressedSettings> settings;
  for (const auto& [name, group] : groups->as_object()) {
    const std::string place = fmt::format("{}: config_groups.{}", where, name);
    CompressedSettings found = read_group(group, place);
    found.groups[0].targets = read_targets(group, place);
    if (!settings) {
      settings = std::move(found);
    } else if (have_like_weights(*settings, found)) {
      settings->groups.push_back(std::move(found.groups[0]));
    } else {
      refuse(where, "config_groups", *groups, "groups that treat weights alike");
    }
  }
  check_format(object, where, *settings);
  return *settings;
}

Json compressed_config_json(const CompressedSettings& settings, Json ignore) {
  const bool is_float = settings.format == Format::kFp8, is_packed = settings.format == Format::kAffine;
  auto scheme = [&](int bits, bool symmetric, int group_size, bool dynamic, const char* strategy) {
    return Json(Json::Object{{"num_bits", bits},
                             {"type", is_float ? "float" : "int"},
                             {"symmetric", symmetric},
                             {"group_size", group_size > 0 ? Json(group_size) : Json()},
                             {"strategy", strategy},
                             {"dynamic", dynamic}});
  };
  const AffineOptions& affine = settings.affine;
  const Json weights = is_packed ? scheme(affine.bits, affine.sym, affine.group_size, false,
                                          affine.group_size > 0 ? "group" : "channel")
                                 : scheme(8, true, -1, false, "channel");
  Json groups = Json::object();
  for (const CompressedGroup& group : settings.groups) {
    Json targets = Json::array();
    for (const std::string& target : group.targets) targets.push_back(Json(target));
    const CompressedInputs& inputs = group.inputs;
    const bool is_dynamic = inputs.activations == ActivationFormat::kInt8Dynamic;
    groups.set(fmt::format("group_{}", groups.as_object().size()),
               Json::Object{{"targets", std::move(targets)},
                            {"weights", weights},
                            {"input_activations", inputs.activations == ActivationFormat::kNone
                                                      ? Json()
                                                      : scheme(8, inputs.is_symmetric, -1, is_dynamic,
                                                               is_dynamic ? "token" : "tensor")},
                            {"output_activations", Json()},
                            {"format", format_names(settings, inputs)[0]}});
  }
  return Json::Object{{"config_groups", std::move(groups)},   {"format", format_names(settings)[0]},
                      {"ignore", std::move(ignore)},          {"kv_cache_scheme", Json()},
                      {"quant_method", "compressed-tensors"}, {"quantization_status", "compressed"}};
}

}  // namespace lowbit
