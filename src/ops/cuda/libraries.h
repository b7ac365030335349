// NVIDIA's libraries of dense linear algebra, opened at first use, so that a machine without them runs the
// rest.
#pragma once

#include "base/gpu_queue.h"
#include "tensor/activations.h"
#include "tensor/tensor.h"

#include <atomic>
#include <memory>
#include <span>
#include <string>

namespace lowbit {

class GpuLibraries {
 public:
  // Taken of the GPU's memory at the first product: what NVIDIA asks for on Hopper.
  static constexpr size_t kWorkspaceBytes = size_t{32} << 20;

  explicit GpuLibraries(GpuQueue& queue);
  ~GpuLibraries();

  // Brings cuBLASLt's half a gigabyte into the process. It needs no GPU: what opens it later finds it there.
  static void read_early();
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

  // What a Product is but for its data. is_f32: y, as wherever it adds; otherwise BF16.
  struct Kind {
    int64_t rows = 0, in = 0, out = 0;
    bool has_bias = false, is_f32 = false;
  };
  // Loads the code of the kernels of such products, which takes tens of milliseconds each and otherwise
  // happens at the first product: by trying them with few rows, on a queue, in memory and with a handle of
  // its own. So it may run beside all other calls. Between two of them it asks whether that is enough.
  // Returns how many it has tried; what the library refuses is passed over. kOutOfMemory.
  int64_t load_code(std::span<const Kind> kinds, const std::atomic<bool>& is_enough);

  // c += scale a^T b on the queue, row-major with strides in elements; F32, and products of BF16, are exact
  // in the sums, which are F32. The same bits run after run. kDevice as above.
  struct TransposedProduct {
    DType dtype = DType::kF32;  // of a and b: F32 or BF16
    const void* a = nullptr;    // [depth, rows], or [rows, depth] with a_is_rows_first: c += scale a b
    const void* b = nullptr;    // [depth, columns]
    float* c = nullptr;         // [rows, columns]
    int64_t a_stride = 0, b_stride = 0, c_stride = 0;
    int64_t rows = 0, columns = 0, depth = 0;
    float scale = 1;
    bool a_is_rows_first = false;
  };
  void add_product(const TransposedProduct& product);

  // Why cuSOLVER cannot be used and what to do, or empty. Opens it.
  const std::string& solver_problem();

  // Both work in place on the lower triangle of `matrix` [n, n], columns first, F32 or F64, wait for the
  // queue, and are false where there is no result: the Cholesky factor; the inverse of a triangle.
  [[nodiscard]] bool factor(DType dtype, int64_t n, void* matrix);
  [[nodiscard]] bool invert_triangle(DType dtype, int64_t n, void* matrix);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lowbit
