#include "lowbit/inspect.h"

#include "base/fail.h"
#include "base/sha256.h"
#include "checkpoint/gptq.h"
#include "checkpoint/inspect_summary.h"
#include "format/codebook.h"
#include "format/int8.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

Json components_json(const Summary& summary) {
  Json list = Json::array();
  for (const auto& [name, component] : summary.components) {
    Json entry(Json::Object{
        {"component", name}, {"parameters", component.parameters}, {"bytes", component.total()}});
    for (const auto& [kind, bytes] : component.bytes) entry.set(std::string(kind) + "_bytes", bytes);
    list.push_back(std::move(entry));
  }
  list.push_back(Json::Object{{"component", "headers"}, {"parameters", 0}, {"bytes", summary.header_bytes}});
  return list;
}

// A weight whose codes are called so ("nf4 codes"), or null.
const QuantizedTensor* weight_with_codes(const InspectSource& source, std::string_view name) {
  for (const auto& [weight_name, weight] : source.checkpoint->weights) {
    const auto* quantized = std::get_if<QuantizedTensor>(&weight);
    if (quantized && quantized->format != Format::kAffine &&
        name == fmt::format("{} codes", format_name(quantized->format)))
      return quantized;
  }
  return nullptr;
}

NumberRange range_of_codes(const QuantizedTensor& weight) {
  if (weight.format == Format::kInt8) return {-kInt8Largest, kInt8Largest, 1, 1};
  NumberRange range{0, 0, 1, 1};
  for (const float value : codebook_of(weight)) {
    if (!std::isfinite(value)) continue;
    range.lowest = std::min(range.lowest, double{value});
    range.largest = std::max(range.largest, double{value});
    if (value > 0) range.smallest_normal = std::min(range.smallest_normal, double{value});
    if (value != 1) range.step_at_one = std::min(range.step_at_one, std::abs(1 - double{value}));
  }
  return range;
}

// Data types with what their numbers can be. Codes count steps of their group's scale.
Json number_formats_json(const InspectSource& source, const Summary& summary) {
  Json list = Json::array();
  for (const auto& [name, count] : summary.number_formats) {
    NumberRange range{0, 0, 1, 1};
    if (const std::optional<DType> dtype = parse_dtype(name)) {
      range = number_range(*dtype);
    } else if (const QuantizedTensor* weight = weight_with_codes(source, name)) {
      range = range_of_codes(*weight);
    } else {
      range.largest = std::ldexp(1, std::stoi(name)) - 1;  // "4-bit codes"
    }
    list.push_back(Json::Object{{"dtype", name},
                                {"tensors", count.tensors},
                                {"parameters", count.parameters},
                                {"bytes", count.bytes},
                                {"lowest", range.lowest},
                                {"largest", range.largest},
                                {"smallest_normal", range.smallest_normal},
                                {"step_at_one", range.step_at_one}});
  }
  return list;
}

Json waste_json(const Waste& waste, uint64_t& total) {
  Json list = Json::array();
  auto add = [&](uint64_t bytes, const char* reason) {
    if (bytes > 0) list.push_back(Json::Object{{"reason", reason}, {"bytes", bytes}});
    total += bytes;
  };
  add(waste.head, "lm_head.weight repeats the embedding, which the config ties to it");
  add(waste.biases, "biases of zeros that the architecture does not have");
  add(waste.g_idx, "g_idx says what column / group_size says (engines ask for the tensor all the same)");
  add(waste.buffers, "buffers that follow from the config");
  return list;
}

// Group size as the config would say it: the whole row is -1.
int shown_group_size(const QuantizedTensor& weight) {
  return weight.group_size >= weight.in_features ? -1 : static_cast<int>(weight.group_size);
}

std::vector<EngineModule> engine_modules(const Checkpoint& checkpoint) {
  std::vector<EngineModule> modules;
  for (const auto& [name, weight] : checkpoint.weights) {
    const auto* quantized = std::get_if<QuantizedTensor>(&weight);
    if (!quantized) continue;
    modules.push_back({name.substr(0, name.size() - 7),
                       quantized->out_features,
                       quantized->in_features,
                       {quantized->bits, shown_group_size(*quantized), quantized->zero_points.empty()},
                       !quantized->column_order.empty()});
  }
  return modules;
}

