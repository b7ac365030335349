#include "checkpoint/checkpoint.h"

#include "base/fail.h"
#include "checkpoint/bnb.h"
#include "checkpoint/compressed.h"
#include "checkpoint/gptq_read.h"
#include "checkpoint/lowbit_dialect.h"
#include "format/codebook.h"

#include <cstring>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxConfigBytes = 16 << 20;

bool ends_with(std::string_view text, std::string_view ending) {
  return text.size() >= ending.size() && text.substr(text.size() - ending.size()) == ending;
}

Json read_object(const fs::path& path) {
  Json json = parse_json(read_file(path, kMaxConfigBytes), path.string());
  if (!json.is_object()) {
    fail(ErrorCode::kCorruptFile, "{}: the file holds {}, expected an object", path.string(),
         json.type_name());
  }
  return json;
}

struct QuantizationSource {
  Json object;             // null: the model is not quantized
  std::string where;       // the file and key it came from
  bool is_beside = false;  // from a file of its own, not from config.json
};

QuantizationSource find_quantization(const fs::path& folder, const Json& config) {
  const std::string config_path = (folder / "config.json").string();
  for (const char* key : {"quantization_config", "compression_config"}) {
    if (const Json* value = config.find(key); value && !value->is_null())
      return {*value, fmt::format("{}: {}", config_path, key), false};
  }
  for (const char* name : {"quantize_config.json", "quant_config.json"}) {
    if (fs::exists(folder / name)) return {read_object(folder / name), (folder / name).string(), true};
  }
  return {};
}

// The file name that quantize_config.json or the config gives, else AutoGPTQ's default name when such a file
// is there.
std::string base_name(const fs::path& folder, const GptqSettings& settings, const Json& beside) {
  std::string name = settings.base_name;
  if (const Json* value = beside.find("model_file_base_name"); name.empty() && value && value->is_string()) {
    name = value->as_string();
  }
  // A plain name only; a wrong one is not searched for, since the file may have been renamed after it was
  // written.
  if (!name.empty() && name.find_first_of(std::string_view("/\\\0", 3)) == name.npos) {
    if (fs::exists(folder / (name + ".safetensors")) ||
        fs::exists(folder / (name + ".safetensors.index.json")))
      return name;
  }
  if (fs::exists(folder / "model.safetensors") || fs::exists(folder / "model.safetensors.index.json"))
    return "";
  name = fmt::format("gptq_model-{}bit-{}g", settings.affine.bits, settings.affine.group_size);
  return fs::exists(folder / (name + ".safetensors")) ? name : "";
}

// Buffers that old versions of transformers saved; they follow from the config.
bool is_derived_buffer(std::string_view name) {
  for (std::string_view ending :
       {".rotary_emb.inv_freq", "position_ids", ".attn.bias", ".attention.bias", ".masked_bias"}) {
    if (ends_with(name, ending)) return true;
  }
  return false;
}

void drop_buffers(Checkpoint& checkpoint) {
  int64_t dropped = 0;
  for (auto place = checkpoint.weights.begin(); place != checkpoint.weights.end();) {
    const Tensor* tensor = std::get_if<Tensor>(&place->second);
    const bool is_buffer = tensor && is_derived_buffer(place->first) &&
                           (!is_floating(tensor->dtype()) || ends_with(place->first, ".inv_freq") ||
                            tensor->shape().size() == 4);  // a causal mask [1, 1, n, n]
    if (tensor && !is_buffer && !is_floating(tensor->dtype())) {
      fail(ErrorCode::kUnsupported,
           "{}: the tensor {} is {}, and no dialect that lowbit reads has such a one",
           checkpoint.folder.string(), place->first, dtype_name(tensor->dtype()));
    }
    dropped += is_buffer;
    place = is_buffer ? checkpoint.weights.erase(place) : std::next(place);
  }
  if (dropped > 0)
    checkpoint.notes.push_back(fmt::format("{} derived buffers (inv_freq and the like) ignored", dropped));
}

