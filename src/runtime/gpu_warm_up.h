// What the first tokens would wait for, done while the weights are on their way: memory in which a GPU tells
// the host its tokens is pinned, cuBLASLt is opened, and where long prompts are expected the code of its
// kernels is loaded.
#pragma once

#include "model/model.h"
#include "ops/cuda/libraries.h"

#include <atomic>
#include <future>
#include <memory>
#include <vector>

namespace lowbit {

class GpuWarmUp {
 public:
  // On a thread of its own. rows: of prompts that are expected at once, 0: none. Of the model only the sizes
  // of a block are read, here.
  GpuWarmUp(GpuQueue& queue, std::shared_ptr<GpuLibraries> libraries, const Model& model, int64_t rows);
  // Waits for the product that is being tried, no longer. Nobody else has to wait: a product that comes
  // meanwhile loads what it needs itself.
  ~GpuWarmUp();

 private:
  std::vector<GpuLibraries::Kind> kinds_;
  std::atomic<bool> is_enough_ = false;
  std::future<void> done_;
};

}  // namespace lowbit
