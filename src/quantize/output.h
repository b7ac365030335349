// What is written: the tensors of the result, known beforehand to the byte, and its configs.
#pragma once

#include "checkpoint/gptq.h"
#include "quantize/settings.h"
#include "quantize/source_model.h"

#include <map>
#include <string>
#include <vector>

namespace lowbit {

struct OutputTensor {
  std::string name;
  std::string component;  // "embedding", "head", "attention", "mlp", "norms", "codes", "scales", "zeros",
                          // "g_idx", "other"
  uint64_t bytes = 0;
};

// In the order in which they are written, in the dialect gptq.
std::vector<OutputTensor> output_layout(const SourceModel& source, const QuantizationSettings& settings);

using QuantizedModules = std::map<std::string, QuantizedTensor, std::less<>>;

// Everything that write_checkpoint needs. `options` settled.
CheckpointFiles output_files(const SourceModel& source, const QuantizationSettings& settings,
                             const QuantizedModules& modules, const QuantizeOptions& options);

// Names of the modules that stay dense: those that the options leave, and those around the blocks.
Json dense_modules(const SourceModel& source, const QuantizationSettings& settings);
// The same for BitsAndBytesConfig: null where transformers' own rule, all but the head, says it.
Json bnb_skipped_modules(const SourceModel& source, const QuantizationSettings& settings);
// Bits of codes, scales and zero points, in a file, per weight of the quantized modules.
double bits_per_weight(const CheckpointFiles& files, const QuantizationSettings& settings);

GptqVersion output_version(const QuantizeOptions& options);
std::vector<EngineVerdict> output_engines(const QuantizationSettings& settings,
                                          const QuantizeOptions& options);
// Whether a module's columns are stored out of order (an act-order file).
bool is_act_order(const ModuleSettings& settings);

}  // namespace lowbit
