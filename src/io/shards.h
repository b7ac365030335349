// A model folder's tensors: one safetensors file, or shards with their index.json.
#pragma once

#include "io/safetensors.h"

namespace lowbit {

struct TensorFolder {
  std::vector<SafetensorsFile> files;
  std::map<std::string, Tensor, std::less<>> tensors;  // all of them, mapped
  uint64_t file_bytes = 0;                             // sizes of the files, headers included

  // These bytes of a file, or of none, will not be needed soon: see MappedFile::release.
  void release(const void* bytes, size_t count) const;
};

// `model.safetensors`, else `model.safetensors.index.json` with its shards, else the only
// *.safetensors.index.json, else the only *.safetensors of the folder; base_name, when not empty, replaces
// "model" and nothing else is tried. An index may name only files inside the folder (no absolute path, no
// "..", no link that leads outside), each tensor once, and every tensor of a shard must be listed. A folder
// that holds only pickle files is refused with how to convert.
TensorFolder open_tensor_folder(const std::filesystem::path& folder, std::string_view base_name = {});

// The shard files that an index.json's text names, in the order of their first mention, with the tensors of
// each. kCorruptFile when it is no index, or when a name has a folder in it.
std::vector<std::pair<std::string, std::vector<std::string>>> parse_shard_index(std::string_view text,
                                                                                std::string_view where);

// folder/name when that is a regular file, or a link to one inside the folder (or, in the layout of the
// Hugging Face cache, snapshots/X/name -> ../../blobs/Y). kNotFound when it is not there, kCorruptFile when
// it leads elsewhere.
std::filesystem::path file_inside(const std::filesystem::path& folder, const std::string& name);

// Writes `base_name`.safetensors, or base_name-00001-of-0000N.safetensors with an index when the tensors
// exceed max_shard_bytes (0: never). A tensor is never split. Returns the names of all files written, the
// index included.
std::vector<std::string> write_tensor_folder(const std::filesystem::path& folder, std::string_view base_name,
                                             const std::vector<NamedTensor>& tensors,
                                             uint64_t max_shard_bytes,
                                             std::vector<std::pair<std::string, std::string>> metadata = {});

}  // namespace lowbit
