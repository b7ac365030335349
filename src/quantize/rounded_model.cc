#include "quantize/rounded_model.h"

#include "base/fail.h"
#include "base/files.h"
#include "checkpoint/bnb.h"
#include "checkpoint/compressed.h"
#include "format/codebook.h"
#include "ops/encode.h"
#include "quantize/check.h"
#include "quantize/options.h"
#include "quantize/out_folder.h"
#include "quantize/output.h"
#include "quantize/result_json.h"
#include "quantize/source_model.h"
#include "quantize/static_inputs.h"
#include "quantize/work_folder.h"
#include "runtime/options.h"

#include <chrono>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kGroupSize = kBnbGroupSize;

class RoundedRun {
 public:
  RoundedRun(const fs::path& model, const fs::path& out, const QuantizeOptions& options, const Log& log)
      : model_(model),
        out_(normal_out(out)),
        options_(options),
        log_(log),
        format_(*find_format(options.format)),
        is_compressed_(options.dialect == "compressed-tensors"),
        inputs_{input_format(options)},
        kernels_(parse_kernel_choice(options.kernel)),
        threads_(options.threads),
        source_(load_source(model)) {
    settings_ = resolve_settings(source_.model, options_);
  }

  // given: null to read options.calibration.data.
  QuantizeResult run(const Calibration* given) {
    for (const std::string& note : source_.checkpoint.notes) log_.info(note);
    for (const auto& warnings : {source_.warnings, settings_.warnings}) {
      for (const std::string& warning : warnings) warn(warning);
    }
    calibrate(given);
    Json fingerprint = Json::object();
    fingerprint.set("format", options_.format);
    WorkFolder work(partial_folder(out_), fingerprint, false);
    const fs::path folder = work.make_checkpoint_folder();
    write_checkpoint(folder, files());
    result_.source_bytes = source_.checkpoint.files.file_bytes;
    result_.bytes = safetensors_bytes(folder);
    result_.bits_per_weight =
        8 * static_cast<double>(quantized_bytes_) / static_cast<double>(quantized_weights_);
    check(folder);
    write_report(folder);
    work.publish(out_);
    log_.info(fmt::format("{} written, {:.1f} MB, {:.2f} bits per quantized weight, {:.1f} s", out_.string(),
                          static_cast<double>(result_.bytes) / 1e6, result_.bits_per_weight,
                          result_.seconds));
    return std::move(result_);
  }

 private:
  OpContext ops() const { return {&threads_, &workspace_, &kernels_}; }

  void warn(const std::string& text) {
    log_.warning(text);
    result_.warnings.push_back(text);
  }

  // Before anything is written: it may find inputs that cannot be rounded.
  void calibrate(const Calibration* given) {
    if (!given && !observes_inputs(options_)) return;
    calibration_ =
        given ? *given : load_calibration(model_, options_.calibration, source_.model.config().max_positions);
    for (const std::string& warning : calibration_->warnings) warn(warning);
    log_.info(fmt::format("calibration: {} {} samples, {} tokens; {} held back for the check",
                          calibration_->samples.size(), calibration_->kind, calibration_->tokens,
                          calibration_->held_back.size()));
    if (!observes_inputs(options_)) return;
    observed_ = observe_inputs(source_, ops(), settings_, options_, calibration_->samples, meter_, log_);
    for (const auto& [module, inputs] : observed_.modules)
      inputs_.is_symmetric = inputs_.is_symmetric && (!inputs.report || inputs.report->is_symmetric);
    workspace_.release();
  }

  void check(const fs::path& folder) {
    if (!options_.check) return;
    if (!source_.model.has_head()) return warn(std::string(kNoHeadToCheck));
    if (!calibration_ || calibration_->held_back.empty())
      return warn("the result was not checked: lowbit eval divergence compares it with its source");
    // Ranges of inputs may cost more than 8 bits of weights do.
    constexpr int kAsCoarseAs = 4;
    const CheckResult check =
        check_result(model_, folder, ops(), calibration_->held_back, kAsCoarseAs, meter_, log_);
    set_check(check, result_);
    verdict_ = check.verdict;
    if (check.passed) {
      log_.info("check passed: " + check.verdict);
    } else {
      warn("saved, but failed its check: " + check.verdict);
    }
  }

