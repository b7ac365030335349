// A checkpoint written another way. Dense tensors are made one at a time while they are written.
#include "lowbit/convert.h"

#include "base/fail.h"
#include "base/threads.h"
#include "checkpoint/gptq.h"
#include "model/model.h"
#include "quantize/matrix.h"
#include "quantize/methods.h"
#include "quantize/out_folder.h"

#include <algorithm>
#include <cmath>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

double largest_difference(const Tensor& a, const Tensor& b) {
  double most = 0;
  for (int64_t i = 0; i < a.element_count(); ++i) {
    const double difference = std::abs(double{float_at(a, i)} - float_at(b, i));
    if (!(difference <= most)) most = difference;  // NaN counts
  }
  return most;
}

class Conversion {
 public:
  Conversion(const fs::path& model, const ConvertOptions& options, const Log& log)
      : options_(options),
        log_(log),
        checkpoint_(read_checkpoint(model)),
        dense_(find_torch_float(options.to)) {
    for (const std::string& note : checkpoint_.notes) log.info(note);
    result_.from = checkpoint_.quantization ? checkpoint_.quantization->declared_version : "dense";
    result_.to = options.to.empty() ? result_.from : options.to;
    result_.source_bytes = checkpoint_.files.file_bytes;
    if (!options.to.empty() && !dense_ && options.to != "gptq" && options.to != "gptq_v2") {
      fail(ErrorCode::kInvalidArgument,
           "cannot convert to \"{}\"; expected bfloat16, float16, float32, gptq or gptq_v2", options.to);
    }
    if (checkpoint_.quantization && checkpoint_.quantization->dialect != "gptq" && !dense_) {
      fail(ErrorCode::kUnsupported,
           "{} is quantized with {}, which converts to bfloat16, float16 and float32 only", model.string(),
           checkpoint_.quantization->dialect);
    }
    if (!checkpoint_.quantization && !dense_ && (!options.to.empty() || options.sequential_groups)) {
      fail(ErrorCode::kInvalidArgument, "{} is not quantized: lowbit quantize makes a GPTQ checkpoint",
           model.string());
    }
  }

  CheckpointFiles files() {
    CheckpointFiles files;
    files.source = checkpoint_.folder;
    for (const auto& [name, weight] : checkpoint_.weights) {
      if (const auto* quantized = std::get_if<QuantizedTensor>(&weight)) {
        add_quantized(name, *quantized, files.tensors);
      } else {
        add_dense(name, std::get<Tensor>(weight), files.tensors);
      }
    }
    files.max_shard_bytes = options_.max_shard_size.empty() ? 0 : parse_bytes(options_.max_shard_size).count;
    Json quantization;
    if (checkpoint_.quantization && !dense_) quantization = quantization_config();
    files.config = output_config(checkpoint_.config, files.tensors, quantization);
    if (!quantization.is_null()) files.quantize_config = quantization;
    return files;
  }

  ConvertResult& result() { return result_; }

 private:
  void add_dense(const std::string& name, const Tensor& tensor, std::vector<NamedTensor>& out) {
    if (!dense_ || !is_floating(tensor.dtype()) || tensor.dtype() == *dense_) {
      out.push_back({name, tensor});
      return;
    }
    out.push_back({name, Tensor::borrow(nullptr, nullptr, *dense_, tensor.shape()), [this, tensor] {
                     const Tensor made = converted(tensor, *dense_);
                     note_error(largest_difference(tensor, made));
                     return made;
                   }});
  }

