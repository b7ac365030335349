// Which part of a model a tensor belongs to, by its Hugging Face name. For inspection and plans only.
#pragma once

#include <string_view>

namespace lowbit {

// "embedding", "head", "attention", "mlp", "norms" or "other".
std::string_view component_of(std::string_view tensor_name);

}  // namespace lowbit
