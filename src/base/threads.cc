#include "base/threads.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <sched.h>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lowbit {
namespace {

// A decode step starts hundreds of short parallel loops: workers spin this many times before they sleep.
constexpr int kSpins = 20000;

void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

thread_local bool inside_parallel_for = false;

}  // namespace

int available_processors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

struct ThreadPool::State {
  std::vector<std::thread> workers;
  std::mutex mutex;
  std::mutex one_caller;  // a pool runs one loop at a time
  std::condition_variable wake;
  // What workers poll, with the loop that it announces; and what they count on: each on a cache line of its
  // own.
  alignas(64) std::atomic<uint64_t> generation{0};
  std::atomic<bool> stop{false};
  int64_t count = 0, chunk = 1;
  const std::function<void(int64_t, int64_t, int)>* body = nullptr;
  alignas(64) std::atomic<int> active{0};
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::exception_ptr error;

  void work(int worker) {
    inside_parallel_for = true;
    for (;;) {
      const int64_t begin = next.fetch_add(chunk, std::memory_order_relaxed);
      if (begin >= count) break;
      try {
        (*body)(begin, std::min(begin + chunk, count), worker);
      } catch (...) {
        std::lock_guard lock(mutex);
        if (!error) error = std::current_exception();
        next.store(count, std::memory_order_relaxed);
      }
    }
    inside_parallel_for = false;
  }

  void loop(int worker) {
    uint64_t seen = 0;
    for (;;) {
      for (int spin = 0; spin < kSpins && generation.load(std::memory_order_acquire) == seen; ++spin)
        pause_briefly();
      if (generation.load(std::memory_order_acquire) == seen) {
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] { return generation.load(std::memory_order_acquire) != seen; });
      }
      seen = generation.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_acquire)) return;
      work(worker);
      active.fetch_sub(1, std::memory_order_release);
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  if (threads <= 0) threads = available_processors();
  for (int worker = 1; worker < threads; ++worker) {
    state_->workers.emplace_back([this, worker] { state_->loop(worker); });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stop.store(true, std::memory_order_release);
    state_->generation.fetch_add(1, std::memory_order_release);
  }
  state_->wake.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
}

int ThreadPool::size() const { return static_cast<int>(state_->workers.size()) + 1; }

void ThreadPool::parallel_for(int64_t count, int64_t chunk,
                              const std::function<void(int64_t, int64_t, int)>& body) const {
  if (count <= 0) return;
  chunk = std::max<int64_t>(1, chunk);
  if (inside_parallel_for || state_->workers.empty() || count <= chunk) {
    for (int64_t begin = 0; begin < count; begin += chunk) body(begin, std::min(begin + chunk, count), 0);
    return;
  }
  State& state = *state_;
  std::lock_guard one_caller(state.one_caller);
  {
    std::lock_guard lock(state.mutex);
    state.count = count;
    state.chunk = chunk;
    state.body = &body;
    state.error = nullptr;
    state.next.store(0, std::memory_order_relaxed);
    state.active.store(static_cast<int>(state.workers.size()), std::memory_order_relaxed);
    state.generation.fetch_add(1, std::memory_order_release);
  }
  state.wake.notify_all();
  state.work(0);
  int spin = 0;
  while (state.active.load(std::memory_order_acquire) > 0) {
    if (++spin < kSpins) {
      pause_briefly();
    } else {
      std::this_thread::yield();
    }
  }
  if (state.error) std::rethrow_exception(state.error);
}

}  // namespace lowbit
