// lowbit's own dialect, for formats that no other one holds: safetensors with the tensors of a
// QuantizedTensor as they are used, and what the codes mean in config.json. Bytes: docs/formats/lowbit.md.
#pragma once

#include "checkpoint/checkpoint.h"
#include "format/codebook.h"

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

// What quantization_config says.
struct LowbitSettings {
  Format format = Format::kLog2;  // one with a codebook
  int bits = 4;
  int64_t group_size = 128;                                 // -1: whole rows
  float log_base = 2;                                       // of log2
  std::map<std::string, int64_t, std::less<>> group_sizes;  // of modules that have another
};

bool is_lowbit_config(const Json& object);  // quantization_config is one
// Errors name `where`: kCorruptFile for what is missing, of a wrong type or out of range, kUnsupported for a
// version or a format that is not known.
LowbitSettings read_lowbit_settings(const Json& object, std::string_view where);
Json lowbit_config_json(const LowbitSettings& settings);

// Moves all of `files` into checkpoint.weights; codes and scales stay mapped. kCorruptFile names the tensor
// that is missing or of another type or shape than the others and the settings say, or a scale or code that
// is not finite.
void read_lowbit_weights(const LowbitSettings& settings, std::string_view where, Checkpoint& checkpoint);
// "<module>.codes", ".scales", ".shape". They share the weight's storage.
std::vector<NamedTensor> lowbit_tensors(const std::string& module, const QuantizedTensor& weight);

}  // namespace lowbit
