// The bitsandbytes dialect: what transformers saves of a model loaded with load_in_4bit or load_in_8bit.
// Bytes: docs/formats/bitsandbytes.md.
#pragma once

#include "checkpoint/checkpoint.h"
#include "format/nested_scales.h"

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

// What belongs to a quantized matrix: "<module>" and this.
struct BnbPart {
  std::string_view ending, kind;
};
inline constexpr BnbPart kBnbParts[] = {{".weight", "codes"},
                                        {".weight.absmax", "scales"},
                                        {".weight.nested_absmax", "scales"},
                                        {".weight.quant_map", "codebook"},
                                        {".weight.nested_quant_map", "codebook"},
                                        {".weight.quant_state.bitsandbytes__nf4", "codebook"},
                                        {".weight.quant_state.bitsandbytes__fp4", "codebook"},
                                        {".SCB", "scales"},
                                        {".weight_format", "scales"}};

inline constexpr int kBnbRowFormat = 0;  // what ".weight_format" says of 8-bit rows

inline constexpr int kBnbGroupSize = 64;  // the configs that transformers writes know no other

bool is_bnb_config(const Json& object);  // quantization_config is one
// BitsAndBytesConfig: what reading needs of it, and what a quantized model is written with.
struct BnbSettings {
  Format format = Format::kNf4;       // or kFp4, kInt8
  float llm_int8_threshold = 6;       // of kInt8: inputs of this magnitude or more stay floats; 0: none
  bool use_double_quant = false;      // of 4 bits
  DType compute_dtype = DType::kF32;  // of 4 bits: what transformers computes in
  DType quant_storage = DType::kU8;   // of 4 bits: what the codes' bytes are called, see bnb_codes_shape
};
// Checks it. Errors name `where`: kCorruptFile for wrong types and for both widths at once, kUnsupported for
// llm_int8_has_fp16_weight, with which there are no codes.
BnbSettings read_bnb_settings(const Json& object, std::string_view where);

// Moves all of `files` into checkpoint.weights, decoding quantized modules. Scales that are encoded
// themselves are decoded; a matrix whose groups do not fit its rows in whole units of eight columns becomes
// dense F32, and a note says so. Errors name the tensor: kCorruptFile where sizes, types or the state do not
// fit each other or `format`.
void read_bnb_weights(Format format, std::string_view where, Checkpoint& checkpoint);
// The same for 8 bits: inputs of these weights are rounded to int8 too. kUnsupported for the layouts of
// weights that bitsandbytes had for GPUs of old.
void read_bnb_int8_weights(const BnbSettings& settings, std::string_view where, Checkpoint& checkpoint);

// What stands beside the codes "<module>.weight" of a matrix [out, in]: its scales (encoded themselves, if
// so), codebooks and state. dtype: what the matrix was, and what it becomes when it is decoded.
struct BnbMatrix {
  std::string module;
  Format format = Format::kNf4;
  int64_t group_size = 64, out_features = 0, in_features = 0;
  DType dtype = DType::kBF16;
  std::optional<NestedRounding> nested;  // of its scales; none: they are F32
};
std::vector<NamedTensor> bnb_tensors_beside(const BnbMatrix& matrix, std::span<const float> scales);
// Of the codes of a matrix, two a byte, whose bytes are called numbers of `storage` (FSDP shards those of one
// type alone). kUnsupported where they do not fill the last of them.
Shape bnb_codes_shape(const BnbMatrix& matrix, DType storage);

// The same for 8 bits; sizes: the largest magnitude of each row.
std::vector<NamedTensor> bnb_int8_tensors_beside(const std::string& module, std::span<const float> sizes);
// quantization_config, with every key of BitsAndBytesConfig. skip_modules: null where its default says it
// all.
Json bnb_config_json(const BnbSettings& settings, Json skip_modules);

}  // namespace lowbit
