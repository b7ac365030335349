// What a GPU can do at most, measured: the figures that benches and doctor put beside their own.
#pragma once

#include "base/function_ref.h"
#include "base/gpu_queue.h"

#include <cstdint>

namespace lowbit {

class GpuLibraries;

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

// Products and sums of BF16 in 1e12 a second, sums in F32: the median product of two matrices of 8192 x 8192
// through cuBLASLt, on a slower card 4096 x 4096. 0 without the library or without the memory (440 MB).
// kDevice when the library refuses.
double measure_matrix_rate(GpuQueue& queue, GpuLibraries& libraries);

// Numbers in (-1, 1) that look random; `seed` makes others.
void gpu_fill_bf16(uint16_t* to, int64_t count, uint32_t seed, void* stream);

}  // namespace lowbit
