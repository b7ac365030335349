// What a quantization_config (or quantize_config.json) says, in any of the spellings that AutoGPTQ,
// GPTQModel, optimum and lowbit write. Pure: from JSON to a struct.
#pragma once

#include "base/json.h"
#include "checkpoint/dynamic_rules.h"
#include "lowbit/format.h"

#include <string>
#include <string_view>

namespace lowbit {

struct GptqSettings {
  AffineOptions affine;  // the default of all modules
  bool desc_act = false;
  std::string version = "gptq";  // "gptq" (zero points stored minus one) or "gptq_v2"
  std::string quantizer;         // meta.quantizer, "gptqmodel:7.7.0"; empty when not said
  std::string base_name;         // model_file_base_name; empty when null or absent
  DynamicRules dynamic;

  // Version 1 zero points were made by subtracting from whole words (GPTQModel), so they are undone in the
  // same way.
  bool subtracts_from_words() const;
  // The options of one module after its dynamic rule.
  AffineOptions module_options(std::string_view module, std::string_view where) const;
};

// Errors name `where`: kUnsupported for another method or format (by name), for 5, 6, 7 bits and for words
// that are not int32; kCorruptFile for missing keys, wrong types, and numbers without sense.
GptqSettings read_gptq_settings(const Json& object, std::string_view where);

}  // namespace lowbit
