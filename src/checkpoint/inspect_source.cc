#include "checkpoint/inspect_source.h"

#include "base/fail.h"

namespace lowbit {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxTextBytes = 64 << 20;

// The template of chat_template.jinja, else of tokenizer_config.json (a text, or a list of named ones:
// "default").
bool find_chat_template(const fs::path& folder, std::string& text) {
  if (fs::exists(folder / "chat_template.jinja")) {
    text = read_file(folder / "chat_template.jinja", kMaxTextBytes);
    return true;
  }
  if (!fs::exists(folder / "tokenizer_config.json")) return false;
  const fs::path path = folder / "tokenizer_config.json";
  const Json config = parse_json(read_file(path, kMaxTextBytes), path.string(),
                                 {.allow_duplicate_keys = true, .allow_nan = true});
  const Json* value = config.find("chat_template");
  if (value && value->is_array()) {
    for (const Json& named : value->as_array()) {
      const Json* name = named.find("name");
      if (name && name->is_string() && name->as_string() == "default") {
        value = named.find("template");
        break;
      }
    }
  }
  if (!value || !value->is_string()) return false;
  text = value->as_string();
  return true;
}

std::string foreign_dialect(const Json& config) {
  for (const char* key : {"quantization_config", "compression_config"}) {
    const Json* object = config.find(key);
    const Json* method = object ? object->find("quant_method") : nullptr;
    if (method && method->is_string()) return method->as_string().substr(0, 100);
    if (object && !object->is_null()) return "unknown";
  }
  return "huggingface";
}

void warn_of_strays(const fs::path& folder, InspectSource& source) {
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (entry.path().extension() == ".safetensors") {
      bool is_known = false;
      for (const SafetensorsFile& file : source.files.files)
        is_known = is_known || file.path.filename() == name;
      if (!is_known)
        source.notes.push_back("warning: " + name +
                               " is no part of the model, but some engines read every such file");
    }
    if (is_pickle_name(entry.path()))
      source.notes.push_back("warning: " + name + " is a pickle; lowbit never reads it");
  }
}

[[noreturn]] void not_found(const InspectSource& source, const std::string& name) {
  std::string near;
  int count = 0;
  for (const auto& [other, tensor] : source.files.tensors) {
    if (other.find(name) == std::string::npos || ++count > 5) continue;
    near += (near.empty() ? "" : ", ") + other;
  }
  fail(ErrorCode::kNotFound, "there is no tensor \"{}\" among {}{}", name, source.files.tensors.size(),
       near.empty() ? std::string() : "; similar: " + near);
}

}  // namespace

InspectSource open_inspect_source(const fs::path& path) {
  InspectSource source;
  if (!fs::is_directory(path)) {
    SafetensorsFile file = open_safetensors(path);
    for (const NamedTensor& named : file.tensors) source.files.tensors.emplace(named.name, named.tensor);
    source.files.file_bytes = file.file_bytes;
    source.files.files.push_back(std::move(file));
    source.dialect = "safetensors";
    return source;
  }
  try {
    source.checkpoint = read_checkpoint(path);
    source.files = source.checkpoint->files;
    source.config = source.checkpoint->config;
    source.notes = source.checkpoint->notes;
    source.dialect =
        source.checkpoint->quantization ? source.checkpoint->quantization->dialect : "huggingface";
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kUnsupported) throw;
    source.notes.push_back(std::string("warning: lowbit cannot run this model: ") + error.what());
    source.files = open_tensor_folder(path);
    const fs::path config = path / "config.json";
    source.config = parse_json(read_file(config, kMaxTextBytes), config.string());
    source.dialect = foreign_dialect(source.config);
  }
  if (const Json* map = source.config.find("auto_map"); map && !map->is_null()) {
    source.notes.push_back(
        "warning: config.json has an auto_map: other tools may run Python code of this model; lowbit never "
        "does");
  }
  source.has_chat_template = find_chat_template(path, source.chat_template);
  warn_of_strays(path, source);
  return source;
}

const QuantizedTensor& find_quantized(const InspectSource& source, const std::string& name) {
  if (!source.checkpoint) not_found(source, name);
  const auto weight = source.checkpoint->weights.find(name);
  if (weight == source.checkpoint->weights.end()) not_found(source, name);
  return std::get<QuantizedTensor>(weight->second);
}

Tensor find_tensor(const InspectSource& source, const std::string& name) {
  if (source.checkpoint) {
    const auto weight = source.checkpoint->weights.find(name);
    if (weight != source.checkpoint->weights.end()) {
      const auto* quantized = std::get_if<QuantizedTensor>(&weight->second);
      return quantized ? dequantized(*quantized) : std::get<Tensor>(weight->second);
    }
  }
  const auto raw = source.files.tensors.find(name);
  if (raw == source.files.tensors.end()) not_found(source, name);
  return raw->second;
}

}  // namespace lowbit
