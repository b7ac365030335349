#include "quantize/output.h"

#include "base/fail.h"
#include "checkpoint/bnb.h"
#include "checkpoint/compressed.h"
#include "checkpoint/lowbit_dialect.h"
#include "checkpoint/tensor_kinds.h"
#include "format/affine.h"
#include "format/bits.h"
#include "format/codebook.h"

#include <algorithm>

namespace lowbit {
namespace {

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

std::vector<OutputTensor> output_layout(const SourceModel& source, const QuantizationSettings& settings) {
  std::vector<OutputTensor> result;
  for (const NamedTensor& entry : kept_tensors(source)) {
    const ModuleSettings* module = find_quantized(settings, entry.name);
    if (!module) {
      result.push_back({entry.name, std::string(component_of(entry.name)), entry.tensor.byte_count()});
      continue;
    }
    const int64_t in = module->in_features, out = module->out_features;
    const int64_t groups = group_count(in, module->affine.group_size);
    const int bits = module->affine.bits;
    auto bytes = [](int64_t elements, int64_t each) { return static_cast<uint64_t>(elements * each); };
    result.push_back({module->module + ".qweight", "codes", bytes(packed_words(in, bits) * out, 4)});
    result.push_back({module->module + ".qzeros", "zeros", bytes(groups * packed_words(out, bits), 4)});
    result.push_back({module->module + ".scales", "scales", bytes(groups * out, 2)});
    result.push_back({module->module + ".g_idx", "g_idx", bytes(in, 4)});
  }
  return result;
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
                                     bool use_double_quant) {
  const int64_t bytes = weight.out_features * weight.in_features / 2;
  std::vector<NamedTensor> tensors = {{module + ".weight",
                                       Tensor::borrow(nullptr, nullptr, DType::kU8, {bytes, 1}),
                                       [weight] { return flat_bytes(weight); }}};
  const BnbMatrix matrix{.module = module,
                         .format = weight.format,
                         .group_size = weight.group_size,
                         .out_features = weight.out_features,
                         .in_features = weight.in_features,
                         .dtype = dtype,
                         .use_double_quant = use_double_quant};
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

}  // namespace

CheckpointFiles output_files(const SourceModel& source, const QuantizationSettings& settings,
                             const QuantizedModules& modules, const QuantizeOptions& options) {
  CheckpointFiles files;
  files.source = source.checkpoint.folder;
  files.base_name = options.model_file_base_name;
  files.max_shard_bytes = options.max_shard_size.empty() ? 0 : parse_bytes(options.max_shard_size).count;
  const bool is_gptq = options.dialect == "gptq", is_bnb = options.dialect == "bitsandbytes",
             is_compressed = options.dialect == "compressed-tensors";
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
    const QuantizedTensor& weight = found->second;
    act_order = act_order || !weight.column_order.empty();
    dtype = entry.tensor.dtype();
    std::vector<NamedTensor> tensors =
        is_gptq         ? gptq_tensors(module, weight, output_version(options))
        : is_bnb        ? bnb_tensors(module, weight, dtype, options.bnb_4bit_use_double_quant)
        : is_compressed ? compressed_tensors(module, weight, options.affine.sym)
                        : lowbit_tensors(module, weight);
    for (NamedTensor& tensor : tensors) files.tensors.push_back(std::move(tensor));
  }
  const Json quantization =
      is_gptq  ? gptq_config(settings, options, act_order)
      : is_bnb ? bnb_config_json({.format = *find_format(options.format),
                                  .use_double_quant = options.bnb_4bit_use_double_quant,
                                  .compute_dtype = dtype},
                                 bnb_skipped_modules(source, settings))
      : is_compressed
          ? compressed_config_json({.format = *find_format(options.format), .affine = options.affine},
                                   dense_modules(source, settings))
          : lowbit_config(settings, options);
  files.config = output_config(source.checkpoint.config, files.tensors, quantization);
  if (is_gptq) files.quantize_config = quantization;
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
