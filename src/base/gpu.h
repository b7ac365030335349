// NVIDIA GPUs as this process finds them. The CUDA runtime is linked statically and looks for the driver
// itself, so asking is safe on a machine that has neither driver nor CUDA.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lowbit {

struct Gpu {
  int index = 0;  // among those that CUDA_VISIBLE_DEVICES leaves
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  uint64_t memory_bytes = 0, l2_bytes = 0;
  std::string problem;  // why lowbit cannot use it and what to do; empty when it can
};

struct GpuSupport {
  bool is_built = false;                        // this binary holds GPU kernels
  int driver_version = 0, runtime_version = 0;  // of CUDA, 13000 for 13.0; 0: none
  std::vector<Gpu> gpus;
  std::string problem;  // why no GPU can be used and what to do; empty when one can
};

// Asked once.
const GpuSupport& gpu_support();

// Throws Error(kDevice), which says what to do, where GPU `index` is not there or cannot be used.
void require_gpu(int index);

// "13.0"
std::string cuda_version_text(int version);

}  // namespace lowbit
