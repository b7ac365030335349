// What the tests of GPU operators share: a context on the GPU, one with the reference kernels, and copies
// between them. Skips where there is no GPU.
#pragma once

#include "base/gpu.h"
#include "ops/cuda/libraries.h"
#include "ops/ops_test_support.h"
#include "tensor/half.h"

#include <optional>
#include <vector>

namespace lowbit::testing {

class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!gpu_support().problem.empty()) GTEST_SKIP() << gpu_support().problem;
    queue_.emplace(0);
    libraries_.emplace(*queue_);
    workspace_.emplace(*queue_);
    gpu_ = {nullptr, &*workspace_, nullptr, &*queue_, &*libraries_};
    cpu_ = bench_.context();
  }

  template <class T>
  Tensor there(const std::vector<T>& values) {
    constexpr DType kType = sizeof(T) == 1               ? DType::kU8
                            : std::is_same_v<T, float>   ? DType::kF32
                            : std::is_same_v<T, double>  ? DType::kF64
                            : std::is_same_v<T, int32_t> ? DType::kI32
                                                         : DType::kU32;
    return copied_to(*queue_,
                     Tensor::borrow(nullptr, values.data(), kType, {static_cast<int64_t>(values.size())}));
  }
  template <class T>
  std::vector<T> taken(const Tensor& tensor) {
    std::vector<T> values(static_cast<size_t>(tensor.element_count()));
    queue_->copy_out(values.data(), tensor.bytes(), tensor.byte_count());
    return values;
  }
  // Rounded to BF16, there; `values` become what that leaves.
  Tensor rounded(std::vector<float>& values) {
    std::vector<uint16_t> halves;
    for (float& value : values) {
      halves.push_back(float_to_bf16(value));
      value = bf16_to_float(halves.back());
    }
    return copied_to(
        *queue_, Tensor::borrow(nullptr, halves.data(), DType::kBF16, {static_cast<int64_t>(halves.size())}));
  }
  Tensor room(DType dtype, int64_t count) {
    const std::vector<char> poison(static_cast<size_t>(count) * dtype_size(dtype),
                                   static_cast<char>(0xff));  // NaN
    return copied_to(*queue_, Tensor::borrow(nullptr, poison.data(), dtype, {count}));
  }
  std::vector<float> back(const Tensor& tensor) {
    Tensor here = Tensor::allocate(tensor.dtype(), tensor.shape());
    queue_->copy_out(here.mutable_bytes(), tensor.bytes(), tensor.byte_count());
    std::vector<float> values;
    for (int64_t i = 0; i < here.element_count(); ++i) values.push_back(float_at(here, i));
    return values;
  }
  static Activations of(Tensor& tensor) { return {tensor.mutable_bytes(), tensor.dtype()}; }

  std::optional<GpuQueue> queue_;
  std::optional<GpuLibraries> libraries_;
  std::optional<Workspace> workspace_;
  OpContext gpu_, cpu_;
  Bench bench_{"ref"};
};

}  // namespace lowbit::testing
