// The bitsandbytes dialect of 4 bits: what transformers saves of a model loaded with load_in_4bit. Bytes:
// docs/formats/bitsandbytes.md.
#pragma once

#include "checkpoint/checkpoint.h"

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

// What belongs to a quantized matrix: "<module>.weight" and this.
struct BnbPart {
  std::string_view ending, kind;
};
inline constexpr BnbPart kBnbParts[] = {{"", "codes"},
                                        {".absmax", "scales"},
                                        {".nested_absmax", "scales"},
                                        {".quant_map", "codebook"},
                                        {".nested_quant_map", "codebook"},
                                        {".quant_state.bitsandbytes__nf4", "codebook"},
                                        {".quant_state.bitsandbytes__fp4", "codebook"}};

inline constexpr int kBnbGroupSize = 64;  // the configs that transformers writes know no other

bool is_bnb_config(const Json& object);  // quantization_config is one
// Checks BitsAndBytesConfig and returns its bnb_4bit_quant_type, all of it that reading needs. Errors name
// `where`: kCorruptFile for wrong types and for both widths at once, kUnsupported for load_in_8bit.
Format read_bnb_format(const Json& object, std::string_view where);

// Moves all of `files` into checkpoint.weights, decoding quantized modules. Scales that are encoded
// themselves are decoded; a matrix whose groups do not fit its rows in whole units of eight columns becomes
// dense F32, and a note says so. Errors name the tensor: kCorruptFile where sizes, types or the state do not
// fit each other or `format`.
void read_bnb_weights(Format format, std::string_view where, Checkpoint& checkpoint);

// What stands beside the codes "<module>.weight" of a matrix [out, in]: its scales (encoded themselves, if
// so), codebooks and state. dtype: what the matrix was, and what it becomes when it is decoded.
struct BnbMatrix {
  std::string module;
  Format format = Format::kNf4;
  int64_t group_size = 64, out_features = 0, in_features = 0;
  DType dtype = DType::kBF16;
  bool use_double_quant = false;
};
std::vector<NamedTensor> bnb_tensors_beside(const BnbMatrix& matrix, std::span<const float> scales);

// quantization_config, with every key of BitsAndBytesConfig. skip_modules: null where its default says it
// all.
Json bnb_config_json(Format format, bool use_double_quant, DType compute_dtype, Json skip_modules);

}  // namespace lowbit
