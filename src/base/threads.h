// A pool of threads that split index ranges. Work is handed out in chunks as threads become free, so a slow
// core does not set the time; results must not depend on which thread takes which chunk.
#pragma once

#include "base/function_ref.h"

#include <cstdint>
#include <memory>

namespace lowbit {

class ThreadPool {
 public:
  // threads <= 0: one per processor that this process may use.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;

  // Calls body(begin, end, worker) for consecutive ranges of at most `chunk` indices that cover [0, count).
  // worker is in [0, size()). Returns when all are done; the first exception thrown by body is thrown here.
  // Calls from inside a body run on the calling thread.
  using Body = FunctionRef<void(int64_t begin, int64_t end, int worker)>;
  void parallel_for(int64_t count, int64_t chunk, Body body) const;
  // Likewise; the calling thread calls meanwhile() once the others are on their way, and then takes the first
  // range. What a body needs of it, it must wait for itself. meanwhile() must not throw.
  void parallel_for(int64_t count, int64_t chunk, Body body, FunctionRef<void()> meanwhile) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Waits for another thread for some cycles, in a loop that will not be long.
void pause_briefly();

// Processors that this process may run on (its affinity mask).
int available_processors();

}  // namespace lowbit
