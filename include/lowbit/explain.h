// What a format does to numbers: codes, scales, what is left of each value, and the error.
#pragma once

#include "lowbit/format.h"

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace lowbit {

struct ExplainOptions {
  std::string format = "affine";  // "affine", "nf4", "fp4", "fp8", "fp8_e5m2", "log2", "int8" (rows)
  AffineOptions affine;           // bits of affine and log2; group_size of all but int8
  float log_base = 2;             // of log2
};

// A JSON object: format, bits, group_size, values (their number), groups [{first, scale, zero_point (affine
// alone), largest_error}], levels [{code, value}] as the codes of one group rise, times no scale, counts of
// the values at each level, first [{value, code, decoded, error}] of the first `shown` values, and of all
// values mean_error, largest_error, relative_error (|dx| / |x|, Frobenius) and bits_per_value, scales
// counted. Values are a row: a group is group_size of them, the last may be short. Groups are rounded to
// nearest as `quantize --method rtn --mse 0` does. kInvalidArgument: no value, one that is not finite,
// options out of range.
std::string explain_json(std::span<const float> values, const ExplainOptions& options, int64_t shown = 16);

// Of the first `rows` rows of a tensor, each of which begins a group. The file: a .safetensors or a model's
// folder; the tensor may be a quantized one, "<module>.weight", whose values are those its codes stand for.
// Errors: of explain_json and of inspect_tensor_json.
std::string explain_tensor_json(const std::filesystem::path& path, const std::string& tensor_name,
                                int64_t rows, const ExplainOptions& options, int64_t shown = 16);

}  // namespace lowbit
