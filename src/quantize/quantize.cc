#include "lowbit/quantize.h"

#include "base/fail.h"
#include "base/files.h"
#include "ops/cuda/libraries.h"
#include "quantize/check.h"
#include "quantize/fingerprint.h"
#include "quantize/gpu_budget.h"
#include "quantize/layer_quantizer.h"
#include "quantize/options.h"
#include "quantize/out_folder.h"
#include "quantize/result_json.h"
#include "quantize/rounded_model.h"
#include "quantize/run.h"
#include "runtime/options.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <future>
#include <malloc.h>
#include <optional>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

// By which the check is measured: codebooks have steps as coarse as an affine grid's of so many bits.
int fewest_bits(const QuantizationSettings& settings, const QuantizeOptions& options) {
  if (options.format == "log2") return 3;
  if (options.format != "affine") return 4;
  int bits = settings.head.is_quantized ? settings.head.affine.bits : 8;
  for (const auto& layer : settings.layers) {
    for (const ModuleSettings& module : layer) {
      if (module.is_quantized) bits = std::min(bits, module.affine.bits);
    }
  }
  return bits;
}

class Run {
 public:
  Run(const fs::path& model, const fs::path& out, const QuantizeOptions& options, const Log& log)
      : model_folder_(model),
        out_(normal_out(out)),
        options_(options),
        log_(log),
        device_(choose_device(options.device, cpu_only_option(options), log)),
        kernels_(parse_kernel_choice(options.kernel)),
        threads_(options.threads),
        source_(load_source(model)),
        settings_(resolve_settings(source_.model, options_)) {}

  // given: null to read options.calibration.data.
  QuantizeResult run(const Calibration* given) {
    for (const std::string& note : source_.checkpoint.notes) log_.info(note);
    warn(source_.warnings);
    warn(settings_.warnings);
    if (options_.model_file_base_name != "model") {
      warn({fmt::format(
          "model_file_base_name \"{}\": transformers and vLLM look for \"model\" and may not find the files",
          options_.model_file_base_name)});
    }
    phases_.enter("calibration data");
    calibrate(given);
    phases_.enter("load");
    open_device();
    {
      WorkFolder work(partial_folder(out_), fingerprint(), options_.resume);
      if (!work.fresh_reason().empty()) warn({"earlier layers are not taken up: " + work.fresh_reason()});
      quantize_layers(work);
      save(work);
    }
    check();
    finish_report();
    log_.info(fmt::format("{} written, {:.1f} MB, {:.2f} bits per quantized weight, {:.1f} s", out_.string(),
                          static_cast<double>(result_.bytes) / 1e6, result_.bits_per_weight,
                          result_.seconds));
    return std::move(result_);
  }

 private:
  OpContext ops() { return {&threads_, &*workspace_, &kernels_, gpu_.get(), libraries_.get()}; }

  // Where the run takes place, and what of it on a GPU.
  void open_device() {
    if (device_ != kHost) open_gpu();
    if (device_ == kHost) {
      gpu_.reset();
      workspace_.emplace();
    }
  }

  void open_gpu() {
    gpu_ = std::make_unique<GpuQueue>(device_, options_.max_gpu_memory.count);
    const CalibrationBatches batches(source_.model, calibration_.samples);
    const GpuBudget budget = gpu_budget(source_.model, settings_, batches, calibration_.tokens);
    const uint64_t available = gpu_->memory().available();
    if (options_.method == "gptq") placement_ = place_states(budget, available);
    if (!placement_.fits) {
      const std::string shortage = shortage_text(budget, available);
      if (parse_device(options_.device) != kAnyDevice) fail(ErrorCode::kOutOfMemory, "{}", shortage);
      log_.info("quantizing on the CPU: " + shortage);
      device_ = kHost;
      return;
    }
    if (placement_.keeps_hidden_here) {
      log_.info(fmt::format("{} of hidden states do not fit into {} of GPU memory and stay in this machine's",
                            bytes_text(budget.hidden), bytes_text(available)));
    }
    workspace_.emplace(*gpu_);
    gpu_->memory().set_reclaim([this] { workspace_->release(); });
    if constexpr (kHasCuda) libraries_ = std::make_shared<GpuLibraries>(*gpu_);
  }

