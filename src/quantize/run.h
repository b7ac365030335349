// quantize() with the calibration tokens at hand.
#pragma once

#include "lowbit/quantize.h"
#include "quantize/calibration.h"

namespace lowbit {

// options.calibration.data is not read.
QuantizeResult quantize_tokens(const std::filesystem::path& model, const std::filesystem::path& out,
                               const QuantizeOptions& options, const Calibration& calibration,
                               const Log& log = {});

}  // namespace lowbit