  CheckpointFiles files() {
    CheckpointFiles files;
    files.source = source_.checkpoint.folder;
    files.base_name = options_.model_file_base_name;
    files.max_shard_bytes = options_.max_shard_size.empty() ? 0 : parse_bytes(options_.max_shard_size).count;
    std::map<std::string, Matrix, std::less<>> matrices;
    std::vector<std::string> float_inputs;
    for (int64_t layer = 0; layer < source_.model.layer_count(); ++layer) {
      const auto& linears = std::as_const(source_.model).block(layer).linears();
      for (size_t i = 0; i < linears.size(); ++i) {
        const ModuleSettings& settings = settings_.layers[static_cast<size_t>(layer)][i];
        if (!settings.is_quantized) continue;
        matrices.emplace(linears[i].module + ".weight", matrix(linears[i], settings));
        if (inputs_.activations != ActivationFormat::kNone && !settings.rounds_inputs)
          float_inputs.push_back(linears[i].module);
      }
    }
    total_ = static_cast<int64_t>(matrices.size());
    for (const NamedTensor& entry : kept_tensors(source_)) {
      if (const auto found = matrices.find(entry.name); found != matrices.end()) {
        add_matrix(found->second, files.tensors);
      } else if (const auto changed = observed_.tensors.find(entry.name);
                 changed != observed_.tensors.end()) {
        files.tensors.push_back({entry.name, changed->second});
      } else {
        files.tensors.push_back(entry);
      }
    }
    std::vector<CompressedGroup> groups = {{.inputs = inputs_}};
    if (!float_inputs.empty()) groups.push_back({.targets = float_inputs});
    files.config = output_config(
        source_.checkpoint.config, files.tensors,
        is_compressed_
            ? compressed_config_json({.groups = groups}, dense_modules(source_, settings_))
            : bnb_config_json(bnb_settings(options_, dtype_), bnb_skipped_modules(source_, settings_)));
    return files;
  }

  // A matrix of the source, and what becomes of its inputs.
  struct Matrix {
    std::string module;
    Tensor source;
    ActivationFormat activations = ActivationFormat::kNone;
    ModuleInputs inputs = {};
  };
  Matrix matrix(const Linear& linear, const ModuleSettings& settings) const {
    Matrix result{linear.module, std::get<Tensor>(linear.weight)};
    if (settings.rounds_inputs) result.activations = inputs_.activations;
    if (const auto found = observed_.modules.find(linear.module); found != observed_.modules.end())
      result.inputs = found->second;
    return result;
  }
  // The values that are rounded.
  Tensor values_of(const Matrix& matrix) const {
    return smoothed_weight(ops(), matrix.source, matrix.inputs);
  }

  RoundedMatrix written(const Matrix& matrix) const {
    RoundedMatrix result{matrix.module, matrix.source.dtype(), matrix.source.size(0), matrix.source.size(1),
                         matrix.activations};
    if (matrix.inputs.report)
      result.input_grid = {matrix.inputs.report->scale, matrix.inputs.report->zero_point};
    result.has_zero_point = !inputs_.is_symmetric;
    return result;
  }

  MatrixTensors parts_of(const Matrix& matrix) const {
    const Tensor dense = values_of(matrix);
    std::vector<float> scales =
        format_ == Format::kInt8 ? int8_row_sizes(ops(), dense) : flat_scales(ops(), dense, kGroupSize);
    if (is_compressed_) {
      for (float& scale : scales) scale = int8_grid(scale, matrix.source.dtype()).scale;
    }
    return rounded_tensors(written(matrix), scales, options_);
  }