// ", activations int8-dynamic", "... int8-static and none"; nothing where inputs of all weights stay floats.
std::string activations_text(const Checkpoint& checkpoint) {
  std::set<std::string_view> names;
  for (const auto& [name, weight] : checkpoint.weights) {
    if (const auto* quantized = std::get_if<QuantizedTensor>(&weight))
      names.insert(activation_name(quantized->activations));
  }
  if (names.size() == 1 && *names.begin() == "none") return "";
  std::string text;
  for (const std::string_view name : names) text += fmt::format("{}{}", text.empty() ? "" : " and ", name);
  return ", activations " + text;
}

// "BF16", or "affine, 4 bits, group_size 128, symmetric"; "mixed" where modules differ.
std::string format_text(const InspectSource& source, const Summary& summary,
                        const std::vector<EngineModule>& modules) {
  if (modules.empty()) {
    std::string most = "empty";
    uint64_t bytes = 0;
    std::map<std::string, uint64_t> by_type;
    for (const auto& [key, count] : summary.dtypes) by_type[key.second] += count.bytes;
    for (const auto& [type, count] : by_type) {
      if (count > bytes) most = type, bytes = count;
    }
    return most;
  }
  std::set<std::string> bits, groups, kinds;
  for (const EngineModule& module : modules) {
    bits.insert(fmt::format("{}", module.affine.bits));
    groups.insert(fmt::format("{}", module.affine.group_size));
    kinds.insert(module.affine.sym ? "symmetric" : "asymmetric");
  }
  auto one = [](const std::set<std::string>& values) {
    return values.size() == 1 ? *values.begin() : std::string("mixed");
  };
  if (source.dialect != "gptq") {
    return fmt::format("{}, {} bits, group_size {}{}", source.checkpoint->quantization->declared_version,
                       one(bits), one(groups), activations_text(*source.checkpoint));
  }
  return fmt::format("affine, {} bits, group_size {}, {}", one(bits), one(groups), one(kinds));
}

// What modules share their options, with their number and parameters.
Json module_groups(const std::vector<EngineModule>& modules) {
  std::map<std::tuple<int, int, bool, bool>, std::pair<int64_t, int64_t>> groups;
  for (const EngineModule& module : modules) {
    auto& [count, parameters] =
        groups[{module.affine.bits, module.affine.group_size, module.affine.sym, module.is_act_order}];
    ++count;
    parameters += module.out_features * module.in_features;
  }
  Json list = Json::array();
  for (const auto& [key, value] : groups) {
    list.push_back(Json::Object{{"bits", std::get<0>(key)},
                                {"group_size", std::get<1>(key)},
                                {"sym", std::get<2>(key)},
                                {"group_order", std::get<3>(key) ? "act-order" : "sequential"},
                                {"modules", value.first},
                                {"parameters", value.second}});
  }
  return list;
}

Json engines_json(const Checkpoint& checkpoint, const std::vector<EngineModule>& modules) {
  const QuantizationInfo& info = *checkpoint.quantization;
  const std::string& version = info.found_version.empty() ? info.declared_version : info.found_version;
  const Json* dynamic = info.config.find("dynamic");
  Json list = Json::array();
  for (const EngineVerdict& verdict :
       engine_table(modules, version == "gptq_v2" ? GptqVersion::kV2 : GptqVersion::kV1,
                    dynamic && dynamic->size() > 0)) {
    list.push_back(
        Json::Object{{"engine", verdict.engine}, {"verdict", verdict.verdict}, {"reason", verdict.reason}});
  }
  return list;
}

Json ties_json(const InspectSource& source, const Summary& summary) {
  const Json* tie = source.config.find("tie_word_embeddings");
  const bool has_head =
      source.files.tensors.count("lm_head.weight") > 0 || source.files.tensors.count("lm_head.qweight") > 0;
  return Json::Object{{"tie_word_embeddings", tie && tie->is_bool() ? *tie : Json()},
                      {"head_in_file", has_head},
                      {"head_repeats_embedding", summary.waste.head > 0},
                      {"parameters_counted_once", summary.tied_parameters}};
}

