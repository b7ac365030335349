#include "base/fail.h"
#include "checkpoint/checkpoint.h"

#include <algorithm>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxCopiedBytes = 256 << 20;

bool starts_with(std::string_view text, std::string_view beginning) {
  return text.substr(0, beginning.size()) == beginning;
}

// What belongs to a model besides weights and config: how text becomes ids, how it generates, how its states
// become embeddings, and its licence.
bool is_copied(std::string_view name) {
  if (name.size() > 4 && name.substr(name.size() - 4) == ".tmp") return false;
  for (std::string_view beginning :
       {"tokenizer", "vocab", "merges", "chat_template", "LICENSE", "LICENCE", "NOTICE"}) {
    if (starts_with(name, beginning)) return true;
  }
  return name == "modules.json" || name == "sentence_bert_config.json" ||
         name == "config_sentence_transformers.json" || name == "special_tokens_map.json" ||
         name == "added_tokens.json" || name == "generation_config.json" || name == "spiece.model" ||
         name == "USE_POLICY.md";
}

void copy_files(const fs::path& source, const fs::path& folder) {
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(source)) {
    const std::string name = entry.path().filename().string();
    if (is_copied(name) && entry.is_regular_file()) names.push_back(name);
  }
  for (const auto& [part, extension] :
       {std::pair{"additional_chat_templates", ".jinja"}, {"1_Pooling", ".json"}}) {
    if (!fs::is_directory(source / part)) continue;
    fs::create_directory(folder / part);
    for (const fs::directory_entry& entry : fs::directory_iterator(source / part)) {
      if (entry.path().extension() != extension || !entry.is_regular_file() || entry.is_symlink()) continue;
      write_file_atomically(folder / part / entry.path().filename(),
                            read_file(entry.path(), kMaxCopiedBytes));
    }
  }
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) {
    write_file_atomically(folder / name, read_file(file_inside(source, name), kMaxCopiedBytes));
  }
}

void check_target(const fs::path& folder, const fs::path& source) {
  if (!fs::is_directory(folder))
    fail(ErrorCode::kNotFound, "the folder {} to write into is not there", folder.string());
  std::error_code ignored;
  if (!source.empty() && fs::equivalent(folder, source, ignored)) {
    fail(ErrorCode::kInvalidArgument,
         "{} is both the source and the output; a model cannot be written over itself", folder.string());
  }
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (entry.path().extension() == ".safetensors" || name == "config.json" ||
        name == "quantize_config.json") {
      fail(ErrorCode::kInvalidArgument,
           "{} already holds {}; engines read every such file, so write into an empty folder",
           folder.string(), name);
    }
  }
}

}  // namespace

const char* torch_name(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return "float64";
    case DType::kF32:
      return "float32";
    case DType::kF16:
      return "float16";
    case DType::kBF16:
      return "bfloat16";
    default:
      fail(ErrorCode::kInternal, "{} is no floating type", dtype_name(dtype));
  }
}

std::optional<DType> find_torch_float(std::string_view name) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16})
    if (torch_name(dtype) == name) return dtype;
  return std::nullopt;
}

Json output_config(Json config, const std::vector<NamedTensor>& tensors, const Json& quantization) {
  // The type of most bytes that are neither codes nor scales.
  uint64_t bytes[4] = {};
  for (const NamedTensor& named : tensors) {
    const std::string_view name = named.name;
    const bool is_scales = name.size() > 7 && name.substr(name.size() - 7) == ".scales";
    if (!is_scales && is_floating(named.tensor.dtype())) {
      bytes[static_cast<size_t>(named.tensor.dtype())] += named.tensor.byte_count();
    }
  }
  const uint64_t* most = std::max_element(bytes, bytes + 4);
  if (*most > 0) {
    const char* name = torch_name(static_cast<DType>(most - bytes));
    const bool has_new_key =
        config.find("dtype") != nullptr;  // transformers 5 writes dtype, older ones torch_dtype
    if (has_new_key) config.set("dtype", name);
    if (!has_new_key || config.find("torch_dtype")) config.set("torch_dtype", name);
  }
  if (quantization.is_null()) {
    config.erase("quantization_config");
  } else {
    config.set("quantization_config", quantization);
  }
  return config;
}

void write_checkpoint(const fs::path& folder, const CheckpointFiles& files) {
  check_target(folder, files.source);
  if (!files.source.empty()) copy_files(files.source, folder);
  write_tensor_folder(folder, files.base_name, files.tensors, files.max_shard_bytes, files.metadata);
  if (files.quantize_config)
    write_file_atomically(folder / "quantize_config.json", files.quantize_config->dump(2) + "\n");
  // Last: a folder without config.json is no model to anyone.
  write_file_atomically(folder / "config.json", files.config.dump(2) + "\n");
}

}  // namespace lowbit
