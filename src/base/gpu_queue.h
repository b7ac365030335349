// One GPU as lowbit works with it: its memory, and a queue of what it is to do, in order. Operators launch
// their kernels on the queue; copies and frees take their turn in it.
#pragma once

#include "base/function_ref.h"
#include "base/gpu_memory.h"

#include <cstddef>
#include <memory>
#include <mutex>
#include <string_view>
#include <vector>

namespace lowbit {

// Whether this binary holds GPU kernels. What stands behind `if constexpr (kHasCuda)` need not exist
// otherwise.
#if LOWBIT_CUDA
constexpr bool kHasCuda = true;
#else
constexpr bool kHasCuda = false;
#endif

// This machine's memory that kernels write to directly; kOutOfMemory.
class PinnedMemory {
 public:
  explicit PinnedMemory(size_t bytes);
  ~PinnedMemory();
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;

  size_t byte_count() const { return byte_count_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  size_t byte_count_;
  void* data_ = nullptr;
};

class GpuQueue {
 public:
  // kDevice: why this GPU cannot be used. limit: of what may be taken of its memory, in bytes; 0: none.
  explicit GpuQueue(int gpu, uint64_t limit = 0);
  // A second queue of the same GPU, which works beside the first one and shares its memory.
  enum class Beside { kIt };
  GpuQueue(const GpuQueue& other, Beside);
  ~GpuQueue();
  GpuQueue(const GpuQueue&) = delete;
  GpuQueue& operator=(const GpuQueue&) = delete;

  int gpu() const { return gpu_; }
  void* stream() const { return stream_; }  // a cudaStream_t
  GpuMemory& memory() const { return *memory_; }
  const std::shared_ptr<GpuMemory>& shared_memory() const { return memory_; }

  // Both are done with this machine's memory when they return. They report what failed before them: kDevice.
  void copy_in(void* to_gpu, const void* from, size_t bytes);
  void copy_out(void* to, const void* from_gpu, size_t bytes);
  // Only queued. This machine's side must stay until it is done, and should be pinned: otherwise the copy is
  // slow, and the call waits for it.
  void queue_copy_in(void* to_gpu, const void* from, size_t bytes);
  void queue_copy_out(void* to, const void* from_gpu, size_t bytes);
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
  bool is_idle(std::string_view what);  // whether wait() would return at once; kDevice as there
  void make_current() const;            // for this thread

 private:
  friend class HostWords;
  void open();

  int gpu_;
  std::shared_ptr<GpuMemory> memory_;
  void* stream_ = nullptr;
  std::mutex words_mutex_;
  std::vector<std::unique_ptr<PinnedMemory>> idle_words_;
};

// Until the end of its life memory is taken for this purpose. No queue: nothing.
class GpuPhase {
 public:
  GpuPhase(GpuQueue* queue, const GpuPurpose& purpose) : memory_(queue ? &queue->memory() : nullptr) {
    if (!memory_) return;
    before_ = memory_->purpose();
    memory_->set_purpose(purpose);
  }
  ~GpuPhase() {
    if (memory_) memory_->set_purpose(before_);
  }
  GpuPhase(const GpuPhase&) = delete;
  GpuPhase& operator=(const GpuPhase&) = delete;

 private:
  GpuMemory* memory_;
  GpuPurpose before_;
};

// What `body` queues, recorded once and queued again as often as wanted by one call. While it is recorded
// nothing of it runs, and nothing may be waited for. `body` is called again where the recording was spoilt by
// what another thread asked of the driver. kDevice where the driver refuses.
class GpuGraph {
 public:
  GpuGraph(GpuQueue& queue, FunctionRef<void()> body) : GpuGraph(queue, queue, body) {}
  // For `queue`, but recorded on another one of the same GPU, by whatever thread: `queue` may be given other
  // work meanwhile.
  GpuGraph(GpuQueue& recorder, GpuQueue& queue, FunctionRef<void()> body);
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
  // What `other` gets from now on waits for what was recorded last.
  void hold(GpuQueue& other);

 private:
  GpuQueue& queue_;
  void* event_ = nullptr;
};

// Words that kernels write and the host reads meanwhile; zeros at first. The queue, which outlives them,
// keeps their memory for whoever asks next: the driver takes a millisecond for some, and another to take it
// back.
class HostWords {
 public:
  HostWords(GpuQueue& queue, int64_t count);  // kOutOfMemory
  ~HostWords();                               // the queue is done with what writes to them
  HostWords(const HostWords&) = delete;
  HostWords& operator=(const HostWords&) = delete;

  uint64_t* data() const { return memory_->as<uint64_t>(); }

 private:
  GpuQueue& queue_;
  std::unique_ptr<PinnedMemory> memory_;
};

}  // namespace lowbit
