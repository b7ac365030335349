// How long a run will take, from short measurements on this machine: one layer of the model itself, and small
// matrices through the method.
#pragma once

#include "quantize/calibration.h"
#include "quantize/settings.h"

namespace lowbit {

// Seconds of forward passes, Hessians, the method and the check; not of reading the data and of saving. With
// gptq `calibration` must hold samples.
double estimated_seconds(const OpContext& ops, const Model& model, const QuantizeOptions& options,
                         const QuantizationSettings& settings, const Calibration& calibration);

}  // namespace lowbit
