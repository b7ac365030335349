// Whole models in a format that is rounded to without data (nf4, fp4, int8), in the dialect bitsandbytes or
// compressed-tensors. A matrix at a time goes from the mapped source to the file.
#pragma once

#include "lowbit/quantize.h"

namespace lowbit {

// Options are valid and settled, and format is not affine.
QuantizeResult quantize_rounded(const std::filesystem::path& model, const std::filesystem::path& out,
                                const QuantizeOptions& options, const Log& log);

}  // namespace lowbit
