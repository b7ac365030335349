// Whole models in a format whose codes are rounded to without data (nf4, fp4, int8), in the dialect
// bitsandbytes or compressed-tensors. A matrix at a time goes from the mapped source to the file. Calibration
// data are for the inputs of int8 weights (static_inputs.h).
#pragma once

#include "lowbit/quantize.h"
#include "quantize/calibration.h"

namespace lowbit {

// Options are valid and settled, and format is not affine. calibration: null to read
// options.calibration.data.
QuantizeResult quantize_rounded(const std::filesystem::path& model, const std::filesystem::path& out,
                                const QuantizeOptions& options, const Calibration* calibration,
                                const Log& log);

}  // namespace lowbit
