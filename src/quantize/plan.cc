// What quantize would do, from shapes and a short measurement; nothing is written.
#include "base/cpu.h"
#include "base/fail.h"
#include "lowbit/quantize.h"
#include "ops/cuda/libraries.h"
#include "quantize/calibration_states.h"
#include "quantize/estimate.h"
#include "quantize/gpu_budget.h"
#include "quantize/matrix.h"
#include "quantize/options.h"
#include "quantize/out_folder.h"
#include "quantize/result_json.h"
#include "runtime/forward.h"
#include "runtime/options.h"

#include <algorithm>
#include <chrono>
#include <optional>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

Json memory_json(const Model& model, const QuantizationSettings& settings, const QuantizeOptions& options,
                 const Calibration& calibration, const CalibrationBatches& batches, int threads,
                 uint64_t& peak) {
  const ModelConfig& config = model.config();
  auto floats = [](int64_t count) { return static_cast<uint64_t>(count) * 4; };
  uint64_t slab = 0;
  auto add_slab = [&](const ModuleSettings& module) {
    if (!module.is_quantized) return;
    const int64_t rows = std::min(module.out_features, threads * kSlabRows);
    // Seven arrays of floats at most (with refinement), and the codes of all rows.
    slab = std::max(slab, static_cast<uint64_t>(module.in_features * rows * 28 +
                                                module.out_features * module.in_features));
  };
  for (const auto& layer : settings.layers) {
    for (const ModuleSettings& module : layer) add_slab(module);
  }
  add_slab(settings.head);
  // A matrix at a time, its codes once or twice (packed), and its scales.
  if (is_rounded(options)) {
    slab = 0;
    for (const auto& layer : settings.layers) {
      for (const ModuleSettings& module : layer)
        slab = std::max(
            slab, static_cast<uint64_t>(module.is_quantized * 2 * module.out_features * module.in_features));
    }
  }
  uint64_t forward = 0, solve = slab;
  if (options.method == "gptq") {
    // Hidden states stay; what is kept of the stage before grows and goes with the stages.
    const uint64_t hidden = floats(calibration.tokens * config.hidden_size);
    const int64_t matrices = options.gptq.refine_sweeps > 0 ? 4 : 2;  // H, its factor, damped and packed
    uint64_t carry = 0;
    for (int round = 0; round < 2; ++round) {
      for (const Stage& stage : model.block(0).stages()) {
        const uint64_t hessian = floats(stage.input_width * stage.input_width);
        // X^T X takes its rows in pieces: as they are made, and twice as BF16 or FP32.
        const uint64_t rows =
            floats((batches.round_tokens + HessianAccumulator::kChunkTokens) * stage.input_width);
        const uint64_t scratch = static_cast<uint64_t>(batches.scratch_bytes);
        const uint64_t left = stage.takes_and_leaves() ? floats(calibration.tokens * stage.carry_width) : 0;
        forward = std::max(forward, hidden + carry + left + scratch + rows + hessian);
        solve = std::max(solve, hidden + carry + static_cast<uint64_t>(matrices) * hessian + slab);
        if (stage.carry_width == 0) continue;
        carry = CalibrationStates::keeps_carry(stage, calibration.tokens, config.hidden_size)
                    ? std::max(carry, floats(calibration.tokens * stage.carry_width))
                    : 0;
      }
    }
  }
  constexpr uint64_t kBase = uint64_t{6} << 20;  // program, ids, thread stacks
  Json json = Json::object();
  auto set = [&](const char* phase, uint64_t bytes) {
    json.set(phase, bytes + kBase);
    peak = std::max(peak, bytes + kBase);
  };
  if (forward > 0) set("forward", forward);
  set("solve", solve);
  if (options.check && calibration.tokens > 0) {
    // Both models' hidden states of one sample, one of them at work, and a chunk of logits of both.
    const int64_t rows = std::clamp<int64_t>((int64_t{8} << 20) / config.vocab_size, 1, 256);
    const uint64_t cache =
        KvCache::bytes_per_token(config, DType::kF32) * static_cast<uint64_t>(calibration.longest());
    set("check",
        cache + floats(calibration.longest() * (4 * config.hidden_size + 2 * config.intermediate_size) +
                       2 * rows * config.vocab_size));
  }
  return json;
}

void add_module(Json& modules, const ModuleSettings& settings, const QuantizeOptions& options) {
  Json json = Json::object();
  json.set("module", settings.module);
  json.set("method", settings.is_quantized ? options.method : std::string("none"));
  if (settings.is_quantized) {
    json.set("bits", settings.affine.bits);
    json.set("group_size", settings.affine.group_size);
    if (options.format == "affine") json.set("sym", settings.affine.sym);
  } else {
    json.set("reason", settings.reason);
  }
  json.set("out_features", settings.out_features);
  json.set("in_features", settings.in_features);
  modules.push_back(json);
}

Json gpu_memory_json(const GpuBudget& budget, const StatesPlacement& placement, uint64_t available) {
  Json json = Json::object();
  json.set("available_bytes", available);
  json.set("hidden_states", budget.hidden);
  json.set("hidden_states_in_this_machines_memory", placement.keeps_hidden_here);
  json.set("carries", placement.keeps_carry ? budget.carry : 0);
  json.set("weights", budget.weights);
  json.set("forward", budget.forward);
  json.set("hessians", budget.hessians);
  json.set("codes", budget.codes);
  json.set("peak_bytes", budget.least() + (placement.keeps_hidden_here ? 0 : budget.hidden) +
                             (placement.keeps_carry ? budget.carry : 0));
  return json;
}

