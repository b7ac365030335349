// GPU kernels beside the GPU's limits:
//
//   gpu_bench            decode products at large shapes and at those of Qwen2-1.5B
//
// Matrices rotate over at least four times the second-level cache; launches are captured in a graph, as
// decoding does it; medians of nine passes.
#include "base/gpu.h"
#include "ops/cuda/fragments.h"
#include "ops/cuda/limits.h"
#include "ops/cuda/matmul_decode.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cuda_runtime_api.h>

namespace lowbit {
namespace {

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "gpu_bench: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

void* allocate(int64_t bytes) {
  void* data = nullptr;
  check(cudaMalloc(&data, static_cast<size_t>(bytes)));
  check(cudaMemset(data, 1, static_cast<size_t>(bytes)));
  return data;
}

struct Shape {
  const char* name;
  int64_t out, in;
};

constexpr int64_t kGroup = 128;
int64_t scale_bytes(const Shape& shape) { return (shape.in + kGroup - 1) / kGroup * shape.out * 2; }

double weight_bytes(const Shape& shape, int bits) {
  return static_cast<double>(bits == 16 ? shape.out * shape.in * 2
                                        : fragment_bytes(shape.out, shape.in, bits));
}

// Microseconds per launch.
double time_decode(const Shape& shape, int bits, int64_t rows, uint64_t l2_bytes) {
  constexpr int64_t kLaunches = 200;
  const int64_t bytes = bits == 16 ? shape.out * shape.in * 2 : fragment_bytes(shape.out, shape.in, bits);
  const int64_t copies = std::max<int64_t>(1, (4 * static_cast<int64_t>(l2_bytes) + bytes - 1) / bytes);
  char* const weights = static_cast<char*>(allocate(copies * bytes));
  GpuDecodeArgs args{.rows = rows, .in = shape.in, .bits = bits, .group_size = kGroup, .matrices = 1};
  args.matrix[0].out = shape.out;
  args.matrix[0].scales = allocate(scale_bytes(shape));
  args.x = static_cast<const uint16_t*>(allocate(rows * shape.in * 2));
  args.matrix[0].y = {allocate(rows * shape.out * 2), DType::kBF16};

  cudaStream_t stream;
  check(cudaStreamCreate(&stream));
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int64_t i = 0; i < kLaunches; ++i) {
    args.matrix[0].weight = weights + i % copies * bytes;
    gpu_matmul_decode(args, stream);
  }
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphInstantiate(&executable, graph, 0));
  const double ms = gpu_median_ms([&] { check(cudaGraphLaunch(executable, stream)); }, stream);
  check(cudaStreamSynchronize(stream));
  check(cudaGraphExecDestroy(executable));
  check(cudaGraphDestroy(graph));
  check(cudaStreamDestroy(stream));
  for (const void* data :
       {static_cast<const void*>(weights), args.matrix[0].scales, static_cast<const void*>(args.x),
        static_cast<const void*>(args.matrix[0].y.data)}) {
    check(cudaFree(const_cast<void*>(data)));
  }
  return ms * 1e3 / kLaunches;
}

int run() {
  if (!gpu_support().problem.empty()) {
    std::fprintf(stderr, "gpu_bench: %s\n", gpu_support().problem.c_str());
    return 1;
  }
  const Gpu& gpu = gpu_support().gpus[0];
  const GpuLimits limits = measure_gpu_limits();
  std::printf("%s, %d multiprocessors, L2 %.0f MB; copy %.0f GB/s, read %.0f GB/s\n\n", gpu.name.c_str(),
              gpu.multiprocessors, static_cast<double>(gpu.l2_bytes) / 1e6, limits.copy_gb_per_s,
              limits.read_gb_per_s);
  std::printf("%-22s %5s %4s %10s %10s %10s %10s\n", "decode product", "bits", "rows", "MB", "us", "GB/s",
              "of copy");
  const Shape shapes[] = {{"16384 x 8192", 16384, 8192},    {"qkv 2048 x 1536", 2048, 1536},
                          {"o 1536 x 1536", 1536, 1536},    {"gate_up 17920 x 1536", 17920, 1536},
                          {"down 1536 x 8960", 1536, 8960}, {"head 151936 x 1536", 151936, 1536}};
  for (const Shape& shape : shapes) {
    for (int bits : {16, 8, 4}) {
      for (int64_t rows : {1, 8}) {
        const double us = time_decode(shape, bits, rows, gpu.l2_bytes);
        const double bytes =
            weight_bytes(shape, bits) + (bits == 16 ? 0 : static_cast<double>(scale_bytes(shape)));
        const double rate = bytes / us * 1e-3;
        std::printf("%-22s %5d %4lld %10.2f %10.2f %10.0f %9.0f%%\n", shape.name, bits,
                    static_cast<long long>(rows), bytes / 1e6, us, rate, 100 * rate / limits.copy_gb_per_s);
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace lowbit

int main() { return lowbit::run(); }