  void warn(const std::vector<std::string>& warnings) {
    for (const std::string& warning : warnings) {
      log_.warning(warning);
      result_.warnings.push_back(warning);
    }
  }

  void calibrate(const Calibration* given) {
    if (!given && options_.calibration.data.empty()) return;
    calibration_ =
        given ? *given
              : load_calibration(model_folder_, options_.calibration, source_.model.config().max_positions);
    ::malloc_trim(0);  // a tokenized file leaves many small holes, which would stay part of this process
    has_calibration_ = true;
    warn(calibration_.warnings);
    log_.info(fmt::format("calibration: {} {} samples, {} tokens; {} held back for the check",
                          calibration_.samples.size(), calibration_.kind, calibration_.tokens,
                          calibration_.held_back.size()));
    int64_t widest = 0;
    for (const Linear& linear : source_.model.block(0).linears())
      widest = std::max(widest, in_features(linear.weight));
    if (options_.method == "gptq" && calibration_.tokens < 2 * widest) {
      warn({fmt::format(
          "only {} calibration tokens for layers of up to {} inputs: {} or more are needed for sound results",
          calibration_.tokens, widest, 2 * widest)});
    }
  }

  Json fingerprint() const {
    const bool is_on_gpu = options_.method == "gptq";
    return run_fingerprint(model_folder_, options_, is_on_gpu ? device_ : kHost,
                           sequences_hash(calibration_.samples));
  }

  void quantize_layers(WorkFolder& work) {
    const OpContext context = ops();
    Model& model = source_.model;
    std::unique_ptr<CalibrationStates> states;
    if (options_.method == "gptq") {
      CalibrationStates::Options how{.batch_size = options_.calibration.batch_size,
                                     .keeps_hidden_here = placement_.keeps_hidden_here};
      if (!placement_.keeps_carry) how.carry_budget = 0;
      states = std::make_unique<CalibrationStates>(model, context, calibration_.samples, how, meter_);
    }
    LayerQuantizer quantizer(model, context, options_, settings_, states.get(), meter_, phases_, log_);
    const int64_t parts = model.layer_count() + (settings_.head.is_quantized ? 1 : 0);
    auto record = [&](FinishedLayer finished) {
      for (FinishedModule& module : finished.modules) modules_[module.module] = std::move(module.weight);
      for (ModuleReport& report : finished.reports) result_.modules.push_back(std::move(report));
    };
    auto keep = [&](int64_t part, FinishedLayer finished) {
      quantizer.adopt(part, finished);
      record(std::move(finished));
    };
    // While a GPU works on a part, the one before it is written. Left early, it is still waited for.
    std::future<FinishedLayer> saving;
    for (int64_t part = 0; part < parts; ++part) {
      if (std::optional<FinishedLayer> finished = work.load(part)) {
        result_.resumed = true;
        quantizer.adopt(part, *finished);
        quantizer.replay(part);
        quantizer.count_finished(*finished);
        record(std::move(*finished));
      } else {
        FinishedLayer made =
            part < model.layer_count() ? quantizer.quantize_layer(part) : quantizer.quantize_head();
        if (gpu_) gpu_->wait("quantizing");
        phases_.enter("layer files");
        if (saving.valid()) keep(part - 1, saving.get());
        if (gpu_) {
          saving = std::async(std::launch::async,
                              [&work, part, made = std::move(made)] { return work.save(part, made); });
        } else {
          keep(part, work.save(part, made));
        }
      }
      meter_.sample();
    }
    phases_.enter("layer files");
    if (saving.valid()) keep(parts - 1, saving.get());
    for (const ModuleReport& report : result_.modules) {
      if (!report.note.empty() && report.method != "none")
        result_.warnings.push_back(report.module + ": " + report.note);
    }
    if (!settings_.head.is_quantized && source_.model.has_head()) {
      ModuleReport head;
      head.module = settings_.head.module;
      head.method = "none";
      head.note = settings_.head.reason;
      result_.modules.push_back(head);
    }
  }