uint64_t free_disk_bytes(const fs::path& out) {
  fs::path place = fs::absolute(out);
  while (!fs::exists(place) && place.has_parent_path() && place != place.parent_path())
    place = place.parent_path();
  std::error_code error;
  const fs::space_info space = fs::space(place, error);
  return error ? 0 : space.available;
}

}  // namespace

std::string plan_json(const fs::path& model, const fs::path& out, const QuantizeOptions& given) {
  validate(given);
  const QuantizeOptions options = settled(given);
  const bool is_gptq = options.method == "gptq";
  const SourceModel source = load_source(model);
  const QuantizationSettings settings = resolve_settings(source.model, options);
  std::vector<std::string> reasons, warnings = source.warnings;
  warnings.insert(warnings.end(), settings.warnings.begin(), settings.warnings.end());

  Calibration calibration;
  auto collect_reason = [&](const auto& body) {
    try {
      body();
    } catch (const Error& error) {
      reasons.push_back(error.what());
    }
  };
  const auto start = std::chrono::steady_clock::now();
  collect_reason([&] { require_calibration(options); });
  if (!out.empty()) collect_reason([&] { check_out_folder(model, out, options.overwrite); });
  if (!options.calibration.data.empty()) {
    collect_reason([&] {
      calibration = load_calibration(model, options.calibration, source.model.config().max_positions);
    });
    warnings.insert(warnings.end(), calibration.warnings.begin(), calibration.warnings.end());
  }

  const double reading_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  Json plan = Json::object();
  plan.set("model", model.string());
  plan.set("architecture", source.model.config().architecture);
  Json modules = Json::array();
  for (const auto& layer : settings.layers) {
    for (const ModuleSettings& module : layer) add_module(modules, module, options);
  }
  if (source.model.has_head()) add_module(modules, settings.head, options);
  Json components = Json::object();
  uint64_t bytes = 0;
  for (const OutputTensor& tensor : output_layout(source, settings, options)) {
    const Json* before = components.find(tensor.component);
    components.set(tensor.component, static_cast<uint64_t>(before ? before->as_integer() : 0) + tensor.bytes);
    bytes += tensor.bytes;
  }
  plan.set("source_bytes", source.checkpoint.files.file_bytes);
  plan.set("tensor_bytes", bytes);
  plan.set("bytes_by_component", components);

  const KernelChoice kernels = parse_kernel_choice(options.kernel);
  const ThreadPool threads(options.threads);
  const CalibrationBatches batches(source.model, calibration.samples, options.calibration.batch_size,
                                   threads.size());
  uint64_t peak = 0;
  plan.set("memory_by_phase",
           memory_json(source.model, settings, options, calibration, batches, threads.size(), peak));
  plan.set("peak_anonymous_bytes", peak);
  const uint64_t available = machine_memory().available_bytes;
  plan.set("memory_available_bytes", available);
  if (peak > available) {
    reasons.push_back(
        fmt::format("about {} MB of memory are needed, {} MB are available: use fewer or shorter samples",
                    peak >> 20, available >> 20));
  }
  int device = kHost;
  collect_reason([&] { device = choose_device(options.device, cpu_only_option(options), {}); });
  std::optional<GpuQueue> gpu;
  if (device != kHost && is_gptq) {
    const CalibrationBatches on_gpu(source.model, calibration.samples);
    const GpuBudget budget = gpu_budget(source.model, settings, on_gpu, calibration.tokens);
    gpu.emplace(device, options.max_gpu_memory.count);
    const uint64_t may_take = gpu->memory().available();
    const StatesPlacement placement = place_states(budget, may_take);
    plan.set("gpu_memory", gpu_memory_json(budget, placement, may_take));
    if (!placement.fits) {
      const std::string shortage = shortage_text(budget, may_take);
      if (parse_device(options.device) == kAnyDevice) {
        warnings.push_back("it will run on the CPU: " + shortage);
      } else {
        reasons.push_back(shortage);
      }
      device = kHost;
      gpu.reset();
    }
  }
  plan.set("device", device_name(device));
  // The finished layers and the checkpoint made of them lie side by side for a while; rounding has none.
  uint64_t finished = 0;
  for (const char* component : {"codes", "scales", "zeros"}) {
    if (const Json* part = components.find(component); part && !is_rounded(options))
      finished += static_cast<uint64_t>(part->as_integer());
  }
  const uint64_t disk = bytes + finished + (uint64_t{32} << 20),
                 free_disk = free_disk_bytes(out.empty() ? model : out);
  plan.set("disk_bytes", disk);
  plan.set("disk_free_bytes", free_disk);
  if (disk > free_disk) {
    reasons.push_back(fmt::format("{} MB of disk are needed beside {}, {} MB are free", disk >> 20,
                                  out.string(), free_disk >> 20));
  }

  // Reading the data was done just now; saving is a copy of the mapped source and small beside the rest.
  if (!is_gptq || !calibration.samples.empty()) {
    std::optional<Workspace> workspace;
    std::shared_ptr<GpuLibraries> libraries;
    if (gpu) {
      workspace.emplace(*gpu);
      if constexpr (kHasCuda) libraries = std::make_shared<GpuLibraries>(*gpu);
    } else {
      workspace.emplace();
    }
    const OpContext ops{&threads, &*workspace, &kernels, gpu ? &*gpu : nullptr, libraries.get()};
    plan.set("estimated_seconds",
             reading_seconds + estimated_seconds(ops, source.model, options, settings, calibration));
  }
  plan.set("calibration", calibration.samples.empty() ? Json() : calibration.facts());
  plan.set("engines",
           options.dialect == "gptq" ? engines_json(output_engines(settings, options)) : Json::array());
  plan.set("warnings", strings_json(warnings));
  plan.set("feasible", reasons.empty());
  plan.set("reasons", strings_json(reasons));
  plan.set("modules", modules);
  return plan.dump(2);
}

}  // namespace lowbit
