// Which part of a model a tensor belongs to, by its Hugging Face name, and which part of a quantized matrix.
// For inspection and plans only.
#pragma once

#include "base/function_ref.h"

#include <string_view>

namespace lowbit {

// "embedding", "head", "attention", "mlp", "norms" or "other".
std::string_view component_of(std::string_view tensor_name);

// What part of which quantized module a tensor is: codes, zeros, scales, g_idx, codebook, shape, activations;
// "dense" for all others.
struct MatrixPart {
  std::string_view kind = "dense", module;
};
MatrixPart part_of(std::string_view tensor_name, FunctionRef<bool(std::string_view)> is_module);

}  // namespace lowbit
