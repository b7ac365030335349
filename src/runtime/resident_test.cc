#include "runtime/resident.h"

#include <cstring>
#include <gtest/gtest.h>
#include <numeric>

namespace lowbit {
namespace {

// `count` numbers that begin `shift` bytes behind a cache line.
Tensor misplaced(int64_t count, size_t shift, uint8_t first) {
  Tensor bytes = Tensor::allocate(DType::kU8, {count + static_cast<int64_t>(shift)});
  uint8_t* data = bytes.mutable_data<uint8_t>();
  std::iota(data + shift, data + shift + count, first);
  const auto owner = std::make_shared<Tensor>(bytes);
  return Tensor::borrow(owner, data + shift, DType::kU8, {count});
}

TEST(Resident, WeightsAreCopiedToCacheLinesAndStayTheSame) {
  const Tensor shared = misplaced(100, 8, 1);
  QuantizedTensor quantized;
  quantized.codes = misplaced(3 << 20, 40, 7);  // several pieces
  quantized.scales = misplaced(5, 32, 200);
  NamedWeights weights = {{"embedding", shared}, {"head", shared}, {"layer", quantized}};
  const ThreadPool threads(2);
  ASSERT_TRUE(move_to_memory(weights, threads, {}));
  const auto expect_copy = [](const Tensor& copy, const Tensor& source) {
    EXPECT_NE(copy.bytes(), source.bytes());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(copy.bytes()) % 64, 0u);
    EXPECT_EQ(copy.shape(), source.shape());
    EXPECT_EQ(std::memcmp(copy.bytes(), source.bytes(), source.byte_count()), 0);
  };
  expect_copy(std::get<Tensor>(weights["embedding"]), shared);
  EXPECT_EQ(std::get<Tensor>(weights["head"]).bytes(), std::get<Tensor>(weights["embedding"]).bytes());
  const QuantizedTensor& layer = std::get<QuantizedTensor>(weights["layer"]);
  expect_copy(layer.codes, quantized.codes);
  expect_copy(layer.scales, quantized.scales);
  EXPECT_TRUE(layer.zero_points.empty());
  EXPECT_FALSE(layer.codes.is_writable());
}

TEST(Resident, NoWeightsAreLeftAlone) {
  NamedWeights none;
  EXPECT_TRUE(move_to_memory(none, ThreadPool(1), {}));
  EXPECT_TRUE(none.empty());
}

}  // namespace
}  // namespace lowbit
