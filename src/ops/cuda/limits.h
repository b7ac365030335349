// What a GPU can do at most, measured: the figures that benches and doctor put beside their own.
#pragma once

#include <cstdint>

namespace lowbit {

struct GpuLimits {
  double copy_gb_per_s = 0;  // 1e9 bytes read and written
  double read_gb_per_s = 0;
};

// On the current device, over buffers of 1 GiB, medians of several passes. All zero where that much memory is
// not free.
GpuLimits measure_gpu_limits();

}  // namespace lowbit
