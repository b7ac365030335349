// The safetensors container: 8 bytes little-endian header length, a JSON header, then the bytes of the tensors.
// Bytes and names only; what they mean is the business of checkpoint/.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/files.h"
#include "tensor/tensor.h"

namespace lowbit {

struct NamedTensor {
  std::string name;
  Tensor tensor;
};

struct SafetensorsFile {
  std::filesystem::path path;
  std::shared_ptr<const MappedFile> file;
  std::vector<NamedTensor> tensors;  // mapped, in the order of their bytes
  std::vector<std::pair<std::string, std::string>> metadata;
};

// Maps the file and checks all of it: header length, UTF-8 JSON without duplicate keys, dtypes, shapes without
// overflow, offsets that are contiguous and cover the whole buffer. kCorruptFile names the file, tensor and both
// numbers; kUnsupported names a dtype that lowbit does not know. Pickle files are refused with how to convert them.
SafetensorsFile open_safetensors(const std::filesystem::path& path);
// The same checks over bytes in memory (for fuzzing); tensors borrow from `owner`.
SafetensorsFile parse_safetensors(std::shared_ptr<const void> owner, std::span<const std::byte> bytes,
                                  const std::filesystem::path& name);

// Writes header and tensors in the order given, complete or not at all (AtomicFile). `metadata` gets "format": "pt".
void write_safetensors(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors,
                       std::vector<std::pair<std::string, std::string>> metadata = {});

}  // namespace lowbit
