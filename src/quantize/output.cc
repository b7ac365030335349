#include "quantize/output.h"

#include "base/fail.h"
#include "checkpoint/bnb.h"
#include "checkpoint/compressed.h"
#include "checkpoint/lowbit_dialect.h"
#include "checkpoint/tensor_kinds.h"
#include "format/affine.h"
#include "format/bits.h"
#include "format/codebook.h"
#include "quantize/options.h"

#include <algorithm>

namespace lowbit {
namespace {

// Of a nested_offset that is not "0", at most: a positive F32 written as a double.
constexpr uint64_t kMostOffsetText = 22;

const ModuleSettings* find_quantized(const QuantizationSettings& settings, std::string_view weight_name) {
  if (!weight_name.ends_with(".weight")) return nullptr;
  const std::string_view module = weight_name.substr(0, weight_name.size() - 7);
  if (settings.head.is_quantized && settings.head.module == module) return &settings.head;
  for (const auto& layer : settings.layers) {
    for (const ModuleSettings& entry : layer) {
      if (entry.module == module) return entry.is_quantized ? &entry : nullptr;
    }
  }
  return nullptr;
}

}  // namespace

bool is_act_order(const ModuleSettings& settings) {
  return settings.is_quantized && settings.gptq.desc_act && !settings.gptq.static_groups &&
         group_count(settings.in_features, settings.affine.group_size) > 1;
}

GptqVersion output_version(const QuantizeOptions& options) {
  return options.checkpoint_format == "gptq" ? GptqVersion::kV1 : GptqVersion::kV2;
}

Json dense_modules(const SourceModel& source, const QuantizationSettings& settings) {
  Json left = Json::array();
  for (const auto& layer : settings.layers) {
    for (const ModuleSettings& module : layer) {
      if (!module.is_quantized) left.push_back(module.module);
    }
  }
  for (const std::string& module : source.model.frame_linears()) left.push_back(module);
  return left;
}

Json bnb_skipped_modules(const SourceModel& source, const QuantizationSettings& settings) {
  Json left = dense_modules(source, settings);
  const bool is_usual = left.size() == 1 && source.model.has_head();
  return is_usual ? Json() : left;
}

double bits_per_weight(const CheckpointFiles& files, const QuantizationSettings& settings) {
  double weights = 0, bits = 0;
  std::vector<std::string> prefixes;
  auto count = [&](const ModuleSettings& module) {
    if (!module.is_quantized) return;
    weights += static_cast<double>(module.out_features) * static_cast<double>(module.in_features);
    prefixes.push_back(module.module + ".");
  };
  for (const auto& layer : settings.layers) {
    for (const ModuleSettings& module : layer) count(module);
  }
  count(settings.head);
  std::sort(prefixes.begin(), prefixes.end());
  for (const NamedTensor& named : files.tensors) {
    const auto next = std::upper_bound(prefixes.begin(), prefixes.end(), named.name);
    const bool is_part = next != prefixes.begin() && named.name.starts_with(*std::prev(next));
    if (!is_part || named.name.ends_with(".bias") || named.name.ends_with(".g_idx")) continue;
    bits += 8 * static_cast<double>(named.tensor.byte_count());
  }
  return weights > 0 ? bits / weights : 0;
}

namespace {

Json gptq_config(const QuantizationSettings& settings, const QuantizeOptions& options, bool act_order) {
  GptqConfig config;
  config.affine = options.affine;
  config.version = output_version(options);
  config.damp_percent = options.gptq.damp_percent;
  config.desc_act = act_order;
  config.static_groups = options.gptq.static_groups;
  config.true_sequential = options.gptq.true_sequential;
  config.lm_head = options.lm_head;
  config.dynamic = settings.dynamic;
  config.meta = Json::object();
  config.meta.set("method", options.method);
  if (options.method == "gptq") {
    config.meta.set("desc_act_used", options.gptq.desc_act);
    config.meta.set("act_group_aware", options.gptq.act_group_aware);
    config.meta.set("mse", std::stod(fmt::format("{}", options.gptq.mse)));
  }
  if (!options.compat.empty()) config.meta.set("compat", options.compat);
  if (!options.model_name_or_path.empty()) config.model_name_or_path = options.model_name_or_path;
  config.model_file_base_name = options.model_file_base_name;
  return gptq_config_json(config);
}

// dtype: of the weight before.
std::vector<NamedTensor> bnb_tensors(const std::string& module, const QuantizedTensor& weight, DType dtype,
                                     const QuantizeOptions& options) {
  const BnbMatrix matrix{.module = module,
                         .format = weight.format,
                         .group_size = weight.group_size,
                         .out_features = weight.out_features,
                         .in_features = weight.in_features,
                         .dtype = dtype,
                         .nested = nested_rounding(options)};
  const DType storage = bnb_quant_storage(options);
  const Shape shape = bnb_codes_shape(matrix, storage);
  std::vector<NamedTensor> tensors = {{module + ".weight", Tensor::borrow(nullptr, nullptr, storage, shape),
                                       [=] { return flat_bytes(weight).part(0, storage, shape); }}};
  for (NamedTensor& tensor : bnb_tensors_beside(matrix, flat_scales(weight)))
    tensors.push_back(std::move(tensor));
  return tensors;
}

Json lowbit_config(const QuantizationSettings& settings, const QuantizeOptions& options) {
  LowbitSettings config{.format = *find_format(options.format),
                        .bits = options.affine.bits,
                        .group_size = options.affine.group_size,
                        .log_base = options.log_base,
                        .group_sizes = {}};
  auto add = [&](const ModuleSettings& module) {
    if (module.is_quantized && module.affine.group_size != config.group_size)
      config.group_sizes.emplace(module.module, module.affine.group_size);
  };
  for (const auto& layer : settings.layers) {
    for (const ModuleSettings& module : layer) add(module);
  }
  add(settings.head);
  return lowbit_config_json(config);
}

// In the dialect of `options`. dtype: of the weight before.
std::vector<NamedTensor> tensors_of(const std::string& module, const QuantizedTensor& weight, DType dtype,
                                    const QuantizeOptions& options) {
  if (options.dialect == "gptq") return gptq_tensors(module, weight, output_version(options));
  if (options.dialect == "bitsandbytes") return bnb_tensors(module, weight, dtype, options);
  if (options.dialect == "compressed-tensors") return compressed_tensors(module, weight, options.affine.sym);
  if (options.dialect == "lowbit") return lowbit_tensors(module, weight);
  fail(ErrorCode::kInternal, "dialect {} is not known", options.dialect);
}

Json quantization_json(const SourceModel& source, const QuantizationSettings& settings,
                       const QuantizeOptions& options, DType dtype, bool act_order) {
  if (options.dialect == "gptq") return gptq_config(settings, options, act_order);
  if (options.dialect == "bitsandbytes") {
    return bnb_config_json(bnb_settings(options, dtype), bnb_skipped_modules(source, settings));
  }
  if (options.dialect == "compressed-tensors") {
    return compressed_config_json({.format = *find_format(options.format), .affine = options.affine},
                                  dense_modules(source, settings));
  }
  return lowbit_config(settings, options);
}

// A weight of these sizes with no codes in it.
QuantizedTensor empty_weight(const ModuleSettings& module, Format format) {
  QuantizedTensor weight{.format = format,
                         .bits = module.affine.bits,
                         .group_size = effective_group_size(module.in_features, module.affine.group_size),
                         .out_features = module.out_features,
                         .in_features = module.in_features};
  weight.codes = Tensor::borrow(nullptr, nullptr, DType::kI32,
                                {packed_words(module.in_features, weight.bits), module.out_features});
  weight.scales = Tensor::zeros(scale_dtype(format), {weight.groups(), module.out_features});
  return weight;
}

}  // namespace

BnbSettings bnb_settings(const QuantizeOptions& options, DType source) {
  BnbSettings settings{.format = *find_format(options.format),
                       .llm_int8_threshold = options.llm_int8_threshold,
                       .use_double_quant = options.bnb_4bit_use_double_quant,
                       .quant_storage = bnb_quant_storage(options)};
  if (settings.format != Format::kInt8)
    settings.compute_dtype = find_torch_float(options.bnb_4bit_compute_dtype).value_or(source);
  return settings;
}

MatrixTensors rounded_tensors(const RoundedMatrix& matrix, std::span<const float> scales,
                              const QuantizeOptions& options) {
  const auto codes = [&](DType dtype, Shape shape) {
    return NamedTensor{matrix.module + ".weight", Tensor::borrow(nullptr, nullptr, dtype, std::move(shape))};
  };
  const int64_t out = matrix.out_features, in = matrix.in_features;
  const Format format = *find_format(options.format);
  if (options.dialect == "compressed-tensors") {
    const CompressedMatrix compressed = compressed_matrix(matrix);
    return {compressed_codes(compressed, out), compressed_tensors_beside(compressed, scales)};
  }
  if (format == Format::kInt8)
    return {codes(DType::kI8, {out, in}), bnb_int8_tensors_beside(matrix.module, scales)};
  const BnbMatrix written{.module = matrix.module,
                          .format = format,
                          .group_size = kBnbGroupSize,
                          .out_features = out,
                          .in_features = in,
                          .dtype = matrix.dtype,
                          .nested = nested_rounding(options)};
  const DType storage = bnb_quant_storage(options);
  return {codes(storage, bnb_codes_shape(written, storage)), bnb_tensors_beside(written, scales)};
}

CompressedMatrix compressed_matrix(const RoundedMatrix& matrix) {
  return {matrix.module,      matrix.activations, matrix.dtype,
          matrix.in_features, matrix.input_grid,  matrix.has_zero_point};
}

std::vector<OutputTensor> output_layout(const SourceModel& source, const QuantizationSettings& settings,
                                        const QuantizeOptions& options) {
  std::vector<OutputTensor> result;
  for (const NamedTensor& entry : kept_tensors(source)) {
    const ModuleSettings* module = find_quantized(settings, entry.name);
    if (!module) {
      result.push_back({entry.name, std::string(component_of(entry.name)), entry.tensor.byte_count()});
      continue;
    }
    std::vector<NamedTensor> tensors;
    const Format format = *find_format(options.format);
    if (is_rounded(options)) {
      const int64_t in = module->in_features, out = module->out_features;
      const int64_t scales = format == Format::kInt8 ? out : (out * in + kBnbGroupSize - 1) / kBnbGroupSize;
      MatrixTensors parts = rounded_tensors(
          {.module = module->module,
           .dtype = entry.tensor.dtype(),
           .out_features = out,
           .in_features = in,
           .activations = module->rounds_inputs ? input_format(options) : ActivationFormat::kNone,
           .has_zero_point = !options.inputs.activations_sym.value_or(false)},
          std::vector<float>(static_cast<size_t>(scales)), options);
      tensors = std::move(parts.beside);
      tensors.push_back(std::move(parts.codes));
    } else {
      tensors = tensors_of(module->module, empty_weight(*module, format), entry.tensor.dtype(), options);
    }
    for (const NamedTensor& tensor : tensors) {
      const MatrixPart part =
          part_of(tensor.name, [&](std::string_view name) { return name == module->module; });
      const bool is_state = tensor.name.find(".quant_state.") != std::string::npos;
      const uint64_t offset = is_state && options.bnb_4bit_use_double_quant ? kMostOffsetText : 0;
      result.push_back({tensor.name, std::string(part.kind), tensor.tensor.byte_count() + offset});
    }
  }
  return result;
}

CheckpointFiles output_files(const SourceModel& source, const QuantizationSettings& settings,
                             const QuantizedModules& modules, const QuantizeOptions& options) {
  CheckpointFiles files;
  files.source = source.checkpoint.folder;
  files.base_name = options.model_file_base_name;
  files.max_shard_bytes = options.max_shard_size.empty() ? 0 : parse_bytes(options.max_shard_size).count;
  bool act_order = false;
  DType dtype = DType::kBF16;  // of the matrices
  for (const NamedTensor& entry : kept_tensors(source)) {
    if (!find_quantized(settings, entry.name)) {
      files.tensors.push_back(entry);
      continue;
    }
    const std::string module = entry.name.substr(0, entry.name.size() - 7);
    const auto found = modules.find(module);
    if (found == modules.end()) fail(ErrorCode::kInternal, "{} was to be quantized but is not", module);
    act_order = act_order || !found->second.column_order.empty();
    dtype = entry.tensor.dtype();
    for (NamedTensor& tensor : tensors_of(module, found->second, dtype, options))
      files.tensors.push_back(std::move(tensor));
  }
  const Json quantization = quantization_json(source, settings, options, dtype, act_order);
  files.config = output_config(source.checkpoint.config, files.tensors, quantization);
  if (options.dialect == "gptq") files.quantize_config = quantization;
  return files;
}

std::vector<EngineVerdict> output_engines(const QuantizationSettings& settings,
                                          const QuantizeOptions& options) {
  std::vector<EngineModule> modules;
  auto add = [&](const ModuleSettings& module) {
    if (module.is_quantized) {
      modules.push_back(
          {module.module, module.out_features, module.in_features, module.affine, is_act_order(module)});
    }
  };
  for (const auto& layer : settings.layers) {
    for (const ModuleSettings& module : layer) add(module);
  }
  add(settings.head);
  return engine_table(modules, output_version(options), !settings.dynamic.is_null());
}

}  // namespace lowbit
