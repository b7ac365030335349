// One GPU as lowbit works with it: its memory, and a queue of what it is to do, in order. Operators launch
// their kernels on the queue; copies and frees take their turn in it.
#pragma once

#include "base/function_ref.h"

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace lowbit {

// Whether this binary holds GPU kernels. What stands behind `if constexpr (kHasCuda)` need not exist
// otherwise.
#if LOWBIT_CUDA
constexpr bool kHasCuda = true;
#else
constexpr bool kHasCuda = false;
#endif

// Memory of a GPU (index as in base/gpu.h), aligned to 256 bytes, not initialised; null when it is not to be
// had.
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
  // Queued only.
  void copy_within(void* to, const void* from, size_t bytes);
  struct Rows {
    void* data = nullptr;
    size_t pitch = 0;  // bytes from row to row
  };
  void copy_rows_within(Rows to, const void* from, size_t row_bytes, size_t rows);  // from: rows without gaps
  void clear(void* memory, size_t bytes);                                           // to zero bytes
  // Until all that was queued is done; kDevice names `what` and the driver's answer when some of it failed.
  void wait(std::string_view what);
  void make_current() const;  // for this thread

 private:
  int gpu_;
  void* stream_ = nullptr;
};

// What `body` queues, recorded once and queued again as often as wanted by one call. While it is recorded
// nothing runs, no memory may be taken, and nothing may be waited for. kDevice where the driver refuses.
class GpuGraph {
 public:
  GpuGraph(GpuQueue& queue, FunctionRef<void()> body);
  ~GpuGraph();
  GpuGraph(const GpuGraph&) = delete;
  GpuGraph& operator=(const GpuGraph&) = delete;

  void launch();

 private:
  GpuQueue& queue_;
  void* executable_ = nullptr;
};

// A point in the queue that can be waited for while what was queued behind it goes on.
class GpuEvent {
 public:
  explicit GpuEvent(GpuQueue& queue);
  ~GpuEvent();
  GpuEvent(const GpuEvent&) = delete;
  GpuEvent& operator=(const GpuEvent&) = delete;

  void record();
  void wait(std::string_view what);  // kDevice

 private:
  GpuQueue& queue_;
  void* event_ = nullptr;
};

// This machine's memory that kernels write to directly; kOutOfMemory.
class PinnedMemory {
 public:
  explicit PinnedMemory(size_t bytes);
  ~PinnedMemory();
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

}  // namespace lowbit
