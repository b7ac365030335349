// Weights that are read again and again, once per token: in memory, or a GPU's, rather than in the mapped
// file.
#pragma once

#include "base/threads.h"
#include "format/weight.h"
#include "ops/context.h"

namespace lowbit {

// Copies all tensors to large pages, each to the beginning of a cache line, so that reading them neither
// waits for page tables nor crosses lines (files of others begin their data anywhere). Where that would take
// more than a quarter of the memory that is free, the weights stay mapped, and false is returned.
bool move_to_memory(NamedWeights& weights, const ThreadPool& threads);

// Moves all to the context's GPU, as its operators want them (ops/cuda/matmul_gpu.h).
void move_to_gpu(NamedWeights& weights, const OpContext& context);

}  // namespace lowbit
