// The acceptance rules of other engines' kernels, as published in their sources in 2026 (docs/formats/gptq.md
// lists them).
#include "base/fail.h"
#include "checkpoint/gptq.h"
#include "format/affine.h"
#include "format/bits.h"

#include <map>
#include <set>

namespace lowbit {
namespace {

// The reason why a module does not fit, empty when it does.
using Rule = std::string (*)(const EngineModule&);

bool is_one_of(int value, std::initializer_list<int> values) {
  for (int other : values) {
    if (value == other) return true;
  }
  return false;
}

std::string multiple(const char* what, int64_t size, int64_t of) {
  return size % of == 0 ? "" : fmt::format("{} {} is no multiple of {}", what, size, of);
}

std::string first_of(std::initializer_list<std::string> reasons) {
  for (const std::string& reason : reasons) {
    if (!reason.empty()) return reason;
  }
  return "";
}

std::string whole_groups(const EngineModule& module) {
  const int64_t size = effective_group_size(module.in_features, module.affine.group_size);
  return module.in_features % size == 0
             ? ""
             : fmt::format("in_features {} is no multiple of group_size {}", module.in_features, size);
}

// group_size that covers the row is written as -1 in the engines' tables.
int named_group_size(const EngineModule& module) {
  return module.affine.group_size >= module.in_features ? -1 : module.affine.group_size;
}

std::string marlin_group(const EngineModule& module) {
  return is_one_of(named_group_size(module), {-1, 32, 64, 128})
             ? ""
             : fmt::format("group_size {} is none of -1, 32, 64, 128", module.affine.group_size);
}

std::string bits_4_or_8(const EngineModule& module) {
  return is_one_of(module.affine.bits, {4, 8})
             ? ""
             : fmt::format("{} bits, its kernels need 4 or 8", module.affine.bits);
}

std::string symmetric(const EngineModule& module) { return module.affine.sym ? "" : "asymmetric"; }

std::string no_act_order(const EngineModule& module) {
  return module.is_act_order ? "g_idx is not sequential (desc_act without static_groups)" : "";
}

// Marlin as vLLM and SGLang call it: 64 outputs and 128 inputs per thread block.
std::string marlin(const EngineModule& module) {
  return first_of({bits_4_or_8(module), symmetric(module), marlin_group(module), whole_groups(module),
                   multiple("out_features", module.out_features, 64),
                   multiple("in_features", module.in_features, 128)});
}

std::string vllm(const EngineModule& module) { return first_of({marlin(module), no_act_order(module)}); }

std::string inside_blocks(const EngineModule& module) {
  return module.name == "lm_head" ? "only modules inside of the decoder blocks may be quantized" : "";
}

// GPTQModel on CUDA: Marlin pads the inputs; ExLlamaV2 takes asymmetric 4 bits.
std::string gptqmodel_fast(const EngineModule& module) {
  const std::string shared = first_of({bits_4_or_8(module), marlin_group(module), whole_groups(module)});
  if (!shared.empty()) return shared;
  const std::string outputs = multiple("out_features", module.out_features, 64);
  if (module.affine.sym && outputs.empty()) return "";
  if (module.affine.bits != 4) return first_of({symmetric(module), outputs});
  return first_of(
      {multiple("out_features", module.out_features, 32), multiple("in_features", module.in_features, 32)});
}

std::string gptqmodel_any(const EngineModule& module) {
  return is_one_of(named_group_size(module), {-1, 16, 32, 64, 128, 256, 512, 1024})
             ? ""
             : fmt::format("group_size {} is none of -1, 16, 32, ..., 1024", module.affine.group_size);
}

std::string whole_words(const EngineModule& module) {
  const int64_t codes = module.affine.bits == 3 ? 32 : 32 / module.affine.bits;
  return first_of({multiple("out_features", module.out_features, codes),
                   multiple("in_features", module.in_features, codes)});
}

std::string sglang_any(const EngineModule& module) {
  return first_of({whole_groups(module), whole_words(module)});
}

std::string auto_gptq_fast(const EngineModule& module) {
  if (module.affine.bits != 4) return fmt::format("{} bits, its fast kernel needs 4", module.affine.bits);
  return first_of(
      {multiple("out_features", module.out_features, 32), multiple("in_features", module.in_features, 32)});
}

std::string auto_gptq_any(const EngineModule& module) {
  return first_of(
      {multiple("out_features", module.out_features, 32), multiple("in_features", module.in_features, 32)});
}

std::string first_offence(const std::vector<EngineModule>& modules, Rule rule) {
  for (const EngineModule& module : modules) {
    if (const std::string reason = rule(module); !reason.empty())
      return fmt::format("{} ({})", reason, module.name);
  }
  return "";
}

// vLLM and SGLang fuse q, k, v and gate, up: the members must be quantized alike, or none of them.
std::string uneven_unit(const std::vector<EngineModule>& modules) {
  static const std::vector<std::vector<std::string>> kUnits = {{"q_proj", "k_proj", "v_proj"},
                                                               {"gate_proj", "up_proj"}};
  std::map<std::string, const EngineModule*> by_name;
  for (const EngineModule& module : modules) by_name[module.name] = &module;
  for (const EngineModule& module : modules) {
    const size_t dot = module.name.rfind('.');
    if (dot == std::string::npos) continue;
    const std::string prefix = module.name.substr(0, dot + 1), leaf = module.name.substr(dot + 1);
    for (const auto& unit : kUnits) {
      bool is_member = false;
      for (const std::string& member : unit) is_member = is_member || member == leaf;
      for (const std::string& member : unit) {
        if (!is_member) break;
        const auto other = by_name.find(prefix + member);
        if (other == by_name.end()) {
          return fmt::format("{} is quantized, but {}{}, which is fused with it, is not", module.name, prefix,
                             member);
        }
        const AffineOptions &a = module.affine, &b = other->second->affine;
        const bool same_groups =
            a.group_size == b.group_size || named_group_size(module) == named_group_size(*other->second);
        if (a.bits != b.bits || !same_groups || a.sym != b.sym) {
          return fmt::format("{} and {} are fused, but quantized with different options", module.name,
                             other->first);
        }
      }
    }
  }
  return "";
}

bool any_asymmetric(const std::vector<EngineModule>& modules) {
  for (const EngineModule& module : modules) {
    if (!module.affine.sym) return true;
  }
  return false;
}

EngineVerdict verdict(const char* engine, const std::string& cannot, const std::string& slow) {
  if (!cannot.empty()) return {engine, "no", cannot};
  if (!slow.empty()) return {engine, "slow", slow};
  return {engine, "fast", ""};
}

}  // namespace

std::vector<EngineVerdict> engine_table(const std::vector<EngineModule>& modules, GptqVersion version,
                                        bool has_dynamic) {
  const bool is_v1 = version == GptqVersion::kV1;
  const std::string foreign_v1 = is_v1 && any_asymmetric(modules)
                                     ? "it refuses asymmetric version 1 files of other tools; write gptq_v2"
                                     : "";
  const std::string uneven = uneven_unit(modules);
  const std::string gptqmodel_cannot = first_of({foreign_v1, first_offence(modules, gptqmodel_any)});
  const std::string gptqmodel_slow = first_offence(modules, gptqmodel_fast);
  const std::string blocks_only = first_offence(modules, inside_blocks);
  return {
      verdict("GPTQModel", gptqmodel_cannot, gptqmodel_slow),
      verdict("transformers + GPTQModel",
              first_of({gptqmodel_cannot,
                        has_dynamic
                            ? "optimum does not know per-module options (dynamic); load with GPTQModel itself"
                            : "",
                        blocks_only}),
              gptqmodel_slow),
      verdict("vLLM", first_of({uneven, first_offence(modules, vllm)}), ""),
      verdict("SGLang", first_of({uneven, first_offence(modules, sglang_any)}),
              first_of({first_offence(modules, no_act_order), first_offence(modules, marlin)})),
      verdict("AutoGPTQ",
              first_of({is_v1 ? "" : "it does not know gptq_v2",
                        has_dynamic ? "it does not know per-module options (dynamic)" : "", blocks_only,
                        first_offence(modules, auto_gptq_any)}),
              first_offence(modules, auto_gptq_fast)),
  };
}

}  // namespace lowbit
