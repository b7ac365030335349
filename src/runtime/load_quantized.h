// Quantizing while a model is loaded: each matrix of its layers goes from the mapped file to codes, so that
// no more than one of them is in memory as it was.
#pragma once

#include "checkpoint/checkpoint.h"
#include "lowbit/generate.h"
#include "model/model.h"
#include "ops/context.h"
#include "ops/cuda/weights_gpu.h"

namespace lowbit {

// Takes the matrices of the layers out of checkpoint.weights and returns them as load_in_4bit or load_in_8bit
// asks. Embedding, head, norms, biases and what is to be skipped stay there. kInvalidArgument: the model is
// quantized already; a name to be skipped that no module has; values that are not finite, naming the module.
NamedWeights quantized_on_load(Checkpoint& checkpoint, const RuntimeOptions& options, const OpContext& ops,
                               const Log& log);

// The same for a model that goes to a GPU, where its matrices become codes. kUnsupported: inputs of a matrix
// are no multiple of the group size.
GpuEncoding encoding_on_load(Model& model, const Checkpoint& checkpoint, const RuntimeOptions& options,
                             const Log& log);

}  // namespace lowbit
