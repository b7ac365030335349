// A model folder's tensors: one safetensors file, or shards with their index.json.
#pragma once

#include "io/safetensors.h"

namespace lowbit {

struct TensorFolder {
  std::vector<SafetensorsFile> files;
  std::map<std::string, Tensor, std::less<>> tensors;  // all of them, mapped
  uint64_t file_bytes = 0;                             // sizes of the files, headers included
};

// `model.safetensors`, else `model.safetensors.index.json` with its shards, else the only *.safetensors (or
// *.safetensors.index.json) of the folder; base_name, when not empty, replaces "model". An index may name only files
// inside the folder (no absolute path, no "..", no link that leads outside), each tensor once, and every tensor of a
// shard must be listed. A folder that holds only pickle files is refused with how to convert.
TensorFolder open_tensor_folder(const std::filesystem::path& folder, std::string_view base_name = {});

// Writes `base_name`.safetensors, or base_name-00001-of-0000N.safetensors with an index when the tensors exceed
// max_shard_bytes (0: never). A tensor is never split. Returns the file names.
std::vector<std::string> write_tensor_folder(const std::filesystem::path& folder, std::string_view base_name,
                                             const std::vector<NamedTensor>& tensors, uint64_t max_shard_bytes,
                                             std::vector<std::pair<std::string, std::string>> metadata = {});

// "4GB", "500MB", "2GiB", "123456" -> bytes; kInvalidArgument otherwise.
uint64_t parse_byte_size(std::string_view text);

}  // namespace lowbit
