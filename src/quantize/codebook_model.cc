#include "quantize/codebook_model.h"

#include "base/fail.h"
#include "base/files.h"
#include "checkpoint/bnb.h"
#include "format/codebook.h"
#include "ops/encode.h"
#include "quantize/options.h"
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

class CodebookRun {
 public:
  CodebookRun(const fs::path& model, const fs::path& out, const QuantizeOptions& options, const Log& log)
      : out_(normal_out(out)),
        options_(options),
        log_(log),
        format_(*find_format(options.format)),
        threads_(options.threads),
        source_(load_source(model)) {
    options_ = settled(options_);
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
        bnb_config_json(format_, options_.bnb_4bit_use_double_quant, dtype_, bnb_skipped_modules(settings_)));
    return files;
  }

  void add_matrix(const Linear& linear, std::vector<NamedTensor>& tensors) {
    const Tensor dense = std::get<Tensor>(linear.weight);
    dtype_ = dense.dtype();
    const OpContext ops{.threads = &threads_};
    std::vector<float> scales;
    try {
      scales = flat_scales(ops, dense, kGroupSize);
    } catch (const Error& error) {
      fail(error.code(), "{}: {}", linear.module, error.what());
    }
    const size_t report = result_.modules.size();
    result_.modules.push_back(
        {.module = linear.module, .bits = 4, .group_size = kGroupSize, .method = "rtn"});
    const int64_t bytes = (dense.element_count() + 1) / 2;
    quantized_weights_ += dense.element_count();
    quantized_bytes_ += static_cast<uint64_t>(bytes);
    tensors.push_back({linear.module + ".weight", Tensor::borrow(nullptr, nullptr, DType::kU8, {bytes, 1}),
                       [this, dense, report] {
                         const auto start = std::chrono::steady_clock::now();
                         const FlatEncoded flat =
                             encode_flat({.threads = &threads_}, dense, format_, kGroupSize);
                         ModuleReport& module = result_.modules[report];
                         const FlatCodes codes{format_, kGroupSize, dense.size(0), dense.size(1),
                                               flat.bytes.data<uint8_t>()};
                         module.relative_error =
                             rounding_error({.threads = &threads_}, dense, codes, flat.scales);
                         module.seconds = seconds_since(start);
                         log_.report({"quantize", ++done_, total_,
                                      fmt::format("{}: {}, relative error {:.4f}", module.module,
                                                  options_.format, module.relative_error)});
                         return flat.bytes;
                       }});
    for (NamedTensor& tensor : bnb_tensors_beside({.module = linear.module,
                               .format = format_,
                               .group_size = kGroupSize,
                               .out_features = dense.size(0),
                               .in_features = dense.size(1),
                               .dtype = dense.dtype(),
                               .use_double_quant = options_.bnb_4bit_use_double_quant},
                                                  scales)) {
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
  ThreadPool threads_;
  SourceModel source_;
  QuantizationSettings settings_;
  QuantizeResult result_;
  DType dtype_ = DType::kBF16;  // of the matrices
  int64_t done_ = 0, total_ = 0, quantized_weights_ = 0;
  uint64_t quantized_bytes_ = 0;
};

}  // namespace

QuantizeResult quantize_to_codebook(const fs::path& model, const fs::path& out,
                                    const QuantizeOptions& options, const Log& log) {
  return CodebookRun(model, out, options, log).run();
}

}  // namespace lowbit
