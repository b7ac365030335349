// What a GPU can do at most, measured: the figures that benches and doctor put beside their own.
#pragma once

#include "base/function_ref.h"

namespace lowbit {

struct GpuLimits {
  double copy_gb_per_s = 0;  // 1e9 bytes read and written
  double read_gb_per_s = 0;
};

// Median milliseconds between an event before launch() and one behind it on `stream` (a cudaStream_t), of
// nine passes after two to warm up. Whether what was launched failed, the caller asks the runtime.
double gpu_median_ms(FunctionRef<void()> launch, void* stream);

// Over buffers of 1 GiB, medians of several passes. All zero where that much memory is
// not free.
GpuLimits measure_gpu_limits(int gpu = 0);  // index as in base/gpu.h

}  // namespace lowbit
