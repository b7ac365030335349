// What is written: the tensors of the result, known beforehand to the byte, and its configs.
#pragma once

#include "checkpoint/bnb.h"
#include "checkpoint/compressed.h"
#include "checkpoint/gptq.h"
#include "quantize/settings.h"
#include "quantize/source_model.h"

#include <map>
#include <span>
#include <string>
#include <vector>

namespace lowbit {

struct OutputTensor {
  std::string name;
  std::string component;  // as component_of and part_of of checkpoint/tensor_kinds.h say
  uint64_t bytes = 0;
};

// `options` settled. What is written has these bytes; where scales are encoded themselves up to 22 less for
// each matrix, since their offset is written in digits.
std::vector<OutputTensor> output_layout(const SourceModel& source, const QuantizationSettings& settings,
                                        const QuantizeOptions& options);

// Of a run for which is_rounded() holds: what a matrix is in the file, codes, of which only dtype and shape
// are known yet, and all beside them. scales: of each group or row, as the dialect keeps them.
struct RoundedMatrix {
  std::string module;
  DType dtype = DType::kBF16;  // before
  int64_t out_features = 0, in_features = 0;
  ActivationFormat activations = ActivationFormat::kNone;  // of format int8
  InputGrid input_grid = {};                               // of kInt8Static
  bool has_zero_point = false;
};
struct MatrixTensors {
  NamedTensor codes;
  std::vector<NamedTensor> beside;
};
MatrixTensors rounded_tensors(const RoundedMatrix& matrix, std::span<const float> scales,
                              const QuantizeOptions& options);
CompressedMatrix compressed_matrix(const RoundedMatrix& matrix);

using QuantizedModules = std::map<std::string, QuantizedTensor, std::less<>>;

// Everything that write_checkpoint needs. `options` settled.
CheckpointFiles output_files(const SourceModel& source, const QuantizationSettings& settings,
                             const QuantizedModules& modules, const QuantizeOptions& options);

// Of dialect bitsandbytes. source: the type of the matrices.
BnbSettings bnb_settings(const QuantizeOptions& options, DType source);

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