  void add_quantized(const std::string& name, const QuantizedTensor& weight, std::vector<NamedTensor>& out) {
    const std::string module = name.substr(0, name.size() - std::string_view(".weight").size());
    if (dense_) {
      Shape shape = {weight.out_features, weight.in_features};
      const bool is_turned = is_conv1d(checkpoint_.config, module);
      if (is_turned) std::swap(shape[0], shape[1]);
      out.push_back({name, Tensor::borrow(nullptr, nullptr, *dense_, shape), [this, weight, is_turned] {
                       const Tensor exact = dequantized(weight);
                       const Tensor made = converted(exact, *dense_);
                       note_error(largest_difference(exact, made));
                       return is_turned ? transposed(made) : made;
                     }});
      return;
    }
    QuantizedTensor kept = weight;
    if (options_.sequential_groups && !weight.column_order.empty()) kept = regrouped(module, weight);
    has_act_order_ |= !kept.column_order.empty();
    for (NamedTensor& tensor : gptq_tensors(module, kept, version())) out.push_back(std::move(tensor));
  }

  // Groups of neighbouring columns with grids of their own: rounded to nearest from the dequantized weights.
  QuantizedTensor regrouped(const std::string& module, const QuantizedTensor& weight) {
    MatrixProblem problem{.module = module, .weight = dequantized(weight)};
    problem.affine = {weight.bits, static_cast<int>(weight.group_size), weight.zero_points.empty()};
    problem.least_zero_point = version() == GptqVersion::kV1 ? 1 : 0;
    const OpContext ops{&threads_, &workspace_, nullptr};
    QuantizedTensor sequential = quantize_rtn(ops, problem).weight;
    note_error(largest_difference(problem.weight, dequantized(sequential)));
    log_.info(fmt::format("{}: requantized to groups in column order", module));
    return sequential;
  }

  GptqVersion version() const {
    if (options_.to == "gptq") return GptqVersion::kV1;
    if (options_.to == "gptq_v2") return GptqVersion::kV2;
    const QuantizationInfo& info = *checkpoint_.quantization;
    const std::string& found = info.found_version.empty() ? info.declared_version : info.found_version;
    return found == "gptq_v2" ? GptqVersion::kV2 : GptqVersion::kV1;
  }

  // The source's own object, with what has changed: its `meta` and unknown keys stay.
  Json quantization_config() const {
    Json config = checkpoint_.quantization->config;
    const char* format = version() == GptqVersion::kV1 ? "gptq" : "gptq_v2";
    config.set("checkpoint_format", Json(format));
    config.set("format", Json(format));
    config.set("desc_act", Json(has_act_order_));
    return config;
  }

  void note_error(double error) {
    if (!(error <= result_.largest_error)) result_.largest_error = error;
  }

  const ConvertOptions& options_;
  const Log& log_;
  Checkpoint checkpoint_;
  std::optional<DType> dense_;
  bool has_act_order_ = false;
  ThreadPool threads_;
  Workspace workspace_;
  ConvertResult result_;
};

}  // namespace

ConvertResult convert(const fs::path& model, const fs::path& out_folder, const ConvertOptions& options,
                      const Log& log) {
  const fs::path out = normal_out(out_folder);
  check_out_folder(model, out, options.overwrite);
  Conversion conversion(model, options, log);
  const CheckpointFiles files = conversion.files();

  const fs::path partial = partial_folder(out);
  if (fs::exists(partial)) {
    fail(ErrorCode::kInvalidArgument,
         "{} exists: an interrupted run left it. Finish that run, or remove the folder", partial.string());
  }
  fs::create_directories(partial);
  try {
    write_checkpoint(partial, files);
    if (fs::exists(out)) fs::remove_all(out);
    fs::rename(partial, out);
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(partial, ignored);
    throw;
  }
  sync_folder(out.has_parent_path() ? out.parent_path() : fs::path("."));

  ConvertResult result = conversion.result();
  result.bytes = open_tensor_folder(out).file_bytes;
  Json report = Json::object();
  report.set("from", Json(result.from));
  report.set("to", Json(result.to));
  report.set("source_bytes", Json(result.source_bytes));
  report.set("bytes", Json(result.bytes));
  report.set("largest_error", Json(result.largest_error));
  result.report_json = report.dump();
  return result;
}

}  // namespace lowbit
