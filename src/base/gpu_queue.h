// One GPU as lowbit works with it: its memory, and a queue of what it is to do, in order. Operators launch their
// kernels on the queue; copies and frees take their turn in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace lowbit {

// Whether this binary holds GPU kernels. What stands behind `if constexpr (kHasCuda)` need not exist otherwise.
#if LOWBIT_CUDA
constexpr bool kHasCuda = true;
#else
constexpr bool kHasCuda = false;
#endif

// Memory of a GPU (index as in base/gpu.h), aligned to 256 bytes, not initialised; null when it is not to be had.
void* allocate_gpu_memory(int gpu, size_t bytes);
void free_gpu_memory(int gpu, void* memory);

struct GpuMemory {
  uint64_t free_bytes = 0, total_bytes = 0;
};
GpuMemory gpu_memory(int gpu);

class GpuQueue {
 public:
  explicit GpuQueue(int gpu);  // kDevice: why this GPU cannot be used
  ~GpuQueue();
  GpuQueue(const GpuQueue&) = delete;
  GpuQueue& operator=(const GpuQueue&) = delete;

  int gpu() const { return gpu_; }
  void* stream() const { return stream_; }  // a cudaStream_t

  // Both are done with this machine's memory when they return. They report what failed before them: kDevice.
  void copy_in(void* to_gpu, const void* from, size_t bytes);
  void copy_out(void* to, const void* from_gpu, size_t bytes);
  // Until all that was queued is done; kDevice names `what` and the driver's answer when some of it failed.
  void wait(std::string_view what);

 private:
  void make_current() const;

  int gpu_;
  void* stream_ = nullptr;
};

}  // namespace lowbit
