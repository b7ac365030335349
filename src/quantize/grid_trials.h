// Which observer's grids cost a model least, of several for each stage: measured, since what matters to the
// layers behind (a first token that all others attend to, say) cannot be seen from one layer's products.
#pragma once

#include "quantize/calibration_states.h"
#include "quantize/observers.h"
#include "quantize/settings.h"
#include "quantize/source_model.h"

#include <functional>
#include <map>
#include <string>
#include <vector>

namespace lowbit {

// The rule that all stages of a name ("qkv", "down") take.
using StageChoice = std::map<std::string, size_t, std::less<>>;

struct GridProposals {
  std::span<const ObserverRule> rules;
  std::function<Tensor(const Linear& linear)> values;  // that are to be rounded
  // Of modules whose inputs are rounded.
  std::function<InputGrid(const std::string& module, size_t rule)> grid;
};

// Some samples go through the dense model and, side by side, through one in int8 for every choice that is
// tried: first all stages with the same rule, then stage by stage the other rules of the same symmetry, which
// files have once for all. The least mean KL wins (without a head: the least relative error of what the model
// leaves, token by token). On the CPU; the model is left as it was. The same for any number of threads.
StageChoice choose_grids(SourceModel& source, const OpContext& ops, const QuantizationSettings& settings,
                         const GridProposals& proposals, const std::vector<std::vector<int32_t>>& samples,
                         MemoryMeter& meter, const Log& log);

// sum, plus |found - expected|^2 / |expected|^2 of each row of [rows, width]: each counts alike, for some are
// a hundred times as large as others.
double add_row_errors(double sum, const float* expected, const float* found, int64_t rows, int64_t width);

}  // namespace lowbit
