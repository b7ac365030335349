// Model folders as people have them, read into named weights and written back. After reading nothing foreign
// is left: no zero point offsets, no packing orders, no quantization keys of a config.
#pragma once

#include "base/json.h"
#include "format/weight.h"
#include "io/shards.h"
#include "lowbit/format.h"
#include "lowbit/log.h"

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace lowbit {

// What the quantization_config of a checkpoint says, and what its tensors say.
struct QuantizationInfo {
  std::string dialect;           // "gptq"
  std::string declared_version;  // "gptq", "gptq_v2", ...: the config's word
  std::string
      found_version;     // by the values of the zero points: "gptq", "gptq_v2", or "" when they do not tell
  AffineOptions affine;  // the default of all modules
  bool desc_act = false;
  std::string group_order;  // "sequential" or "act-order" (some g_idx is not column / group_size)
  Json config;              // the object itself, as read
};

struct Checkpoint {
  std::filesystem::path folder;
  Json config;  // config.json without quantization_config
  std::optional<QuantizationInfo> quantization;
  NamedWeights weights;            // mapped; quantized modules under "<module>.weight"
  TensorFolder files;              // the raw tensors, for inspection
  std::vector<std::string> notes;  // "all-zero bias of model.layers.0.self_attn.o_proj ignored", ...
};

// Reads and checks a folder of any known dialect: plain Hugging Face, or GPTQ v1 and v2 as AutoGPTQ,
// GPTQModel, optimum and lowbit write them. Errors: kNotFound, kCorruptFile, kUnsupported (gptq_p, other
// methods: by name).
Checkpoint read_checkpoint(const std::filesystem::path& folder);

// How a quantized model is written. Tensors are streamed from `tensors`, which may be mapped.
struct CheckpointFiles {
  std::filesystem::path
      source;   // its tokenizer, template, generation config and licence are copied byte for byte
  Json config;  // config.json, complete
  std::optional<Json> quantize_config;  // quantize_config.json beside it
  std::vector<NamedTensor> tensors;
  std::string base_name = "model";
  uint64_t max_shard_bytes = 0;
  std::vector<std::pair<std::string, std::string>> metadata;  // of the safetensors files
};

// As configs name it: "float64", "float32", "float16", "bfloat16". kInternal for others.
const char* torch_name(DType dtype);
// "float32", "float16", "bfloat16"; nothing for others.
std::optional<DType> find_torch_float(std::string_view name);

// The config.json of a model of these tensors: `config` with its keys in their order, torch_dtype (or dtype,
// where that is the key) set to the type that most dense bytes have, and quantization_config set, or absent
// when `quantization` is null.
Json output_config(Json config, const std::vector<NamedTensor>& tensors, const Json& quantization);

// Writes all files into `folder`, which must exist and be empty of model files; config.json comes last. The
// caller makes the folder under another name and renames it. kInvalidArgument when it is the source or holds
// a model, kCorruptFile when a file to be copied is a link that leads out of the source.
void write_checkpoint(const std::filesystem::path& folder, const CheckpointFiles& files);

}  // namespace lowbit
