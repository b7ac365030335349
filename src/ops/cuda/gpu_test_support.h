// What the tests of GPU operators share: a context on the GPU, one with the reference kernels, copies between
// them, and quantized weights. Skips where there is no GPU.
#pragma once

#include "base/gpu.h"
#include "format/bits.h"
#include "format/weight.h"
#include "ops/cuda/libraries.h"
#include "ops/ops_test_support.h"
#include "tensor/half.h"

#include <algorithm>
#include <optional>
#include <random>
#include <vector>

namespace lowbit::testing {

// Of random codes and scales.
inline QuantizedTensor make_quantized(int64_t out, int64_t in, int bits, int64_t group_size, bool has_zeros,
                                      bool has_order, Numbers& numbers) {
  QuantizedTensor weight{.bits = bits, .group_size = group_size, .out_features = out, .in_features = in};
  const int64_t groups = weight.groups();
  weight.codes = Tensor::zeros(DType::kI32, {packed_words(in, bits), out});
  weight.scales = Tensor::allocate(DType::kF16, {groups, out});
  for (int64_t i = 0; i < groups * out; ++i)
    weight.scales.mutable_data<uint16_t>()[i] = float_to_f16(0.02f + 0.01f * std::abs(numbers.normal()));
  for (int64_t n = 0; n < out; ++n) {
    std::vector<uint8_t> codes;
    for (int64_t k = 0; k < in; ++k)
      codes.push_back(static_cast<uint8_t>(numbers.between(0, (1 << bits) - 1)));
    pack_bits(codes.data(), 1, in, bits, weight.codes.mutable_data<uint32_t>() + n, out);
  }
  if (has_zeros) {
    weight.zero_points = Tensor::allocate(DType::kU8, {groups, out});
    for (int64_t i = 0; i < groups * out; ++i)
      weight.zero_points.mutable_data<uint8_t>()[i] =
          static_cast<uint8_t>(numbers.between(0, (1 << bits) - 1));
  }
  if (has_order) {
    std::vector<int32_t> order(static_cast<size_t>(in));
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
    std::mt19937 random(5);
    std::shuffle(order.begin(), order.end(), random);
    weight.column_order = Tensor::allocate(DType::kI32, {in});
    std::copy(order.begin(), order.end(), weight.column_order.mutable_data<int32_t>());
  }
  return weight;
}

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
