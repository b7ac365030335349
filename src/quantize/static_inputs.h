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
  std::optional<double> smooth_alpha;  // where columns are to be multiplied by
  std::vector<float> factors;
};

struct ObservedInputs {
  std::map<std::string, ModuleInputs, std::less<>> modules;  // those that have some of it
  std::map<std::string, Tensor, std::less<>> tensors;        // norms of the result, where they change
};

// Of the modules whose inputs `settings` round. `options` settled; on the CPU. Scales are rounded to the type
// of their module's weight. The model is left as it was but for its norms, which follow `tensors`.
// kInvalidArgument: no tokens; an input that is not finite, by the module's name; smooth_alpha for a model
// without norms to fold into.
ObservedInputs observe_inputs(SourceModel& source, const OpContext& ops, const QuantizationSettings& settings,
                              const QuantizeOptions& options,
                              const std::vector<std::vector<int32_t>>& samples, MemoryMeter& meter,
                              const Log& log);

}  // namespace lowbit
