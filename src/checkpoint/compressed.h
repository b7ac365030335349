// The compressed-tensors dialect, of int8 rows: what llm-compressor saves and vLLM loads. W8A8 (inputs
// rounded to int8, dynamically or on a grid of their own) and W8A16 (inputs stay floats). Bytes:
// docs/formats/compressed_tensors.md.
#pragma once

#include "checkpoint/checkpoint.h"

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

// What belongs to a quantized matrix: "<module>" and this.
struct CompressedPart {
  std::string_view ending, kind;
};
inline constexpr CompressedPart kCompressedParts[] = {
    {".weight", "codes"},        {".weight_packed", "codes"}, {".weight_shape", "codes"},
    {".weight_scale", "scales"}, {".input_scale", "scales"},  {".input_zero_point", "zeros"}};

bool is_compressed_config(const Json& object);  // quantization_config (or compression_config) is one

// What the products of some modules do with their inputs.
struct CompressedInputs {
  ActivationFormat activations = ActivationFormat::kNone;
  bool is_symmetric = true;  // of kInt8Static: no zero points

  bool operator==(const CompressedInputs&) const = default;
};
struct CompressedGroup {
  std::vector<std::string> targets;  // names of modules, "re:" and a pattern, or "Linear": all others
  CompressedInputs inputs;
};
// Errors name `where`: kUnsupported for schemes other than W8A8 and W8A16 with symmetric weights and a scale
// per row or matrix.
std::vector<CompressedGroup> read_compressed_settings(const Json& object, std::string_view where);
// Moves all of `files` into checkpoint.weights, decoding quantized modules. Errors name the tensor:
// kCorruptFile where sizes or types do not fit each other, or groups are not alike and none has a module.
void read_compressed_weights(const std::vector<CompressedGroup>& groups, std::string_view where,
                             Checkpoint& checkpoint);

// The tensors of a matrix of int8 rows [out, in]. W8A16 is packed four codes to a word, since vLLM has no
// other form for it.
struct CompressedMatrix {
  std::string module;
  ActivationFormat activations = ActivationFormat::kNone;
  DType scale_dtype = DType::kBF16;  // as dense tensors of the model
  int64_t in_features = 0;
  InputGrid input_grid = {};  // of kInt8Static
  bool has_zero_point = false;
};
std::vector<NamedTensor> compressed_tensors_beside(const CompressedMatrix& matrix,
                                                   std::span<const float> scales);
NamedTensor compressed_codes(const CompressedMatrix& matrix, int64_t out_features);  // without its bytes
Tensor compressed_code_bytes(const CompressedMatrix& matrix, const Tensor& codes);   // of I8 [out, in]
// quantization_config. float_inputs: modules whose inputs stay floats where those of all others do not.
// ignore: names of linears that stay as they are.
Json compressed_config_json(const CompressedInputs& inputs, const std::vector<std::string>& float_inputs,
                            Json ignore);

}  // namespace lowbit
