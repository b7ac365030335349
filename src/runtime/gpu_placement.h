// A model that was read into this machine's memory, or mapped, moves to a GPU.
#pragma once

#include "base/gpu_queue.h"
#include "lowbit/log.h"
#include "model/model.h"
#include "runtime/gpu_plan.h"

namespace lowbit {

struct GpuEncoding;  // ops/cuda/weights_gpu.h

// What the model takes there, with room for the keys and values of `tokens` tokens and for computing as many
// of them at once as evaluation does.
GpuSizes gpu_sizes(Model& model, DType cache_dtype, int64_t tokens, const GpuEncoding* encoding = nullptr);

// Replaces all weights, those of the encoding by codes; the layers that the plan streams stay in this
// machine's memory in the GPU's form, and the log says so. Returns the bytes of those.
uint64_t place_on_gpu(Model& model, const OpContext& context, const GpuSizes& sizes, const GpuPlan& plan,
                      const Log& log, GpuEncoding* encoding = nullptr);

}  // namespace lowbit
