#include "base/gpu_queue.h"

#include "base/fail.h"
#include "base/gpu.h"
#include "lowbit/bytes.h"

#include <algorithm>
#include <cstring>

#if LOWBIT_CUDA
#include <cuda_runtime_api.h>
#endif

namespace lowbit {

#if LOWBIT_CUDA

namespace {

void check(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return;
  // Only what the driver itself needs memory for (a context, a recorded graph) fails so; all else asks
  // GpuMemory.
  if (error == cudaErrorMemoryAllocation) {
    fail(ErrorCode::kOutOfMemory,
         "{}: the GPU has no memory left for it; end other programs, or use --device cpu", what);
  }
  fail(ErrorCode::kDevice, "{}: the GPU answers \"{}\" ({})", what, cudaGetErrorString(error),
       static_cast<int>(error));
}

cudaStream_t of(void* stream) { return static_cast<cudaStream_t>(stream); }

}  // namespace

GpuQueue::GpuQueue(int gpu, uint64_t limit) : gpu_(gpu), memory_(std::make_shared<GpuMemory>(gpu, limit)) {
  require_gpu(gpu);
  open();
}

GpuQueue::GpuQueue(const GpuQueue& other, Beside) : gpu_(other.gpu_), memory_(other.memory_) { open(); }

void GpuQueue::open() {
  make_current();
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a queue on the GPU");
  stream_ = stream;
}

GpuQueue::~GpuQueue() {
  cudaSetDevice(gpu_);
  cudaStreamSynchronize(of(stream_));
  cudaStreamDestroy(of(stream_));
}

void GpuQueue::make_current() const { check(cudaSetDevice(gpu_), "choosing the GPU"); }

namespace {

void queue_copy(const GpuQueue& queue, void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  constexpr const char* kWhat[] = {"", "copying to the GPU", "copying from the GPU", "copying on the GPU"};
  queue.make_current();
  check(cudaMemcpyAsync(to, from, bytes, kind, of(queue.stream())), kWhat[kind]);
}

}  // namespace

void GpuQueue::queue_copy_in(void* to_gpu, const void* from, size_t bytes) {
  queue_copy(*this, to_gpu, from, bytes, cudaMemcpyHostToDevice);
}

void GpuQueue::queue_copy_out(void* to, const void* from_gpu, size_t bytes) {
  queue_copy(*this, to, from_gpu, bytes, cudaMemcpyDeviceToHost);
}

void GpuQueue::copy_in(void* to_gpu, const void* from, size_t bytes) {
  queue_copy_in(to_gpu, from, bytes);
  // What is not pinned is staged by the driver before it returns, or else this waits: either way `from` is
  // free.
  wait("copying to the GPU");
}

void GpuQueue::copy_out(void* to, const void* from_gpu, size_t bytes) {
  queue_copy_out(to, from_gpu, bytes);
  wait("copying from the GPU");
}

void GpuQueue::copy_within(void* to, const void* from, size_t bytes) {
  queue_copy(*this, to, from, bytes, cudaMemcpyDeviceToDevice);
}

void GpuQueue::copy_rows_within(Rows to, const void* from, size_t row_bytes, size_t rows) {
  make_current();
  check(cudaMemcpy2DAsync(to.data, to.pitch, from, row_bytes, row_bytes, rows, cudaMemcpyDeviceToDevice,
                          of(stream_)),
        "copying on the GPU");
}

void GpuQueue::clear(void* memory, size_t bytes) {
  make_current();
  check(cudaMemsetAsync(memory, 0, bytes, of(stream_)), "clearing memory of the GPU");
}

void GpuQueue::wait(std::string_view what) {
  make_current();
  check(cudaGetLastError(), what);
  check(cudaStreamSynchronize(of(stream_)), what);
}

bool GpuQueue::is_idle(std::string_view what) {
  make_current();
  check(cudaGetLastError(), what);
  const cudaError_t error = cudaStreamQuery(of(stream_));
  if (error != cudaErrorNotReady) check(error, what);
  cudaGetLastError();  // "not ready" is no error of what comes next
  return error == cudaSuccess;
}

GpuGraph::GpuGraph(GpuQueue& recorder, GpuQueue& queue, FunctionRef<void()> body) : queue_(queue) {
  constexpr const char* kWhat = "recording what the GPU is to do";
  // What other threads ask of the driver meanwhile may spoil a recording, which says nothing about the next.
  constexpr int kMostTries = 5;
  recorder.make_current();
  const cudaStream_t stream = of(recorder.stream());
  cudaGraph_t graph = nullptr;
  for (int tries = 1; !graph; ++tries) {
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), kWhat);
    try {
      body();
    } catch (...) {
      cudaStreamEndCapture(stream, &graph);
      if (graph) cudaGraphDestroy(graph);
      throw;
    }
    const cudaError_t error = cudaStreamEndCapture(stream, &graph);
    if (error == cudaErrorStreamCaptureInvalidated && tries < kMostTries) {
      cudaGetLastError();  // nor about what is queued next
      graph = nullptr;
    } else {
      check(error, kWhat);
    }
  }
  cudaGraphExec_t executable = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check(error, kWhat);
  executable_ = executable;
  check(cudaGraphUpload(executable, stream), kWhat);  // not at its first launch
}

