#include "quantize/gpu_budget.h"

#include "lowbit/bytes.h"
#include "ops/cuda/gram_gpu.h"
#include "ops/cuda/libraries.h"

#include <algorithm>
#include <fmt/format.h>

namespace lowbit {
namespace {

uint64_t bytes(int64_t elements, int64_t size) { return static_cast<uint64_t>(elements * size); }

// Orders, grids, positions, what the factorization works in.
constexpr uint64_t kSmallThings = uint64_t{16} << 20;

// Of choosing the codes of one matrix, at the three moments that take most: its Hessian, the factor and the
// matrix turned about that this is made of; Hessian, factor and what refinement reads (three BF16 numbers an
// element, and a band); and all that with the slab (weights, values, gradient and a difference in F32, codes,
// and the difference again as three BF16 numbers), then without the Hessian if no other matrix needs it.
uint64_t codes_bytes(int64_t out, int64_t in, bool is_last) {
  const int64_t square = in * in, slab = out * in;
  const uint64_t band = bytes(in * kGramBand, 4);
  return std::max({bytes(square, 12), bytes(square, 14) + band + bytes(std::min(in, kPackedGramRows) * in, 4),
                   bytes(square, is_last ? 10 : 14) + band + bytes(slab, 23)});
}

}  // namespace

uint64_t GpuBudget::least() const {
  uint64_t library = 0;
  if constexpr (kHasCuda) library = GpuLibraries::kWorkspaceBytes;
  return weights + std::max({forward, hessians, codes}) + library + kSmallThings;
}

GpuBudget gpu_budget(const Model& model, const QuantizationSettings& settings,
                     const CalibrationBatches& batches, int64_t tokens) {
  const int64_t hidden = model.config().hidden_size, at_once = batches.most_tokens_at_once;
  GpuBudget budget;
  budget.hidden = bytes(tokens * hidden, 4);
  for (const Stage& stage : model.block(0).stages()) {
    budget.carry = std::max(budget.carry, bytes(tokens * stage.carry_width, 2));
    budget.hessians = std::max(budget.hessians, bytes(stage.input_width * stage.input_width, 4) +
                                                    bytes(at_once * stage.input_width, 2));
  }
  // A batch of hidden states that come from this machine's memory, and one weight as BF16 for the library.
  budget.forward = static_cast<uint64_t>(batches.scratch_bytes) + bytes(at_once * hidden, 4);
  uint64_t unpacked = 0;
  auto see = [&](const ModuleSettings& module, bool is_last, uint64_t& weights) {
    weights += bytes(module.out_features * module.in_features, 2);
    unpacked = std::max(unpacked, bytes(module.out_features * module.in_features, 2));
    if (module.is_quantized)
      budget.codes = std::max(budget.codes, codes_bytes(module.out_features, module.in_features, is_last));
  };
  for (const auto& layer : settings.layers) {
    uint64_t weights = 0;
    for (const Stage& stage : model.block(0).stages()) {
      for (int linear : stage.linears)
        see(layer[static_cast<size_t>(linear)], linear == stage.linears.back(), weights);
    }
    budget.weights = std::max(budget.weights, 2 * weights);
  }
  if (settings.head.is_quantized) {
    uint64_t weights = 0;
    see(settings.head, true, weights);
    budget.weights = std::max(budget.weights, weights);
  }
  budget.forward += unpacked;
  budget.hessians += budget.forward;
  return budget;
}

StatesPlacement place_states(const GpuBudget& budget, uint64_t available) {
  const uint64_t least = budget.least();
  StatesPlacement placement{.fits = least <= available};
  placement.keeps_hidden_here = least + budget.hidden > available;
  placement.keeps_carry = least + budget.hidden + budget.carry <= available;
  return placement;
}

std::string shortage_text(const GpuBudget& budget, uint64_t available) {
  return fmt::format(
      "quantizing this model takes {} of GPU memory ({} for two layers, {} for a forward pass, {} for a "
      "Hessian, {} for choosing the codes of the largest matrix), and {} may be taken: give more with "
      "--max-gpu-memory, end other programs on the GPU, or use --device cpu",
      bytes_text(budget.least()), bytes_text(budget.weights), bytes_text(budget.forward),
      bytes_text(budget.hessians), bytes_text(budget.codes), bytes_text(available));
}

}  // namespace lowbit