  void save(WorkFolder& work) {
    phases_.enter("save");
    log_.report({"save", 0, 1, ""});
    const fs::path folder = work.make_checkpoint_folder();
    const CheckpointFiles files = output_files(source_, settings_, modules_, options_);
    write_checkpoint(folder, files);
    result_.source_bytes = source_.checkpoint.files.file_bytes;
    result_.bytes = safetensors_bytes(folder);
    result_.bits_per_weight = bits_per_weight(files, settings_);
    write_report(folder);
    modules_.clear();
    work.publish(out_);
    log_.report({"save", 1, 1, ""});
  }

  void check() {
    if (!options_.check) return;
    if (calibration_.held_back.empty()) {
      warn({has_calibration_ ? "the result was not checked: too few examples to hold any back"
                             : "the result was not checked: that takes --calibration data"});
      return;
    }
    if (!source_.model.has_head()) {
      warn({std::string(kNoHeadToCheck)});
      return;
    }
    phases_.enter("check");
    const OpContext context = ops();
    context.workspace->release();  // what quantizing has kept
    const CheckResult check = check_result(model_folder_, out_, context, calibration_.held_back,
                                           fewest_bits(settings_, options_), meter_, log_);
    set_check(check, result_);
    verdict_ = check.verdict;
    if (check.passed) {
      log_.info("check passed: " + check.verdict);
    } else {
      std::vector<ModuleReport> worst = result_.modules;
      std::stable_sort(worst.begin(), worst.end(), [](const ModuleReport& a, const ModuleReport& b) {
        return a.relative_error > b.relative_error;
      });
      std::string names;
      for (size_t i = 0; i < std::min<size_t>(3, worst.size()); ++i) {
        names += fmt::format("{}{} ({:.3f})", i ? ", " : "", worst[i].module, worst[i].relative_error);
      }
      warn({fmt::format("saved, but failed its check: {}; largest relative errors: {}", check.verdict,
                        names)});
    }
  }

  void write_report(const fs::path& folder) {
    result_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    phases_.enter("save");
    result_.seconds_by_phase = phases_.seconds();
    result_.peak_rss_bytes = process_memory().peak_rss_bytes;
    meter_.sample();
    if (gpu_) result_.peak_gpu_bytes = gpu_->memory().figures().peak;
    result_.peak_anonymous_bytes = meter_.peak_anonymous_bytes();
    result_.report_json =
        result_json(result_, options_, settings_, has_calibration_ ? &calibration_ : nullptr, verdict_)
            .dump(2);
    write_file_atomically(folder / "quantize_report.json", result_.report_json + "\n");
  }

  void finish_report() { write_report(out_); }

  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  Phases phases_{"load"};
  fs::path model_folder_, out_;
  QuantizeOptions options_;
  const Log& log_;
  int device_;
  KernelChoice kernels_;
  ThreadPool threads_;
  std::unique_ptr<GpuQueue> gpu_;
  std::shared_ptr<GpuLibraries> libraries_;  // shared: its destructor is only where CUDA is
  std::optional<Workspace> workspace_;       // where operators compute
  StatesPlacement placement_;
  SourceModel source_;
  QuantizationSettings settings_;
  Calibration calibration_;
  bool has_calibration_ = false;
  QuantizedModules modules_;
  MemoryMeter meter_;
  QuantizeResult result_;
  std::string verdict_;
};

QuantizeResult run(const fs::path& model, const fs::path& out, const QuantizeOptions& wanted,
                   const Calibration* given, const Log& log) {
  const QuantizeOptions options = settled(wanted);
  check_out_folder(model, out, options.overwrite);
  if (is_rounded(options)) return quantize_rounded(model, out, options, given, log);
  return Run(model, out, options, log).run(given);
}

}  // namespace

QuantizeResult quantize_tokens(const fs::path& model, const fs::path& out, const QuantizeOptions& options,
                               const Calibration& calibration, const Log& log) {
  validate(options);
  return run(model, out, options, &calibration, log);
}

QuantizeResult quantize(const fs::path& model, const fs::path& out, const QuantizeOptions& options,
                        const Log& log) {
  validate(options);
  require_calibration(options);
  return run(model, out, options, nullptr, log);
}

}  // namespace lowbit