void add_template(const InspectSource& source, Json& json) {
  const std::string text = source.chat_template;
  json.set("chat_template_sha256", source.has_chat_template ? Json(sha256_hex(text)) : Json());
  if (source.has_chat_template) json.set("chat_template_bytes", static_cast<int64_t>(text.size()));
}

Json texts(const std::vector<std::string>& lines, bool warnings) {
  static constexpr std::string_view kMark = "warning: ";
  Json list = Json::array();
  for (const std::string& line : lines) {
    const bool is_warning = std::string_view(line).substr(0, kMark.size()) == kMark;
    if (is_warning == warnings) list.push_back(is_warning ? line.substr(kMark.size()) : line);
  }
  return list;
}

std::string architecture_of(const Json& config) {
  if (const Json* list = config.find("architectures"); list && list->is_array() && list->size() > 0) {
    if (list->as_array()[0].is_string()) return list->as_array()[0].as_string();
  }
  if (const Json* type = config.find("model_type"); type && type->is_string()) return type->as_string();
  return "unknown";
}

double bits_each(uint64_t bytes, int64_t parameters) {
  return parameters > 0 ? 8.0 * static_cast<double>(bytes) / static_cast<double>(parameters) : 0;
}

}  // namespace

std::string inspect_json(const fs::path& path) {
  const InspectSource source = open_inspect_source(path);
  const Summary summary = summarize(source);
  std::vector<EngineModule> modules;
  if (source.checkpoint) modules = engine_modules(*source.checkpoint);
  const bool is_quantized = source.checkpoint && source.checkpoint->quantization;

  Json json = Json::object();
  json.set("path", path.string());
  json.set("architecture", architecture_of(source.config));
  json.set("parameters", summary.parameters);
  json.set("bytes", source.files.file_bytes);
  json.set("bits_per_weight", bits_each(summary.tensor_bytes, summary.parameters));
  if (is_quantized) {
    json.set("bits_per_quantized_weight", bits_each(summary.quantized_bytes, summary.quantized_parameters));
  }
  json.set("format", format_text(source, summary, modules));
  json.set("dialect", source.dialect);
  json.set("components", components_json(summary));
  Json dtypes = Json::array();
  for (const auto& [key, value] : summary.dtypes) {
    dtypes.push_back(Json::Object{{"kind", key.first},
                                  {"dtype", key.second},
                                  {"tensors", value.tensors},
                                  {"parameters", value.parameters},
                                  {"bytes", value.bytes}});
  }
  json.set("dtypes", std::move(dtypes));
  json.set("number_formats", number_formats_json(source, summary));
  json.set("ties", ties_json(source, summary));
  uint64_t waste_bytes = 0;
  Json waste = waste_json(summary.waste, waste_bytes);
  json.set("waste_bytes", waste_bytes);
  json.set("bytes_without_waste", source.files.file_bytes - waste_bytes);
  json.set("waste", std::move(waste));
  json.set("group_order", is_quantized ? Json(source.checkpoint->quantization->group_order) : Json());
  json.set("declared_version",
           is_quantized ? Json(source.checkpoint->quantization->declared_version) : Json());
  json.set("found_version", is_quantized ? Json(source.checkpoint->quantization->found_version) : Json());
  json.set("quantized_modules", module_groups(modules));
  json.set("engines", is_quantized && source.dialect == "gptq" ? engines_json(*source.checkpoint, modules)
                                                               : Json::array());
  add_template(source, json);
  Json files = Json::array();
  for (const SafetensorsFile& file : source.files.files) {
    files.push_back(Json::Object{{"name", file.path.filename().string()},
                                 {"bytes", file.file_bytes},
                                 {"header_bytes", file.header_bytes},
                                 {"tensors", static_cast<int64_t>(file.tensors.size())}});
  }
  json.set("files", std::move(files));
  std::vector<std::string> notes = source.notes;
  if (summary.tied_parameters > 0) {
    notes.push_back(fmt::format(
        "the head is the embedding (tie_word_embeddings): its {} parameters are counted once, there",
        summary.tied_parameters));
  }
  if (!summary.knows_all_parameters) {
    notes.push_back(
        "warning: parameters count dense tensors alone: lowbit does not know what the packed ones stand for");
  }
  json.set("notes", texts(notes, false));
  json.set("warnings", texts(notes, true));
  return json.dump(2);
}

}  // namespace lowbit
