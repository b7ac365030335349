// The model that is to be quantized: its folder, checked, with the head's ties sorted out.
#pragma once

#include "checkpoint/checkpoint.h"
#include "model/model.h"

#include <string>
#include <vector>

namespace lowbit {

struct SourceModel {
  Checkpoint checkpoint;  // config says whether the head is tied, truthfully
  Model model;
  bool drops_head =
      false;  // a tied model stores its head a second time, bit for bit: it is left out of the result
  std::vector<std::string> warnings;
};

// kUnsupported when the folder is quantized already. A tied model that stores a head of its own with other
// values (a merged adapter) is taken as untied, with a warning.
SourceModel load_source(const std::filesystem::path& folder);

// Its tensors in the order of their files; not the second copy of a tied head.
std::vector<NamedTensor> kept_tensors(const SourceModel& source);
// Of all safetensors files in a folder.
uint64_t safetensors_bytes(const std::filesystem::path& folder);

}  // namespace lowbit
