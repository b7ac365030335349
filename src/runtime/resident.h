// Weights that are read again and again, once per token: in memory rather than in the mapped file. For a GPU:
// gpu_placement.h.
#pragma once

#include "base/threads.h"
#include "format/weight.h"
#include "io/shards.h"

namespace lowbit {

// Copies all tensors to large pages, each to the beginning of a cache line, so that reading them neither
// waits for page tables nor crosses lines (files of others begin their data anywhere). Where that would take
// more than a quarter of the memory that is free, the weights stay mapped, and false is returned. What is
// copied leaves the mapped files.
bool move_to_memory(NamedWeights& weights, const ThreadPool& threads, const TensorFolder& files);

}  // namespace lowbit
