// What one pass of calibration data through the dense model tells about the inputs of its linears: a grid for
// each (observers.h), and how they may be smoothed (smooth.h).
#pragma once

#include "quantize/calibration_states.h"
#include "quantize/settings.h"
#include "quantize/source_model.h"

#include <map>
#include <string>
#include <vector>

namespace lowbit {

struct ModuleInputs {
  std::optional<InputReport> report;   // of static inputs; their grid
  std::optional<double> smooth_alpha;  // where columns are to be multiplied by factors
  std::vector<float> factors;
  std::vector<float> divisors;  // of rows, for the sake of a matrix behind this one; or empty
};
// The weight whose values are to be rounded: as it is, or smoothed.
Tensor smoothed_weight(const OpContext& ops, const Tensor& weight, const ModuleInputs& inputs);

struct ObservedInputs {
  std::map<std::string, ModuleInputs, std::less<>> modules;  // those that have some of it
  std::map<std::string, Tensor, std::less<>> tensors;        // norms and biases, where they change
};

// Of the modules whose inputs `settings` round. `options` settled; on the CPU. Scales are rounded to the type
// of their module's weight. The model is left as it was but for its norms, which follow `tensors`. Smoothed
// are linears behind a norm of their own, and those behind a gated MLP's product, whose other factor's rows
// take it; not those behind attention, another activation, or a norm that hidden itself goes through.
// kInvalidArgument: no tokens; an input that is not finite, by the module's name; smooth_alpha for a model of
// which nothing can be smoothed.
ObservedInputs observe_inputs(SourceModel& source, const OpContext& ops, const QuantizationSettings& settings,
                              const QuantizeOptions& options,
                              const std::vector<std::vector<int32_t>>& samples, MemoryMeter& meter,
                              const Log& log);

}  // namespace lowbit