  // The bytes of the codes; error: |dW| / |W|.
  Tensor code_bytes(const Matrix& matrix, double& error) const {
    const Tensor dense = values_of(matrix);
    if (format_ == Format::kInt8) {
      const Int8Rows rows =
          encode_int8_rows(ops(), dense, is_compressed_ ? matrix.source.dtype() : DType::kF32);
      error = rounding_error(ops(), dense, rows);
      return is_compressed_ ? compressed_code_bytes(compressed_matrix(written(matrix)), rows.codes)
                            : rows.codes;
    }
    const FlatEncoded flat = encode_flat(ops(), dense, format_, kGroupSize);
    const FlatCodes codes{format_, kGroupSize, dense.size(0), dense.size(1), flat.bytes.data<uint8_t>()};
    error = rounding_error(ops(), dense, codes, flat.scales);
    return flat.bytes;
  }

  void add_matrix(const Matrix& matrix, std::vector<NamedTensor>& tensors) {
    dtype_ = matrix.source.dtype();
    MatrixTensors parts;
    try {
      parts = parts_of(matrix);
    } catch (const Error& error) {
      fail(error.code(), "{}: {}", matrix.module, error.what());
    }
    const size_t report = result_.modules.size();
    result_.modules.push_back({.module = matrix.module,
                               .bits = options_.affine.bits,
                               .group_size = options_.affine.group_size,
                               .method = "rtn",
                               .tokens = observes_inputs(options_) ? calibration_->tokens : 0,
                               .input = matrix.inputs.report,
                               .smooth_alpha = matrix.inputs.smooth_alpha});
    quantized_weights_ += matrix.source.element_count();
    quantized_bytes_ += parts.codes.tensor.byte_count();
    parts.codes.make = [this, matrix, report] {
      const auto start = std::chrono::steady_clock::now();
      ModuleReport& module = result_.modules[report];
      Tensor bytes = code_bytes(matrix, module.relative_error);
      module.seconds = seconds_since(start);
      log_.report({"quantize", ++done_, total_,
                   fmt::format("{}: {}, relative error {:.4f}", module.module, options_.format,
                               module.relative_error)});
      return bytes;
    };
    tensors.push_back(std::move(parts.codes));
    for (NamedTensor& tensor : parts.beside) {
      quantized_bytes_ += tensor.tensor.byte_count();
      tensors.push_back(std::move(tensor));
    }
  }

  void write_report(const fs::path& folder) {
    result_.seconds = seconds_since(start_);
    result_.peak_rss_bytes = process_memory().peak_rss_bytes;
    meter_.sample();
    result_.peak_anonymous_bytes = meter_.peak_anonymous_bytes();
    result_.report_json =
        result_json(result_, options_, settings_, calibration_ ? &*calibration_ : nullptr, verdict_).dump(2);
    write_file_atomically(folder / "quantize_report.json", result_.report_json + "\n");
  }

  static double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  fs::path model_, out_;
  QuantizeOptions options_;
  const Log& log_;
  Format format_;
  bool is_compressed_;  // else bitsandbytes
  CompressedInputs inputs_;
  KernelChoice kernels_;
  ThreadPool threads_;
  mutable Workspace workspace_;
  MemoryMeter meter_;
  SourceModel source_;
  QuantizationSettings settings_;
  std::optional<Calibration> calibration_;
  ObservedInputs observed_;
  QuantizeResult result_;
  std::string verdict_;
  DType dtype_ = DType::kBF16;  // of the matrices
  int64_t done_ = 0, total_ = 0, quantized_weights_ = 0;
  uint64_t quantized_bytes_ = 0;
};

}  // namespace

QuantizeResult quantize_rounded(const fs::path& model, const fs::path& out, const QuantizeOptions& options,
                                const Calibration* calibration, const Log& log) {
  return RoundedRun(model, out, options, log).run(calibration);
}

}  // namespace lowbit
