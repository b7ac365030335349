// The GPTQ dialect: qweight, qzeros, scales, g_idx per module, in version 1 (zero points stored minus one)
// and 2. Bytes: docs/formats/gptq.md.
#pragma once

#include "checkpoint/checkpoint.h"

#include <string>
#include <vector>

namespace lowbit {

enum class GptqVersion { kV1, kV2 };

// The tensors of one module: "<module>.qweight", ".qzeros", ".scales", ".g_idx" (sequential, or scattered
// when the weight has a column_order). qweight and scales share the weight's storage when no column_order is
// set. kInvalidArgument when version 1 cannot hold a zero_point of 0.
std::vector<NamedTensor> gptq_tensors(const std::string& module, const QuantizedTensor& weight,
                                      GptqVersion version);

// What the top level of quantization_config and quantize_config.json say of a checkpoint that lowbit writes.
struct GptqConfig {
  AffineOptions affine;
  GptqVersion version = GptqVersion::kV1;
  float damp_percent = 0.05f;
  bool desc_act = false;  // only when g_idx is scattered
  bool static_groups = false;
  bool true_sequential = true;
  bool lm_head = false;
  Json dynamic;               // object regex -> overrides, null when unused
  Json meta;                  // object; gets "quantizer": ["lowbit:x.y.z"]
  Json model_name_or_path;    // string or null
  Json model_file_base_name;  // string or null
};
Json gptq_config_json(const GptqConfig& config);

// Whether an engine can run such a checkpoint, and why not (research: kernels' published shape rules).
struct EngineVerdict {
  std::string engine;   // "GPTQModel", "transformers + GPTQModel", "vLLM", "SGLang", "AutoGPTQ"
  std::string verdict;  // "fast", "slow", "no"
  std::string reason;   // "in_features 576 is no multiple of group_size 128 (model.layers.0.mlp.gate_proj)";
                        // may be empty
};
struct EngineModule {
  std::string name;
  int64_t out_features = 0, in_features = 0;
  AffineOptions affine;
  bool is_act_order = false;
};
std::vector<EngineVerdict> engine_table(const std::vector<EngineModule>& modules, GptqVersion version,
                                        bool has_dynamic);

}  // namespace lowbit
