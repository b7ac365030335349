#include "quantize/rounded_model.h"

#include "base/fail.h"
#include "base/files.h"
#include "checkpoint/bnb.h"
#include "checkpoint/compressed.h"
#include "format/codebook.h"
#include "ops/encode.h"
#include "quantize/out_folder.h"
#include "quantize/output.h"
#include "quantize/result_json.h"
#include "quantize/source_model.h"
#include "quantize/work_folder.h"

#include <chrono>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kGroupSize = kBnbGroupSize;

class RoundedRun {
 public:
  RoundedRun(const fs::path& model, const fs::path& out, const QuantizeOptions& options, const Log& log)
      : out_(normal_out(out)),
        options_(options),
        log_(log),
        format_(*find_format(options.format)),
        is_compressed_(options.dialect == "compressed-tensors"),
        activations_(options.activations == "int8-dynamic" ? ActivationFormat::kInt8Dynamic
                                                           : ActivationFormat::kNone),
        threads_(options.threads),
        source_(load_source(model)) {
    settings_ = resolve_settings(source_.model, options_);
  }

  QuantizeResult run() {
    for (const std::string& note : source_.checkpoint.notes) log_.info(note);
    for (const auto& warnings : {source_.warnings, settings_.warnings}) {
      for (const std::string& warning : warnings) warn(warning);
    }
    Json fingerprint = Json::object();
    fingerprint.set("format", options_.format);
    WorkFolder work(partial_folder(out_), fingerprint, false);
    const fs::path folder = work.make_checkpoint_folder();
    write_checkpoint(folder, files());
    warn("the result was not checked: lowbit eval divergence compares it with its source");
    finish(folder);
    work.publish(out_);
    log_.info(fmt::format("{} written, {:.1f} MB, {:.2f} bits per quantized weight, {:.1f} s", out_.string(),
                          static_cast<double>(result_.bytes) / 1e6, result_.bits_per_weight,
                          result_.seconds));
    return std::move(result_);
  }

 private:
  void warn(const std::string& text) {
    log_.warning(text);
    result_.warnings.push_back(text);
  }

  CheckpointFiles files() {
    CheckpointFiles files;
    files.source = source_.checkpoint.folder;
    files.base_name = options_.model_file_base_name;
    files.max_shard_bytes = options_.max_shard_size.empty() ? 0 : parse_bytes(options_.max_shard_size).count;
    std::map<std::string, const Linear*, std::less<>> linears;
    for (int64_t layer = 0; layer < source_.model.layer_count(); ++layer) {
      const auto& block = std::as_const(source_.model).block(layer).linears();
      for (size_t i = 0; i < block.size(); ++i) {
        if (settings_.layers[static_cast<size_t>(layer)][i].is_quantized)
          linears.emplace(block[i].module + ".weight", &block[i]);
      }
    }
    total_ = static_cast<int64_t>(linears.size());
    for (const NamedTensor& entry : kept_tensors(source_)) {
      if (const auto linear = linears.find(entry.name); linear != linears.end()) {
        add_matrix(*linear->second, files.tensors);
      } else {
        files.tensors.push_back(entry);
      }
    }
    files.config = output_config(
        source_.checkpoint.config, files.tensors,
        is_compressed_
            ? compressed_config_json({.activations = activations_}, dense_modules(source_, settings_))
            : bnb_config_json(bnb_settings(), bnb_skipped_modules(source_, settings_)));
    return files;
  }

  BnbSettings bnb_settings() const {
    BnbSettings settings{.format = format_,
                         .llm_int8_threshold = options_.llm_int8_threshold,
                         .use_double_quant = options_.bnb_4bit_use_double_quant};
    if (format_ != Format::kInt8) settings.compute_dtype = dtype_;
    return settings;
  }

  static RoundedMatrix matrix_of(const std::string& module, const Tensor& dense) {
    return {module, dense.dtype(), dense.size(0), dense.size(1)};
  }

  MatrixTensors parts_of(const std::string& module, const Tensor& dense) {
    const OpContext ops{.threads = &threads_};
    std::vector<float> scales =
        format_ == Format::kInt8 ? int8_row_sizes(ops, dense) : flat_scales(ops, dense, kGroupSize);
    if (is_compressed_) {
      for (float& scale : scales) scale = int8_grid(scale, dense.dtype()).scale;
    }
    return rounded_tensors(matrix_of(module, dense), scales, options_);
  }

  // The bytes of the codes; error: |dW| / |W|.
  Tensor code_bytes(const std::string& module, const Tensor& dense, double& error) const {
    const OpContext ops{.threads = &threads_};
    if (format_ == Format::kInt8) {
      const Int8Rows rows = encode_int8_rows(ops, dense, is_compressed_ ? dense.dtype() : DType::kF32);
      error = rounding_error(ops, dense, rows);
      return is_compressed_
                 ? compressed_code_bytes(compressed_matrix(matrix_of(module, dense), options_), rows.codes)
                 : rows.codes;
    }
    const FlatEncoded flat = encode_flat(ops, dense, format_, kGroupSize);
    const FlatCodes codes{format_, kGroupSize, dense.size(0), dense.size(1), flat.bytes.data<uint8_t>()};
    error = rounding_error(ops, dense, codes, flat.scales);
    return flat.bytes;
  }

  void add_matrix(const Linear& linear, std::vector<NamedTensor>& tensors) {
    const Tensor dense = std::get<Tensor>(linear.weight);
    dtype_ = dense.dtype();
    MatrixTensors parts;
    try {
      parts = parts_of(linear.module, dense);
    } catch (const Error& error) {
      fail(error.code(), "{}: {}", linear.module, error.what());
    }
    const size_t report = result_.modules.size();
    result_.modules.push_back({.module = linear.module,
                               .bits = options_.affine.bits,
                               .group_size = options_.affine.group_size,
                               .method = "rtn"});
    quantized_weights_ += dense.element_count();
    quantized_bytes_ += parts.codes.tensor.byte_count();
    parts.codes.make = [this, dense, report] {
      const auto start = std::chrono::steady_clock::now();
      ModuleReport& module = result_.modules[report];
      Tensor bytes = code_bytes(module.module, dense, module.relative_error);
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

  void finish(const fs::path& folder) {
    result_.source_bytes = source_.checkpoint.files.file_bytes;
    result_.bytes = safetensors_bytes(folder);
    result_.bits_per_weight =
        8 * static_cast<double>(quantized_bytes_) / static_cast<double>(quantized_weights_);
    result_.seconds = seconds_since(start_);
    result_.peak_rss_bytes = process_memory().peak_rss_bytes;
    result_.report_json = result_json(result_, options_, settings_, nullptr, "").dump(2);
    write_file_atomically(folder / "quantize_report.json", result_.report_json + "\n");
  }

  static double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  fs::path out_;
  QuantizeOptions options_;
  const Log& log_;
  Format format_;
  bool is_compressed_;  // else bitsandbytes
  ActivationFormat activations_;
  ThreadPool threads_;
  SourceModel source_;
  QuantizationSettings settings_;
  QuantizeResult result_;
  DType dtype_ = DType::kBF16;  // of the matrices
  int64_t done_ = 0, total_ = 0, quantized_weights_ = 0;
  uint64_t quantized_bytes_ = 0;
};

}  // namespace

QuantizeResult quantize_rounded(const fs::path& model, const fs::path& out, const QuantizeOptions& options,
                                const Log& log) {
  return RoundedRun(model, out, options, log).run();
}

}  // namespace lowbit
