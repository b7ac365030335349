#include "quantize/layer_quantizer.h"

#include "base/fail.h"
#include "format/affine.h"
#include "ops/cuda/weights_gpu.h"

#include <algorithm>
#include <chrono>

namespace lowbit {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::string report_line(const ModuleReport& report) {
  if (report.method == "none") return fmt::format("{}: left dense, {}", report.module, report.note);
  std::string line = fmt::format("{}: {} {} bits, relative error {:.4f}", report.module, report.method,
                                 report.bits, report.relative_error);
  if (report.tokens > 0) line += fmt::format(", {} tokens", report.tokens);
  if (report.damp_percent > 0) line += fmt::format(", damping {:.3g}", report.damp_percent);
  line += fmt::format(", {:.2f} s", report.seconds);
  return report.note.empty() ? line : line + " (" + report.note + ")";
}

constexpr std::string_view kHelps =
    "give more with --max-gpu-memory, end other programs on the GPU, or use --device cpu; finished "
    "layers are kept, and the same command goes on behind them";
constexpr std::pair<std::string_view, GpuPurpose> kPurposes[] = {
    {"weights to the device", {.use = GpuUse::kWeights, .what = "the weights of a layer", .helps = kHelps}},
    {"hessians", {.what = "the Hessian of a layer's inputs", .helps = kHelps}},
    {"codes", {.what = "choosing the codes of a matrix", .helps = kHelps}},
    {"forward", {.what = "the forward pass of a layer", .helps = kHelps}}};

// The source's values on the GPU: the copy that the operators multiply with where that is not rounded.
Tensor source_there(const OpContext& ops, const Linear& linear, const Linear& there) {
  const Tensor& here = std::get<Tensor>(linear.weight);
  return here.dtype() == DType::kBF16 ? std::get<Tensor>(there.weight) : copied_to(*ops.gpu, here);
}

}  // namespace

LayerQuantizer::LayerQuantizer(Model& model, const OpContext& ops, const QuantizeOptions& options,
                               const QuantizationSettings& settings, CalibrationStates* states,
                               MemoryMeter& meter, Phases& phases, const Log& log)
    : model_(model),
      ops_(ops),
      cpu_{ops.threads, ops.gpu ? &cpu_workspace_ : ops.workspace, ops.kernels},
      options_(options),
      codebook_(codebook_choice(options)),
      settings_(settings),
      states_(states),
      meter_(meter),
      phases_(phases),
      log_(log) {
  for (const auto& layer : settings.layers) total_ += static_cast<int64_t>(layer.size());
  total_ += settings.head.is_quantized;
}

void LayerQuantizer::note_progress(const ModuleReport& report) {
  ++done_;
  const std::string line = report_line(report);
  if (report.method == "rtn" && !report.note.empty()) log_.warning(report.module + ": " + report.note);
  log_.report({"quantize", done_, total_, line});
}

void LayerQuantizer::enter(std::string_view phase) {
  if (ops_.gpu) ops_.gpu->wait("quantizing");
  phases_.enter(phase);
  if (!ops_.gpu) return;
  const auto purpose = std::find_if(std::begin(kPurposes), std::end(kPurposes),
                                    [&](const auto& known) { return known.first == phase; });
  GpuMemory& memory = ops_.gpu->memory();
  if (purpose != std::end(kPurposes)) memory.set_purpose(purpose->second);
  // What an earlier phase has left would serve smaller needs of this one, and then be missing: GpuBudget
  // counts each as large as it is.
  if (memory.available() < memory.figures().used) ops_.workspace->release();
}

void LayerQuantizer::fetch(int64_t layer) {
  if constexpr (kHasCuda) {
    if (!mover_) {
      copies_.emplace(*ops_.gpu, GpuQueue::Beside::kIt);
      copy_workspace_.emplace(*copies_);
      copy_ops_ = {ops_.threads, &*copy_workspace_, nullptr, &*copies_, ops_.libraries};
      mover_ = std::make_shared<WeightMover>(copy_ops_);
    }
    fetched_layer_ = layer;
    fetched_ = std::async(std::launch::async, [this, &block = std::as_const(model_).block(layer)] {
      std::unique_ptr<Block> there = block.moved([&](const Weight& weight) { return (*mover_)(weight); });
      copies_->wait("copying a layer to the GPU");
      return there;
    });
  }
}

std::unique_ptr<Block> LayerQuantizer::on_gpu(int64_t layer) {
  if (!ops_.gpu) return nullptr;
  if (fetched_layer_ != layer) fetch(layer);
  fetched_layer_ = -1;
  return fetched_.get();
}

