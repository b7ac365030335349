// NVIDIA's libraries of dense linear algebra, opened at first use, so that a machine without them runs the
// rest.
#pragma once

#include "base/gpu_queue.h"
#include "tensor/activations.h"
#include "tensor/tensor.h"

#include <memory>
#include <string>

namespace lowbit {

class GpuLibraries {
 public:
  explicit GpuLibraries(GpuQueue& queue);
  ~GpuLibraries();

  // Why cuBLASLt cannot be used and what to do, or empty. Opens it.
  const std::string& gemm_problem();

  // y = x w^T + bias on the queue, sums in F32. kDevice where gemm_problem() has a text or the library
  // refuses.
  struct Product {
    int64_t rows = 0, in = 0, out = 0;
    const uint16_t* x = nullptr;     // BF16 [rows, in]
    const uint16_t* w = nullptr;     // BF16 [out, in]
    const uint16_t* bias = nullptr;  // BF16 [out] or null; only for y in BF16
    Activations y;                   // BF16 or F32 [rows, out]
    bool adds = false;               // y += instead; F32
  };
  void multiply(const Product& product);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lowbit
