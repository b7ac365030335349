#include "quantize/source_model.h"

#include "base/fail.h"

#include <cstring>

namespace lowbit {
namespace {

bool is_true(const Json* value) { return value && value->is_bool() && value->as_bool(); }

bool same_bytes(const Tensor& a, const Tensor& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         std::memcmp(a.bytes(), b.bytes(), a.byte_count()) == 0;
}

}  // namespace

SourceModel load_source(const std::filesystem::path& folder) {
  SourceModel source;
  source.checkpoint = read_checkpoint(folder);
  Checkpoint& checkpoint = source.checkpoint;
  if (checkpoint.quantization) {
    fail(ErrorCode::kUnsupported,
         "{} is quantized already ({}, {} bits): quantize the original model, or make it dense first with "
         "lowbit convert "
         "--to bfloat16",
         folder.string(), checkpoint.quantization->dialect, checkpoint.quantization->affine.bits);
  }
  source.model = Model::create(checkpoint.config, checkpoint.weights);
  const auto head = checkpoint.files.tensors.find(source.model.head().module + ".weight");
  if (!source.model.is_tied() || head == checkpoint.files.tensors.end()) return source;
  const Tensor* embedding = std::get_if<Tensor>(&source.model.embedding_table());
  if (embedding && same_bytes(head->second, *embedding)) {
    // The embedding may itself be what the file calls the head.
    source.drops_head = head->second.bytes() != embedding->bytes();
  } else if (is_true(checkpoint.config.find("tie_word_embeddings"))) {
    checkpoint.config.set("tie_word_embeddings", false);
    source.model = Model::create(checkpoint.config, checkpoint.weights);
    source.warnings.push_back(
        fmt::format("{} differs from the embedding although config.json ties them: both are kept and "
                    "tie_word_embeddings becomes false",
                    head->first));
  }
  return source;
}

std::vector<NamedTensor> kept_tensors(const SourceModel& source) {
  const std::string head = source.model.head().module + ".weight";
  std::vector<NamedTensor> tensors;
  for (const SafetensorsFile& file : source.checkpoint.files.files) {
    for (const NamedTensor& entry : file.tensors) {
      if (!(source.drops_head && entry.name == head)) tensors.push_back(entry);
    }
  }
  return tensors;
}

uint64_t safetensors_bytes(const std::filesystem::path& folder) {
  uint64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".safetensors") bytes += entry.file_size();
  }
  return bytes;
}

}  // namespace lowbit
