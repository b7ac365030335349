// From a model's layers to the program of decode_program.h.
#pragma once

#include "ops/cuda/decode_program.h"
#include "ops/decode_layer.h"
#include "ops/elementwise.h"

#include <memory>
#include <span>

namespace lowbit {

struct ModelParts {
  std::span<const DecodeLayer> layers;
  const Weight *embedding = nullptr, *head = nullptr;
  const Tensor *final_norm = nullptr, *head_bias = nullptr;  // head_bias: empty or null where there is none
};

// Weights, sizes and rope, without what changes or is scratch. Null where the parts are no such model: several formats,
// reordered columns, sizes that no kernel has.
std::unique_ptr<GpuProgram> program_of(const ModelParts& parts, const RopeTable& rope);

}  // namespace lowbit
