// Which modules are quantized and how: the options, the per-module rules of `dynamic`, and what cannot be
// quantized.
#pragma once

#include "base/json.h"
#include "lowbit/quantize.h"
#include "model/model.h"

#include <string>
#include <vector>

namespace lowbit {

struct ModuleSettings {
  std::string module;
  int64_t out_features = 0, in_features = 0;
  bool is_quantized = true;
  std::string reason;          // why it stays dense; empty when quantized
  bool rounds_inputs = false;  // of int8
  AffineOptions affine;
  GptqOptions gptq;
};

struct QuantizationSettings {
  std::vector<std::vector<ModuleSettings>> layers;  // as Block::linears() of each layer
  ModuleSettings head;
  Json dynamic;                       // for the checkpoint's config: object, or null when unused
  std::vector<std::string> warnings;  // units (q/k/v, gate/up) whose members differ, rules that match nothing

  bool has_quantized() const;
};

// "REGEX=bits:8,group_size:64", "REGEX=activations:none" and "-:REGEX" as the object that checkpoints carry:
// {"REGEX": {"bits": 8,
// ...}}. kInvalidArgument names the rule: no overrides, an unknown key, a value of the wrong type or range, a
// bad pattern.
Json parse_dynamic_rules(const std::vector<std::string>& rules);

// kInvalidArgument: lm_head for a tied model; rules that leave nothing to quantize; with method gptq and
// dialect bitsandbytes, a module whose rows are no whole groups.
QuantizationSettings resolve_settings(const Model& model, const QuantizeOptions& options);

}  // namespace lowbit
