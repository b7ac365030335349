#include "ops/cuda/limits.h"

#include <algorithm>
#include <cuda_runtime.h>
#include <vector>

namespace lowbit {
namespace {

constexpr int64_t kBytes = int64_t{1} << 30;
constexpr int kThreads = 256, kLoads = 8, kPasses = 9;

// Each thread's loads are all on their way before the first is used; behind `count` there is nothing.
__device__ inline void load_some(const uint4* data, int64_t count, int64_t stride, uint4 (&some)[kLoads]) {
#pragma unroll
  for (int j = 0; j < kLoads; ++j) some[j] = j * stride < count ? __ldcs(data + j * stride) : uint4{};
}

__global__ void read_all(const uint4* data, int64_t count, uint32_t* sums) {
  uint32_t sum = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += kLoads * stride) {
    uint4 some[kLoads];
    load_some(data + i, count - i, stride, some);
#pragma unroll
    for (int j = 0; j < kLoads; ++j) sum += some[j].x ^ some[j].y ^ some[j].z ^ some[j].w;
  }
  if (sum == 0xffffffffu) *sums = sum;  // never for a buffer of ones; keeps the loads
}

__global__ void copy_all(const uint4* from, uint4* to, int64_t count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += kLoads * stride) {
    uint4 some[kLoads];
    load_some(from + i, count - i, stride, some);
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      if (i + j * stride < count) __stcs(to + i + j * stride, some[j]);
    }
  }
}

// The sign, seven bits of the fraction and two of the exponent from a product with a large odd number.
__global__ void fill_bf16(uint16_t* to, int64_t count, uint32_t seed) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    uint32_t bits = (static_cast<uint32_t>(i) + seed * 0x632be59bu) * 0x9e3779b1u;
    bits = (bits ^ bits >> 15) * 0x85ebca77u;
    const uint32_t exponent = 123 + (bits >> 20 & 3);  // 1/16 ... 1
    to[i] = static_cast<uint16_t>((bits >> 31 << 15) | exponent << 7 | (bits >> 8 & 0x7f));
  }
}

}  // namespace

void gpu_fill_bf16(uint16_t* to, int64_t count, uint32_t seed, void* stream) {
  fill_bf16<<<1024, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(to, count, seed);
}

double gpu_median_ms(FunctionRef<void()> launch, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<float> times;
  for (int pass = -2; pass < kPasses; ++pass) {  // two to warm up
    cudaEventRecord(begin, on);
    launch();
    cudaEventRecord(end, on);
    cudaEventSynchronize(end);
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    if (pass >= 0) times.push_back(ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return static_cast<double>(times[times.size() / 2]);
}

GpuLimits measure_gpu_limits(int gpu) {
  GpuLimits limits;
  cudaSetDevice(gpu);
  void *from = nullptr, *to = nullptr;
  if (cudaMalloc(&from, kBytes) == cudaSuccess && cudaMalloc(&to, kBytes) == cudaSuccess) {
    cudaMemset(from, 1, kBytes);
    int multiprocessors = 0;
    cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, gpu);
    const int blocks = 8 * multiprocessors;
    const int64_t count = kBytes / 16;
    const double read = gpu_median_ms(
        [&] {
          read_all<<<blocks, kThreads>>>(static_cast<const uint4*>(from), count, static_cast<uint32_t*>(to));
        },
        nullptr);
    const double copy = gpu_median_ms(
        [&] {
          copy_all<<<blocks, kThreads>>>(static_cast<const uint4*>(from), static_cast<uint4*>(to), count);
        },
        nullptr);
    limits.read_gb_per_s = static_cast<double>(kBytes) / read * 1e-6;
    limits.copy_gb_per_s = 2 * static_cast<double>(kBytes) / copy * 1e-6;
  }
  cudaFree(from);
  cudaFree(to);
  cudaGetLastError();  // a refused allocation is no error of what comes next
  return limits;
}

}  // namespace lowbit
