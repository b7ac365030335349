// What inspection looks at: a folder or a single file, opened as far as lowbit understands it.
#pragma once

#include "checkpoint/checkpoint.h"

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace lowbit {

struct InspectSource {
  Json config;  // null for a single file
  std::optional<Checkpoint>
      checkpoint;  // absent for a single file, and for a dialect that lowbit does not read
  TensorFolder files;
  std::string dialect;  // "huggingface", "gptq", "safetensors" (a single file), or what a foreign config says
  bool has_chat_template = false;
  std::string chat_template;
  std::vector<std::string> notes;  // those that begin with "warning: " are warnings
};

// Errors of read_checkpoint, except kUnsupported: then the tensors alone are looked at, and a warning says
// why.
InspectSource open_inspect_source(const std::filesystem::path& path);

// "<module>.weight" that is no tensor of the files. kNotFound says which names are similar.
const QuantizedTensor& find_quantized(const InspectSource& source, const std::string& name);
// A weight, as the values that its codes stand for where it is quantized, or any tensor of the files.
Tensor find_tensor(const InspectSource& source, const std::string& name);

}  // namespace lowbit