GpuGraph::~GpuGraph() {
  cudaStreamSynchronize(of(queue_.stream()));
  cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable_));
}

void GpuGraph::launch() {
  queue_.make_current();
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable_), of(queue_.stream())),
        "queueing recorded work");
}

GpuEvent::GpuEvent(GpuQueue& queue) : queue_(queue) {
  queue.make_current();
  cudaEvent_t event;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
  event_ = event;
}

GpuEvent::~GpuEvent() { cudaEventDestroy(static_cast<cudaEvent_t>(event_)); }

void GpuEvent::record() {
  queue_.make_current();
  check(cudaGetLastError(), "queueing work");
  check(cudaEventRecord(static_cast<cudaEvent_t>(event_), of(queue_.stream())), "recording an event");
}

void GpuEvent::wait(std::string_view what) {
  check(cudaEventSynchronize(static_cast<cudaEvent_t>(event_)), what);
}

void GpuEvent::hold(GpuQueue& other) {
  other.make_current();
  check(cudaStreamWaitEvent(of(other.stream()), static_cast<cudaEvent_t>(event_), 0), "waiting for an event");
}

PinnedMemory::PinnedMemory(size_t bytes) : byte_count_(bytes) {
  const cudaError_t error = cudaHostAlloc(&data_, bytes, cudaHostAllocMapped);
  if (error == cudaSuccess) return;
  cudaGetLastError();
  if (error != cudaErrorMemoryAllocation) check(error, "taking pinned memory");
  fail(ErrorCode::kOutOfMemory, "{} of pinned memory are not to be had", bytes_text(bytes));
}

PinnedMemory::~PinnedMemory() { cudaFreeHost(data_); }

#else

GpuGraph::GpuGraph(GpuQueue&, GpuQueue& queue, FunctionRef<void()>) : queue_(queue) {}
GpuGraph::~GpuGraph() = default;
void GpuGraph::launch() {}
GpuEvent::GpuEvent(GpuQueue& queue) : queue_(queue) {}
GpuEvent::~GpuEvent() = default;
void GpuEvent::record() {}
void GpuEvent::wait(std::string_view) {}
void GpuEvent::hold(GpuQueue&) {}
PinnedMemory::PinnedMemory(size_t bytes) : byte_count_(bytes) {}
PinnedMemory::~PinnedMemory() = default;

GpuQueue::GpuQueue(int gpu, uint64_t) : gpu_(gpu) { require_gpu(gpu); }
GpuQueue::~GpuQueue() = default;
GpuQueue::GpuQueue(const GpuQueue& other, Beside) : gpu_(other.gpu_), memory_(other.memory_) {}
void GpuQueue::open() {}
void GpuQueue::make_current() const {}
void GpuQueue::queue_copy_in(void*, const void*, size_t) {}
void GpuQueue::queue_copy_out(void*, const void*, size_t) {}
void GpuQueue::copy_in(void*, const void*, size_t) {}
void GpuQueue::copy_out(void*, const void*, size_t) {}
void GpuQueue::copy_within(void*, const void*, size_t) {}
void GpuQueue::copy_rows_within(Rows, const void*, size_t, size_t) {}
void GpuQueue::clear(void*, size_t) {}
void GpuQueue::wait(std::string_view) {}
bool GpuQueue::is_idle(std::string_view) { return true; }

#endif

HostWords::HostWords(GpuQueue& queue, int64_t count) : queue_(queue) {
  constexpr size_t kPage = 4096;
  const size_t bytes = std::max<size_t>(static_cast<size_t>(count) * sizeof(uint64_t), 1);
  {
    std::lock_guard lock(queue_.words_mutex_);
    for (std::unique_ptr<PinnedMemory>& idle : queue_.idle_words_) {
      if (idle->byte_count() < bytes) continue;
      memory_ = std::move(idle);
      std::swap(idle, queue_.idle_words_.back());
      queue_.idle_words_.pop_back();
      break;
    }
  }
  if (!memory_) memory_ = std::make_unique<PinnedMemory>((bytes + kPage - 1) / kPage * kPage);
  std::memset(memory_->as<void>(), 0, bytes);
}

HostWords::~HostWords() {
  std::lock_guard lock(queue_.words_mutex_);
  queue_.idle_words_.push_back(std::move(memory_));
}

}  // namespace lowbit
