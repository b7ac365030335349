#include "checkpoint/tensor_kinds.h"

#include "checkpoint/bnb.h"
#include "checkpoint/compressed.h"

namespace lowbit {
namespace {

bool has(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

}  // namespace

std::string_view component_of(std::string_view name) {
  for (std::string_view head : {"lm_head.", "embed_out.", "cls.", "classifier."})
    if (name.substr(0, head.size()) == head) return "head";
  if (has(name, "pooler.")) return "head";
  // q_norm stands inside of self_attn, post_attention_layernorm has "attention" in it: norms first.
  if (has(name, "norm") || has(name, "ln_") || has(name, "LayerNorm")) return "norms";
  if (has(name, "embed") || has(name, "wte.") || has(name, "wpe.")) return "embedding";
  if (has(name, "attn") || has(name, "attention")) return "attention";
  if (has(name, "mlp") || has(name, "feed_forward") || has(name, ".fc1.") || has(name, ".fc2.") ||
      has(name, "experts") || has(name, ".intermediate.") || has(name, ".output.dense.")) {
    return "mlp";
  }
  return "other";
}

MatrixPart part_of(std::string_view name, FunctionRef<bool(std::string_view)> is_module) {
  static constexpr std::pair<std::string_view, std::string_view> kParts[] = {
      {".qweight", "codes"}, {".qzeros", "zeros"}, {".scales", "scales"},
      {".g_idx", "g_idx"},   {".codes", "codes"},  {".shape", "shape"}};
  MatrixPart part;
  const auto look_in = [&](const auto& table) {
    for (const auto& [ending, kind] : table) {
      if (!part.module.empty() || !name.ends_with(ending)) continue;
      const std::string_view module = name.substr(0, name.size() - ending.size());
      if (is_module(module)) part = {kind, module};
    }
  };
  look_in(kParts);
  look_in(kBnbParts);
  look_in(kCompressedParts);
  return part;
}

}  // namespace lowbit
