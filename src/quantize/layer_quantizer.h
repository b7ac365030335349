// One layer after the other: collect a stage's Hessian, quantize its linears, go on with the quantized ones.
#pragma once

#include "lowbit/log.h"
#include "quantize/calibration_states.h"
#include "quantize/methods.h"
#include "quantize/phases.h"
#include "quantize/settings.h"
#include "quantize/work_folder.h"

#include <future>
#include <memory>
#include <optional>

namespace lowbit {

class WeightMover;

class LayerQuantizer {
 public:
  // states: null for rtn. All must outlive this; weights of `model` are replaced as they are quantized.
  LayerQuantizer(Model& model, const OpContext& ops, const QuantizeOptions& options,
                 const QuantizationSettings& settings, CalibrationStates* states, MemoryMeter& meter,
                 Phases& phases, const Log& log);

  FinishedLayer quantize_layer(int64_t layer);
  FinishedLayer quantize_head();
  // Puts a finished layer's weights in place of the model's (after a save: the mapped ones).
  void adopt(int64_t layer, const FinishedLayer& finished);
  // Takes the calibration states through a layer that was finished by an earlier run.
  void replay(int64_t layer);
  // Progress of modules that an earlier run finished.
  void count_finished(const FinishedLayer& finished);

 private:
  // there: the linear's copy on the GPU, or null.
  struct Work {
    Linear& linear;
    Linear* there = nullptr;
    const ModuleSettings& settings;
    FactorCache* factors = nullptr;  // null for rtn
    bool is_last = false;            // of those that share the factors
  };
  void quantize_linear(const Work& work, FinishedLayer& finished);
  void enter(std::string_view phase);
  // A copy of the block on the GPU, or null without one; fetched where fetch() was called for it.
  std::unique_ptr<Block> on_gpu(int64_t layer);
  // Begins to copy a layer on a queue of its own, while others are worked on.
  void fetch(int64_t layer);
  void note_progress(const ModuleReport& report);

  Model& model_;
  const OpContext& ops_;
  Workspace cpu_workspace_;  // beside a GPU
  OpContext cpu_;            // ops_ without a GPU
  const QuantizeOptions& options_;
  const std::optional<CodebookChoice> codebook_;
  const QuantizationSettings& settings_;
  CalibrationStates* states_;
  MemoryMeter& meter_;
  Phases& phases_;
  const Log& log_;
  int64_t done_ = 0, total_ = 0;
  // Of fetch().
  std::optional<GpuQueue> copies_;
  std::optional<Workspace> copy_workspace_;
  OpContext copy_ops_;
  std::shared_ptr<WeightMover> mover_;
  int64_t fetched_layer_ = -1;
  std::future<std::unique_ptr<Block>> fetched_;
};

}  // namespace lowbit
