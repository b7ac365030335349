#include "base/threads.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <sched.h>
#include <thread>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lowbit {
namespace {

// A decode step starts hundreds of short parallel loops: workers spin this many times before they sleep.
constexpr int kSpins = 20000;

thread_local bool inside_parallel_for = false;

}  // namespace

void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

int available_processors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

// What passes between threads has cache lines of its own, as few as can be: each line that has to travel
// costs about as much as a small operator.
struct ThreadPool::State {
  // Written by the caller, polled by workers.
  struct alignas(64) Loop {
    int64_t count = 0, chunk = 1;
    Body body;
    std::atomic<uint64_t> generation{0};
  };
  // The last loop that a worker has left.
  struct alignas(64) Progress {
    std::atomic<uint64_t> generation{0};
  };

  explicit State(int threads) : size(threads), progress(static_cast<size_t>(threads)) {}

  const int size;
  std::vector<std::thread> workers;
  std::vector<Progress> progress;  // [0] is unused
  std::mutex mutex;                // of sleepers and of error
  std::mutex one_caller;           // a pool runs one loop at a time
  std::condition_variable wake;
  std::atomic<int> sleepers{0};
  std::atomic<bool> stop{false};
  std::exception_ptr error;
  Loop loop;
  alignas(64) std::atomic<int64_t> next{0};  // where the next range begins, once each thread has had one

  void run(int64_t begin, int worker) {
    try {
      loop.body(begin, std::min(begin + loop.chunk, loop.count), worker);
    } catch (...) {
      std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
      next.store(loop.count, std::memory_order_relaxed);
    }
  }

  // The first range of each thread is known to it without asking the others.
  void work(int worker) {
    if (worker * loop.chunk < loop.count) run(worker * loop.chunk, worker);
    if (size * loop.chunk >= loop.count) return;
    for (;;) {
      const int64_t begin = next.fetch_add(loop.chunk, std::memory_order_relaxed);
      if (begin >= loop.count) return;
      run(begin, worker);
    }
  }

  void announce(int64_t count, int64_t chunk, Body body) {
    loop.count = count;
    loop.chunk = chunk;
    loop.body = body;
    if (size * chunk < count) next.store(size * chunk, std::memory_order_relaxed);
    loop.generation.store(loop.generation.load(std::memory_order_relaxed) + 1, std::memory_order_seq_cst);
    // Whoever is not counted as asleep by now will see the new generation before it falls asleep.
    if (sleepers.load(std::memory_order_seq_cst) > 0) {
      { std::lock_guard lock(mutex); }
      wake.notify_all();
    }
  }

  void work_until_stopped(int worker) {
    inside_parallel_for = true;
    uint64_t seen = 0;
    for (;;) {
      for (int spin = 0; spin < kSpins && loop.generation.load(std::memory_order_acquire) == seen; ++spin)
        pause_briefly();
      if (loop.generation.load(std::memory_order_acquire) == seen) {
        std::unique_lock lock(mutex);
        sleepers.fetch_add(1, std::memory_order_seq_cst);
        wake.wait(lock, [&] { return loop.generation.load(std::memory_order_seq_cst) != seen; });
        sleepers.fetch_sub(1, std::memory_order_relaxed);
      }
      seen = loop.generation.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_relaxed)) return;
      work(worker);
      progress[static_cast<size_t>(worker)].generation.store(seen, std::memory_order_release);
    }
  }

  void wait_for_workers() {
    const uint64_t generation = loop.generation.load(std::memory_order_relaxed);
    int spin = 0;
    for (size_t worker = 1; worker < progress.size(); ++worker) {
      while (progress[worker].generation.load(std::memory_order_acquire) != generation) {
        if (++spin < kSpins) {
          pause_briefly();
        } else {
          std::this_thread::yield();
        }
      }
    }
  }
};

ThreadPool::ThreadPool(int threads) {
  if (threads <= 0) threads = available_processors();
  state_ = std::make_unique<State>(threads);
  for (int worker = 1; worker < threads; ++worker) {
    state_->workers.emplace_back([this, worker] { state_->work_until_stopped(worker); });
  }
}

ThreadPool::~ThreadPool() {
  state_->stop.store(true, std::memory_order_relaxed);
  state_->announce(0, 1, {});
  for (std::thread& worker : state_->workers) worker.join();
}

int ThreadPool::size() const { return state_->size; }

void ThreadPool::parallel_for(int64_t count, int64_t chunk, Body body) const {
  parallel_for(count, chunk, body, [] {});
}

void ThreadPool::parallel_for(int64_t count, int64_t chunk, Body body, FunctionRef<void()> meanwhile) const {
  chunk = std::max<int64_t>(1, chunk);
  if (inside_parallel_for || state_->workers.empty() || count <= chunk) {
    meanwhile();
    for (int64_t begin = 0; begin < count; begin += chunk) body(begin, std::min(begin + chunk, count), 0);
    return;
  }
  State& state = *state_;
  std::lock_guard one_caller(state.one_caller);
  inside_parallel_for = true;
  state.announce(count, chunk, body);
  meanwhile();
  state.work(0);
  inside_parallel_for = false;
  state.wait_for_workers();
  if (state.error) std::rethrow_exception(std::exchange(state.error, nullptr));
}

}  // namespace lowbit
