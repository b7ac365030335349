// What quantizing takes of a GPU's memory, known beforehand, and what stays in this machine's memory where
// that is too much.
#pragma once

#include "quantize/calibration_states.h"
#include "quantize/settings.h"

#include <string>

namespace lowbit {

struct GpuBudget {
  uint64_t hidden = 0, carry = 0;                 // of all calibration tokens
  uint64_t weights = 0;                           // of the layer at work and of the next one
  uint64_t forward = 0, hessians = 0, codes = 0;  // the most that each phase takes beside those

  uint64_t least() const;  // hidden states in this machine's memory, carries made anew
};
GpuBudget gpu_budget(const Model& model, const QuantizationSettings& settings,
                     const CalibrationBatches& batches, int64_t tokens);

// Where the states go, with so many bytes to be had. `fits` false: not even the least does.
struct StatesPlacement {
  bool fits = true;
  bool keeps_hidden_here = false;  // in this machine's memory
  bool keeps_carry = true;
};
StatesPlacement place_states(const GpuBudget& budget, uint64_t available);

std::string shortage_text(const GpuBudget& budget, uint64_t available);

}  // namespace lowbit
