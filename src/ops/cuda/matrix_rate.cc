#include "base/fail.h"
#include "ops/cuda/libraries.h"
#include "ops/cuda/limits.h"

#include <algorithm>

namespace lowbit {

double measure_matrix_rate(GpuQueue& queue, GpuLibraries& libraries) {
  if (!libraries.gemm_problem().empty()) return 0;
  // Eleven passes are to take 0.2 s: a card on which the small product takes longer than this keeps to it.
  constexpr int64_t kSmall = 4096, kLarge = 8192;
  constexpr double kMostMs = 2;
  auto rate_of = [&](int64_t n, double& ms) {
    Tensor x = Tensor::allocate_on(&queue, DType::kBF16, {n, n});
    Tensor w = Tensor::allocate_on(&queue, DType::kBF16, {n, n});
    Tensor y = Tensor::allocate_on(&queue, DType::kBF16, {n, n});
    // Numbers like those of a model: of zeros the units draw less power and run faster.
    gpu_fill_bf16(x.mutable_data<uint16_t>(), n * n, 1, queue.stream());
    gpu_fill_bf16(w.mutable_data<uint16_t>(), n * n, 2, queue.stream());
    const GpuLibraries::Product product{.rows = n,
                                        .in = n,
                                        .out = n,
                                        .x = x.data<uint16_t>(),
                                        .w = w.data<uint16_t>(),
                                        .y = {y.mutable_bytes(), DType::kBF16}};
    ms = gpu_median_ms([&] { libraries.multiply(product); }, queue.stream());
    queue.wait("measuring the matrix rate");
    const double size = static_cast<double>(n);
    return 2 * size * size * size / ms * 1e-9;
  };
  try {
    double ms = 0;
    double rate = rate_of(kSmall, ms);
    if (ms <= kMostMs) rate = std::max(rate, rate_of(kLarge, ms));
    return rate;
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kOutOfMemory) return 0;
    throw;
  }
}

}  // namespace lowbit
