// The compressed-tensors dialect, of int8 rows: what llm-compressor saves and vLLM loads. W8A8 (inputs
// rounded to int8, a scale per token) and W8A16 (inputs stay floats). Bytes:
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
inline constexpr CompressedPart kCompressedParts[] = {{".weight", "codes"},
                                                      {".weight_packed", "codes"},
                                                      {".weight_shape", "codes"},
                                                      {".weight_scale", "scales"}};

bool is_compressed_config(const Json& object);  // quantization_config (or compression_config) is one
// What the products of its weights do with their inputs; the same for all of them. Errors name `where`:
// kUnsupported for schemes other than W8A8 with scales per token and W8A16, both with symmetric weights and a
// scale per row or matrix.
ActivationFormat read_compressed_settings(const Json& object, std::string_view where);
// Moves all of `files` into checkpoint.weights, decoding quantized modules. Errors name the tensor:
// kCorruptFile where sizes or types do not fit each other.
void read_compressed_weights(ActivationFormat activations, std::string_view where, Checkpoint& checkpoint);

// The tensors of a matrix of int8 rows [out, in]. W8A16 is packed four codes to a word, since vLLM has no
// other form for it.
struct CompressedMatrix {
  std::string module;
  ActivationFormat activations = ActivationFormat::kNone;
  DType scale_dtype = DType::kBF16;  // as dense tensors of the model
  int64_t in_features = 0;
};
std::vector<NamedTensor> compressed_tensors_beside(const CompressedMatrix& matrix,
                                                   std::span<const float> scales);
NamedTensor compressed_codes(const CompressedMatrix& matrix, int64_t out_features);  // without its bytes
Tensor compressed_code_bytes(const CompressedMatrix& matrix, const Tensor& codes);   // of I8 [out, in]
// quantization_config. ignore: names of linears that stay as they are.
Json compressed_config_json(ActivationFormat activations, Json ignore);

}  // namespace lowbit
