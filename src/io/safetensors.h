// The safetensors container: 8 bytes little-endian header length, a JSON header, then the bytes of the
// tensors (docs/formats/safetensors.md). Bytes and names only; what they mean is the business of checkpoint/.
#pragma once

#include "base/files.h"
#include "tensor/tensor.h"

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace lowbit {

struct NamedTensor {
  std::string name;
  Tensor tensor;
  // For writing: makes the bytes at the moment they are written, so that no more than one such tensor is in
  // memory; `tensor` then only gives dtype and shape (Tensor::borrow without data).
  std::function<Tensor()> make = {};
};

struct SafetensorsFile {
  std::filesystem::path path;
  std::shared_ptr<const MappedFile> file;
  std::vector<NamedTensor> tensors;  // mapped, in the order of their bytes
  std::vector<std::pair<std::string, std::string>> metadata;
  uint64_t file_bytes = 0;
  uint64_t header_bytes =
      0;  // the length field, the JSON and its padding: file_bytes less the tensors' bytes
};

// Maps the file and checks all of it: header length, UTF-8 JSON without duplicate keys, dtypes, shapes
// without overflow, offsets that are contiguous and cover the whole buffer. kCorruptFile names the file,
// tensor and both numbers; kUnsupported names a dtype that lowbit does not know. Pickle files are refused
// with how to convert them. A tensor that does not lie at a multiple of its element size (files with an
// unpadded header) is copied to the heap.
SafetensorsFile open_safetensors(const std::filesystem::path& path);
// The same checks over bytes in memory; tensors borrow from `owner`.
SafetensorsFile parse_safetensors(std::shared_ptr<const void> owner, std::span<const std::byte> bytes,
                                  const std::filesystem::path& name);

// Writes header and tensors, complete or not at all (AtomicFile), in the order given, but those that are
// whole cache lines (64 bytes) long first, so that each of them begins at one; and of the others larger
// elements first, should one come to lie at an address that is no multiple of its element size. The header is
// padded. `metadata` gets "format": "pt". Names must be unique.
void write_safetensors(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors,
                       std::vector<std::pair<std::string, std::string>> metadata = {});

// Whether the name ends like a pickle (.bin .pt .pth .ckpt .pkl), and the error that says how to convert one.
bool is_pickle_name(const std::filesystem::path& path);
[[noreturn]] void refuse_pickle(const std::filesystem::path& path);

}  // namespace lowbit
