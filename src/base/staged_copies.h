// Copies of files to a GPU at the speed of the bus. From memory that is not pinned the driver copies through
// a small buffer of its own, with one thread; here all threads fill a ring of pinned buffers while earlier
// ones are on their way.
#pragma once

#include "base/gpu_queue.h"
#include "base/threads.h"

#include <optional>
#include <vector>

namespace lowbit {

class StagedCopies {
 public:
  StagedCopies(GpuQueue& queue, const ThreadPool& threads);  // both outlive it
  ~StagedCopies();                                           // waits for the copies
  StagedCopies(const StagedCopies&) = delete;
  StagedCopies& operator=(const StagedCopies&) = delete;

  // Queues a copy, behind what was queued before; `from` may be forgotten when this returns.
  void copy_in(void* to_gpu, const void* from, size_t bytes);

 private:
  void next_buffer();

  GpuQueue& queue_;
  const ThreadPool& threads_;
  std::optional<PinnedMemory> ring_;             // none where it is not to be had: copies are slow then
  std::vector<std::unique_ptr<GpuEvent>> sent_;  // all of a buffer
  size_t buffer_ = 0, used_ = 0;                 // which one, and how much of it
};

}  // namespace lowbit