void drop_tied_head(Checkpoint& checkpoint) {
  const Json* tie = checkpoint.config.find("tie_word_embeddings");
  if (!tie || !tie->is_bool() || !tie->as_bool()) return;
  const auto head = checkpoint.weights.find("lm_head.weight");
  const auto embedding = checkpoint.weights.find("model.embed_tokens.weight");
  if (head == checkpoint.weights.end() || embedding == checkpoint.weights.end()) return;
  const Tensor* a = std::get_if<Tensor>(&head->second);
  const Tensor* b = std::get_if<Tensor>(&embedding->second);
  if (a && b && a->dtype() == b->dtype() && a->shape() == b->shape() &&
      std::memcmp(a->bytes(), b->bytes(), a->byte_count()) == 0) {
    checkpoint.notes.push_back(fmt::format(
        "lm_head.weight repeats model.embed_tokens.weight ({} bytes); dropped, the config ties them",
        a->byte_count()));
    checkpoint.weights.erase(head);
  } else {
    checkpoint.notes.push_back(
        "warning: tie_word_embeddings is true, but lm_head.weight is another matrix than "
        "model.embed_tokens.weight; a tied model does not use it");
  }
}

// Of dialects that GPTQ's words do not describe.
void describe(QuantizationInfo& info, const char* dialect, Format format) {
  const bool is_int8 = format == Format::kInt8;
  info.dialect = dialect;
  info.declared_version = format_name(format);
  info.affine = {.bits = is_int8 ? 8 : 4, .group_size = is_int8 ? -1 : 64, .sym = true};
  info.group_order = "sequential";
}

}  // namespace

Checkpoint read_checkpoint(const fs::path& folder) {
  if (!fs::is_directory(folder)) {
    fail(ErrorCode::kNotFound,
         "{} is not a folder; give the path of a downloaded model folder with config.json and safetensors",
         folder.string());
  }
  Checkpoint checkpoint;
  checkpoint.folder = folder;
  checkpoint.config = read_object(folder / "config.json");
  const QuantizationSource source = find_quantization(folder, checkpoint.config);
  checkpoint.config.erase("quantization_config");
  checkpoint.config.erase("compression_config");

  std::optional<GptqSettings> settings;
  std::optional<BnbSettings> bnb;
  std::optional<std::vector<CompressedGroup>> compressed;
  std::optional<LowbitSettings> own;
  std::string base;
  if (is_bnb_config(source.object)) {
    bnb = read_bnb_settings(source.object, source.where);
  } else if (is_compressed_config(source.object)) {
    compressed = read_compressed_settings(source.object, source.where);
  } else if (is_lowbit_config(source.object)) {
    own = read_lowbit_settings(source.object, source.where);
  } else if (!source.object.is_null()) {
    settings = read_gptq_settings(source.object, source.where);
    const fs::path beside = folder / "quantize_config.json";
    base =
        base_name(folder, *settings, !source.is_beside && fs::exists(beside) ? read_object(beside) : Json());
  }
  checkpoint.files = open_tensor_folder(folder, base);
  bool has_codes = false;
  for (const auto& [name, tensor] : checkpoint.files.tensors)
    has_codes = has_codes || ends_with(name, ".qweight");
  if (settings && source.is_beside && !has_codes) {
    checkpoint.notes.push_back(source.where + " ignored: no tensor of the model is quantized");
    settings.reset();
  }
  if (!settings && has_codes) {
    fail(ErrorCode::kCorruptFile,
         "{}: the model has .qweight tensors, but neither config.json nor quantize_config.json says how "
         "they are quantized (bits, group_size, sym); bring quantize_config.json back",
         folder.string());
  }
  if (settings || bnb || compressed || own) checkpoint.quantization = {.config = source.object};
  if (settings) {
    QuantizationInfo& info = *checkpoint.quantization;
    info.dialect = "gptq";
    info.declared_version = settings->version;
    info.affine = settings->affine;
    info.desc_act = settings->desc_act;
    read_gptq_weights(*settings, source.where, checkpoint);
  } else if (bnb) {
    describe(*checkpoint.quantization, "bitsandbytes", bnb->format);
    if (bnb->format == Format::kInt8) {
      read_bnb_int8_weights(*bnb, source.where, checkpoint);
    } else {
      read_bnb_weights(bnb->format, source.where, checkpoint);
    }
  } else if (compressed) {
    describe(*checkpoint.quantization, "compressed-tensors", Format::kInt8);
    read_compressed_weights(*compressed, source.where, checkpoint);
  } else if (own) {
    describe(*checkpoint.quantization, "lowbit", own->format);
    checkpoint.quantization->affine = {
        .bits = own->bits, .group_size = static_cast<int>(own->group_size), .sym = true};
    read_lowbit_weights(*own, source.where, checkpoint);
  } else {
    for (const auto& [name, tensor] : checkpoint.files.tensors) checkpoint.weights.emplace(name, tensor);
  }
  drop_buffers(checkpoint);
  drop_tied_head(checkpoint);
  return checkpoint;
}

}  // namespace lowbit
