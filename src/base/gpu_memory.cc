#include "base/gpu_memory.h"

#include "base/fail.h"
#include "lowbit/bytes.h"

#include <algorithm>
#include <numeric>

#if LOWBIT_CUDA
#include <cuda_runtime_api.h>
#endif

namespace lowbit {
namespace {

uint64_t sum(const uint64_t (&values)[3]) {
  return std::accumulate(std::begin(values), std::end(values), uint64_t{0});
}

#if LOWBIT_CUDA

// Null when there is not so much.
void* driver_allocate(int gpu, size_t bytes) {
  void* memory = nullptr;
  cudaError_t error = cudaSetDevice(gpu);
  if (error == cudaSuccess) error = cudaMalloc(&memory, bytes);
  if (error == cudaSuccess) return memory;
  cudaGetLastError();  // no error of what comes next
  if (error == cudaErrorMemoryAllocation) return nullptr;
  // What failed earlier is told by the next call, whatever it asks for.
  fail(ErrorCode::kDevice, "taking {} of the memory of cuda:{}: the GPU answers \"{}\" ({})",
       bytes_text(bytes), gpu, cudaGetErrorString(error), static_cast<int>(error));
}

void driver_free(int gpu, void* memory) {
  cudaSetDevice(gpu);
  cudaFree(memory);
}

uint64_t driver_free_bytes(int gpu) {
  size_t free_bytes = 0, total_bytes = 0;
  if (cudaSetDevice(gpu) != cudaSuccess || cudaMemGetInfo(&free_bytes, &total_bytes) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return free_bytes;
}

#else

void* driver_allocate(int, size_t) { return nullptr; }
void driver_free(int, void*) {}
uint64_t driver_free_bytes(int) { return 0; }

#endif

}  // namespace

std::string shortage_text(const GpuShortage& shortage) {
  const GpuPurpose& purpose = shortage.purpose;
  std::string what(purpose.what);
  if (purpose.tokens > 0) what += fmt::format(" of {} tokens", purpose.tokens);
  std::string limit;
  if (shortage.limit > 0) {
    limit = fmt::format(" and of its limit of {} (--max-gpu-memory) {} in use", bytes_text(shortage.limit),
                        bytes_text(shortage.used));
  }
  return fmt::format("out of GPU memory for {}: it needs {} more, cuda:{} has {} free{}; {}", what,
                     bytes_text(shortage.asked), shortage.gpu, bytes_text(shortage.free), limit,
                     purpose.helps);
}

void* GpuMemory::allocate(size_t bytes) { return allocate(bytes, purpose_.use); }

void* GpuMemory::allocate(size_t bytes, GpuUse use) {
  if (void* const memory = try_allocate(bytes, use)) return memory;
  fail_for(bytes);
}

void GpuMemory::fail_for(size_t bytes) const {
  fail(ErrorCode::kOutOfMemory, "{}",
       shortage_text({purpose_, gpu_, bytes, free_bytes(), figures().used, limit_}));
}

void* GpuMemory::try_allocate(size_t bytes, GpuUse use) {
  void* memory = take(bytes, use);
  if (!memory && reclaim_) {
    reclaim_();
    memory = take(bytes, use);
  }
  return memory;
}

void* GpuMemory::take(size_t bytes, GpuUse use) {
  bytes = std::max<size_t>(bytes, 1);
  std::lock_guard lock(mutex_);
  const uint64_t used = sum(used_);
  if (limit_ > 0 && (used > limit_ || bytes > limit_ - used)) return nullptr;
  void* const memory = driver_allocate(gpu_, bytes);
  if (!memory) return nullptr;
  pieces_[memory] = {bytes, use};
  const size_t index = static_cast<size_t>(use);
  used_[index] += bytes;
  most_[index] = std::max(most_[index], used_[index]);
  peak_ = std::max(peak_, used + bytes);
  return memory;
}

void GpuMemory::free(void* memory) {
  std::lock_guard lock(mutex_);
  const auto piece = pieces_.find(memory);
  LOWBIT_ASSERT(piece != pieces_.end());
  used_[static_cast<size_t>(piece->second.use)] -= piece->second.bytes;
  pieces_.erase(piece);
  driver_free(gpu_, memory);
}

uint64_t GpuMemory::free_bytes() const { return driver_free_bytes(gpu_); }

uint64_t GpuMemory::available() const {
  const uint64_t free = free_bytes(), used = figures().used;
  return limit_ == 0 ? free : std::min(free, limit_ - std::min(used, limit_));
}

GpuMemoryFigures GpuMemory::figures() const {
  std::lock_guard lock(mutex_);
  return {.weights = most_[0], .cache = most_[1], .work = most_[2], .used = sum(used_), .peak = peak_};
}

}  // namespace lowbit
