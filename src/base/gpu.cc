#include "base/gpu.h"

#include "base/fail.h"

#include <fmt/format.h>

#if LOWBIT_CUDA
#include <cuda_runtime_api.h>
#endif

namespace lowbit {
namespace {

#if LOWBIT_CUDA

constexpr int kLeastMajor = 8;  // Ampere: BF16 in tensor cores, asynchronous copies

std::string problem_of(cudaError_t error, int driver_version) {
  const int runtime = CUDART_VERSION;
  if (driver_version == 0) {
    return "no NVIDIA driver was found (libcuda.so.1); install one, or use the CPU";
  }
  switch (error) {
    case cudaErrorInsufficientDriver:
      return fmt::format("the NVIDIA driver supports CUDA {}, this binary needs {}; install a newer driver",
                         cuda_version_text(driver_version), cuda_version_text(runtime));
    case cudaErrorNoDevice:
      return "the NVIDIA driver finds no GPU; see nvidia-smi, and whether CUDA_VISIBLE_DEVICES hides it";
    case cudaErrorSystemDriverMismatch:
      return "the NVIDIA driver and its kernel module are of different versions; restart the machine";
    default:
      return fmt::format("the NVIDIA driver answers \"{}\" ({}); see nvidia-smi", cudaGetErrorString(error),
                         static_cast<int>(error));
  }
}

Gpu describe(int index) {
  Gpu gpu;
  gpu.index = index;
  cudaDeviceProp properties;
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, index); error != cudaSuccess) {
    gpu.problem = fmt::format("the driver answers \"{}\" when asked about it", cudaGetErrorString(error));
    return gpu;
  }
  gpu.name = properties.name;
  gpu.major = properties.major;
  gpu.minor = properties.minor;
  gpu.multiprocessors = properties.multiProcessorCount;
  gpu.memory_bytes = properties.totalGlobalMem;
  gpu.l2_bytes = static_cast<uint64_t>(properties.l2CacheSize);
  if (gpu.major < kLeastMajor) {
    gpu.problem =
        fmt::format("its compute capability is {}.{}, lowbit needs {}.0 (A100, RTX 30) or later; use the CPU",
                    gpu.major, gpu.minor, kLeastMajor);
  }
  return gpu;
}

GpuSupport find_gpus() {
  GpuSupport support;
  support.is_built = true;
  support.runtime_version = CUDART_VERSION;
  cudaDriverGetVersion(&support.driver_version);
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    support.problem = problem_of(error == cudaSuccess ? cudaErrorNoDevice : error, support.driver_version);
    return support;
  }
  for (int index = 0; index < count; ++index) support.gpus.push_back(describe(index));
  for (const Gpu& gpu : support.gpus) {
    if (gpu.problem.empty()) return support;
  }
  support.problem = "GPU 0: " + support.gpus[0].problem;
  return support;
}

#else

GpuSupport find_gpus() {
  GpuSupport support;
  support.problem =
      "this binary was built without CUDA; build it where nvcc is found (LOWBIT_CUDA=ON), or use the CPU";
  return support;
}

#endif

}  // namespace

std::string cuda_version_text(int version) {
  return version == 0 ? "none" : fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

const GpuSupport& gpu_support() {
  static const GpuSupport support = find_gpus();
  return support;
}

void require_gpu(int index) {
  const GpuSupport& support = gpu_support();
  if (support.gpus.empty()) fail(ErrorCode::kDevice, "no GPU can be used: {}", support.problem);
  const int count = static_cast<int>(support.gpus.size());
  if (index < 0 || index >= count) {
    fail(ErrorCode::kDevice, "there is no GPU cuda:{}, this machine has {} (see: lowbit doctor)", index,
         count);
  }
  const std::string& problem = support.gpus[static_cast<size_t>(index)].problem;
  if (!problem.empty()) fail(ErrorCode::kDevice, "GPU cuda:{} cannot be used: {}", index, problem);
}

}  // namespace lowbit
