// The tensors of a GPTQ checkpoint, decoded into named weights.
#pragma once

#include "checkpoint/checkpoint.h"
#include "checkpoint/gptq_settings.h"

namespace lowbit {

// Moves all of `files` into checkpoint.weights, decoding quantized modules, and sets found_version and
// group_order of checkpoint.quantization (which must be set). Errors name the module.
void read_gptq_weights(const GptqSettings& settings, std::string_view where, Checkpoint& checkpoint);

}  // namespace lowbit
