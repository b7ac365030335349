// What `lowbit doctor` says of the GPU's kernels. On a GPU an operator has no table to choose from: shapes
// decide, and whether NVIDIA's libraries are there.
#pragma once

#include "ops/cuda/libraries.h"

#include <string>
#include <vector>

namespace lowbit {

struct GpuKernelListing {
  std::string op, kernel, used_for;
  bool available = true;
};
std::vector<GpuKernelListing> list_gpu_kernels(GpuLibraries& libraries);

}  // namespace lowbit
