// The compressed-tensors dialect: what llm-compressor saves and vLLM loads. Int8 rows, W8A8 (inputs rounded
// to int8, a scale per token or a grid of their own) and W8A16 (inputs stay floats); packed integers in
// groups or rows, W4A16; fp8 E4M3 with a scale per row or matrix. Bytes: docs/formats/compressed_tensors.md.
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
inline constexpr CompressedPart kCompressedParts[] = {{".weight", "codes"},
                                                      {".weight_packed", "codes"},
                                                      {".weight_shape", "shape"},
                                                      {".weight_scale", "scales"},
                                                      {".weight_zero_point", "zeros"},
                                                      {".weight_g_idx", "g_idx"},
                                                      {".input_scale", "activations"},
                                                      {".input_zero_point", "activations"}};

// What the products of some modules do with their inputs.
struct CompressedInputs {
  ActivationFormat activations = ActivationFormat::kNone;
  bool is_symmetric = true;  // of kInt8Static: no zero points

  bool operator==(const CompressedInputs&) const = default;
};
struct CompressedGroup {
  // Names of modules, "re:" and a pattern, or "Linear": all others.
  std::vector<std::string> targets = {"Linear"};
  CompressedInputs inputs = {};
};
// What the config says of quantized matrices. Their weights are alike in all groups.
struct CompressedSettings {
  Format format = Format::kInt8;  // or kAffine (packed), kFp8
  AffineOptions affine;           // of kAffine
  // Of kFp8: what is to become of inputs. lowbit keeps them as they are.
  enum class Fp8Inputs { kFloat, kPerToken, kStatic } fp8_inputs = Fp8Inputs::kFloat;
  std::vector<CompressedGroup> groups = {CompressedGroup{}};  // inputs of kInt8 alone
};

bool is_compressed_config(const Json& object);  // quantization_config (or compression_config) is one
// Errors name `where`: kUnsupported for schemes other than those above, with the key and what it says.
CompressedSettings read_compressed_settings(const Json& object, std::string_view where);
// quantization_config. ignore: names of linears that stay as they are.
Json compressed_config_json(const CompressedSettings& settings, Json ignore);

// Moves all of `files` into checkpoint.weights, decoding quantized modules. Errors name the tensor:
// kCorruptFile where sizes or types do not fit each other or the settings, a scale is not finite, or groups
// are not alike and none has a module.
void read_compressed_weights(const CompressedSettings& settings, std::string_view where,
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

// All tensors of a weight of kAffine (packed), whose columns stand in their own order, or of kFp8 with a
// scale per row.
std::vector<NamedTensor> compressed_tensors(const std::string& module, const QuantizedTensor& weight,
                                            bool is_symmetric);

}  // namespace lowbit