void LayerQuantizer::quantize_linear(const Work& work, FinishedLayer& finished) {
  auto& [linear, there, settings, factors, is_last] = work;
  ModuleReport report;
  report.module = linear.module;
  if (!settings.is_quantized) {
    report.method = "none";
    report.note = settings.reason;
    finished.reports.push_back(report);
    note_progress(report);
    return;
  }
  const auto start = std::chrono::steady_clock::now();
  const bool is_v1 = options_.checkpoint_format == "gptq";
  const MatrixProblem problem{.module = linear.module,
                              .weight = std::get<Tensor>(linear.weight),
                              .weight_there = there ? source_there(ops_, linear, *there) : Tensor(),
                              .affine = settings.affine,
                              .codebook = codebook_ ? &*codebook_ : nullptr,
                              .gptq = settings.gptq,
                              .as_autogptq = options_.compat == "autogptq",
                              .least_zero_point = is_v1 && !settings.affine.sym ? 1 : 0,
                              .is_last = is_last};
  QuantizedMatrix result = factors ? quantize_gptq(ops_, problem, *factors) : quantize_rtn(cpu_, problem);
  meter_.sample();
  const Hessian* hessian = factors ? &factors->hessian() : nullptr;
  Hessian copied;  // only where a method has left the error to be found: after a fall back
  auto here = [&](const Hessian* given) -> const Hessian* {
    if (!ops_.gpu || !given || !given->is_finite()) return ops_.gpu ? nullptr : given;
    copied = *given;
    copied.values = Tensor::allocate(DType::kF32, given->values.shape());
    copy_here(ops_, copied.values.mutable_bytes(), given->values.bytes(), copied.values.byte_count());
    return &copied;
  };
  report.bits = settings.affine.bits;
  report.group_size = settings.affine.group_size;
  report.method = result.method;
  report.note = result.note;
  report.damp_percent = result.damp_percent;
  report.tokens = hessian ? hessian->tokens : 0;
  report.relative_error = result.relative_error
                              ? *result.relative_error
                              : relative_error(cpu_, problem.weight, result.weight, here(hessian));
  report.seconds = seconds_since(start);
  finished.modules.push_back({linear.module, result.weight});
  finished.reports.push_back(report);
  linear.weight = std::move(result.weight);
  if constexpr (kHasCuda) {
    if (there) there->weight = to_gpu(ops_, linear.weight);
  }
  note_progress(report);
}

FinishedLayer LayerQuantizer::quantize_layer(int64_t layer) {
  enter("weights to the device");
  Block& here = model_.block(layer);
  const std::unique_ptr<Block> there = states_ ? on_gpu(layer) : nullptr;
  if (there && layer + 1 < model_.layer_count()) fetch(layer + 1);
  const Block& block = there ? *there : here;
  const std::vector<ModuleSettings>& settings = settings_.layers[static_cast<size_t>(layer)];
  FinishedLayer finished;
  auto quantize_stage = [&](const Stage& stage, std::optional<Hessian> hessian) {
    enter("codes");
    std::optional<FactorCache> factors;
    if (hessian) factors.emplace(ops_, std::move(*hessian));
    for (int linear : stage.linears) {
      const size_t index = static_cast<size_t>(linear);
      quantize_linear({.linear = here.linears()[index],
                       .there = there ? &there->linears()[index] : nullptr,
                       .settings = settings[index],
                       .factors = factors ? &*factors : nullptr,
                       .is_last = linear == stage.linears.back()},
                      finished);
    }
    if (!ops_.gpu) ops_.workspace->release();
  };
  std::vector<Hessian> hessians;
  enter("hessians");
  if (states_ && !options_.gptq.true_sequential) hessians = states_->collect_all(block);
  for (size_t i = 0; i < block.stages().size(); ++i) {
    const Stage& stage = block.stages()[i];
    const int index = static_cast<int>(i);
    if (!states_) {
      quantize_stage(stage, std::nullopt);
    } else if (!hessians.empty()) {
      quantize_stage(stage, std::move(hessians[i]));
    } else {
      bool is_needed = false;
      for (int linear : stage.linears)
        is_needed = is_needed || settings[static_cast<size_t>(linear)].is_quantized;
      enter("hessians");
      std::optional<Hessian> hessian;
      if (is_needed) hessian = states_->collect(block, index);
      quantize_stage(stage, std::move(hessian));
      enter("forward");
      states_->advance(block, index);
    }
  }
  enter("forward");
  if (states_ && !options_.gptq.true_sequential) states_->advance_all(block);
  return finished;
}

FinishedLayer LayerQuantizer::quantize_head() {
  FinishedLayer finished;
  if (!states_) {
    quantize_linear({.linear = model_.head(), .settings = settings_.head}, finished);
    return finished;
  }
  Linear there = model_.head();
  if constexpr (kHasCuda) {
    if (ops_.gpu) {
      auto move = [&](const Weight& weight) { return to_gpu(ops_, weight); };
      model_.move_head_input(move);
      there.weight = move(there.weight);
    }
  }
  enter("hessians");
  FactorCache factors(ops_, states_->collect_head());
  enter("codes");
  quantize_linear({.linear = model_.head(),
                   .there = ops_.gpu ? &there : nullptr,
                   .settings = settings_.head,
                   .factors = &factors,
                   .is_last = true},
                  finished);
  return finished;
}

void LayerQuantizer::adopt(int64_t layer, const FinishedLayer& finished) {
  for (const FinishedModule& module : finished.modules) {
    if (layer == model_.layer_count()) {
      model_.head().weight = module.weight;
      continue;
    }
    for (Linear& linear : model_.block(layer).linears()) {
      if (linear.module == module.module) linear.weight = module.weight;
    }
  }
}

void LayerQuantizer::replay(int64_t layer) {
  if (!states_ || layer >= model_.layer_count()) return;
  enter("forward");
  const std::unique_ptr<Block> there = on_gpu(layer);
  states_->advance_all(there ? *there : model_.block(layer));
}

void LayerQuantizer::count_finished(const FinishedLayer& finished) {
  done_ += static_cast<int64_t>(finished.reports.size());
  log_.report({"quantize", done_, total_, "finished by an earlier run"});
}

}  // namespace lowbit
