// A weight matrix as layers hold it: dense, or codes of some format. A layer does not know which.
#pragma once

#include "tensor/tensor.h"

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

namespace lowbit {

enum class Format : uint8_t { kAffine, kNf4, kFp4, kFp8, kFp8E5m2, kLog2, kInt8 };

std::string_view format_name(Format format);  // "affine", "nf4", "fp4", "fp8", "fp8_e5m2", "log2", "int8"
std::optional<Format> find_format(std::string_view name);
std::optional<int> bits_of(Format format);  // none where an option says it: affine, log2

// What a product does with the inputs of a weight. A property of the weight, whatever layer holds it.
enum class ActivationFormat : uint8_t {
  kNone,         // they stay floats
  kInt8Dynamic,  // rounded to int8 with a scale for each row (token), by that row alone; only with kInt8
  kInt8Static  // the same on one grid for all rows, chosen beforehand. On a GPU decoding keeps both in BF16.
};
std::string_view activation_name(ActivationFormat format);  // "none", "int8-dynamic", "int8-static"

// Of kInt8Static: value = scale * (code - zero_point), code in [-128, 127] (format/int8.h).
struct InputGrid {
  float scale = 0;     // > 0
  int zero_point = 0;  // of a symmetric grid 0

  bool operator==(const InputGrid&) const = default;
};

// A matrix [out_features, in_features] of codes. Columns are packed along in_features, and out_features run
// fastest, so that one vector load holds the same columns of neighbouring rows, and files of the GPTQ dialect
// are used in place:
//
//   codes         I32 [packed_words(in, bits), out]  word w of row n: bits of columns 32 * w / bits ...
//                 (format/bits.h)
//   scales        F16 [groups, out]; F32 where a codebook says what codes mean (format/codebook.h), and of
//                 kInt8 (format/int8.h)
//   codebook      F32 [2^bits], 16 at least: values of the codes of kLog2; empty where the format says them
//   zero_points   U8  [groups, out]; empty when symmetric: 2^(bits-1) everywhere; none but for kAffine
//   column_order  I32 [in]; empty when columns stand in their own order. Otherwise position p of the packed
//                 codes holds column column_order[p]: inputs are gathered before the product (act-order
//                 files).
//
// kInt8: 8 bits, one group, and codes + 128 where kAffine has codes, so that the same kernels read both.
//
// On a GPU (codes.device() >= 0) codes, scales and zero points lie as ops/cuda/fragments.h says, and
// group_size is the size that is kept there.
struct QuantizedTensor {
  Format format = Format::kAffine;
  int bits = 4;
  int64_t group_size = 128;  // columns (positions) per group; > 0, the last group may be short
  int64_t out_features = 0, in_features = 0;
  Tensor codes, scales, codebook, zero_points, column_order;
  ActivationFormat activations = ActivationFormat::kNone;
  float outlier_threshold = 0;  // kInt8Dynamic: inputs of this magnitude or more stay floats; 0: none do
  InputGrid input_grid;         // kInt8Static
  // I32 [out]: what input_grid.zero_point adds to a row's sum of codes, zero_point * sum of the row's codes.
  // Made once (set_static_inputs of format/int8.h); empty where zero_point is 0.
  Tensor input_offsets;

  int64_t groups() const { return (in_features + group_size - 1) / group_size; }
  size_t byte_count() const;  // all tensors
};

constexpr DType scale_dtype(Format format) { return format == Format::kAffine ? DType::kF16 : DType::kF32; }

using Weight = std::variant<Tensor, QuantizedTensor>;  // Tensor: floating [out, in]

// A model's weights by their Hugging Face names ("model.layers.0.self_attn.q_proj.weight"), whatever dialect
// they came from. Biases and norms are dense entries of their own.
using NamedWeights = std::map<std::string, Weight, std::less<>>;

int64_t out_features(const Weight& weight);
int64_t in_features(const Weight& weight);
size_t weight_bytes(const Weight& weight);

// The dense matrix F32 [out, in], columns in their own order; value = scale * (code - zero_point) in float.
Tensor dequantized(const QuantizedTensor& weight);

}  // namespace lowbit
