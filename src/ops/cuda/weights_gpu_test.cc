#include "ops/cuda/weights_gpu.h"

#include "base/gpu.h"
#include "base/staged_copies.h"
#include "format/bits.h"
#include "format/codebook.h"
#include "lowbit/error.h"
#include "ops/encode.h"
#include "ops/ops_test_support.h"
#include "tensor/half.h"

namespace lowbit {
namespace {

using testing::Numbers;

Tensor random_bytes(DType dtype, Shape shape, Numbers& numbers) {
  Tensor tensor = Tensor::allocate(dtype, std::move(shape));
  uint8_t* const bytes = static_cast<uint8_t*>(tensor.mutable_bytes());
  for (size_t i = 0; i < tensor.byte_count(); ++i) bytes[i] = static_cast<uint8_t>(numbers.between(0, 255));
  return tensor;
}

// Any bytes are codes; scales are never computed with here.
QuantizedTensor random_weight(int bits, int64_t out, int64_t in, int64_t group_size, Numbers& numbers) {
  QuantizedTensor weight{.bits = bits, .group_size = group_size, .out_features = out, .in_features = in};
  weight.codes = random_bytes(DType::kI32, {packed_words(in, bits), out}, numbers);
  weight.scales = random_bytes(DType::kF16, {weight.groups(), out}, numbers);
  weight.zero_points = random_bytes(DType::kU8, {weight.groups(), out}, numbers);
  weight.column_order = random_bytes(DType::kI32, {in}, numbers);
  return weight;
}

Tensor floats(Shape shape, Numbers& numbers) {
  Tensor tensor = Tensor::allocate(DType::kF32, std::move(shape));
  for (int64_t i = 0; i < tensor.element_count(); ++i) tensor.mutable_data<float>()[i] = numbers.normal();
  return tensor;
}

std::vector<const Tensor*> tensors_of(const Weight& weight) {
  if (const Tensor* dense = std::get_if<Tensor>(&weight)) return {dense};
  const QuantizedTensor& codes = std::get<QuantizedTensor>(weight);
  std::vector<const Tensor*> tensors = {&codes.codes, &codes.scales};
  if (!codes.zero_points.empty()) tensors.push_back(&codes.zero_points);
  if (!codes.column_order.empty()) tensors.push_back(&codes.column_order);
  return tensors;
}

// Needs no GPU: where bytes will lie is known before.
TEST(GpuWeightLayout, NamesWhatIsTaken) {
  Numbers numbers(1);
  const auto bytes = [](const Weight& weight) {
    std::vector<size_t> taken;
    gpu_layout(weight, [&](DType dtype, Shape shape) {
      size_t size = dtype_size(dtype);
      for (int64_t extent : shape) size *= static_cast<size_t>(extent);
      taken.push_back(size);
      return Tensor();
    });
    return taken;
  };
  EXPECT_EQ(bytes(floats({30, 7}, numbers)), std::vector<size_t>{30 * 7 * 2});
  EXPECT_EQ(bytes(converted(floats({30}, numbers), DType::kF16)), std::vector<size_t>{30 * 4});
  QuantizedTensor weight = random_weight(4, 32, 256, 128, numbers);
  // Two tiles of 16 rows: 4 bits; two groups of 2-byte scales and zero points; the order.
  EXPECT_EQ(bytes(weight), (std::vector<size_t>{32 * 256 / 2, 32 * 2 * 2, 32 * 2 * 2, 256 * 4}));
  EXPECT_EQ(fill_scratch_bytes(weight), weight.byte_count());
  weight.zero_points = weight.column_order = {};
  EXPECT_EQ(bytes(weight), (std::vector<size_t>{32 * 256 / 2, 32 * 2 * 2}));
}

class GpuWeights : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!gpu_support().problem.empty()) GTEST_SKIP() << gpu_support().problem;
    queue_ = std::make_unique<GpuQueue>(0);
    workspace_ = std::make_unique<Workspace>(*queue_);
    gpu_ = {nullptr, workspace_.get(), nullptr, queue_.get()};
  }
  std::vector<char> back(const Tensor& tensor) {
    std::vector<char> bytes(tensor.byte_count());
    queue_->copy_out(bytes.data(), tensor.bytes(), bytes.size());
    return bytes;
  }

  std::unique_ptr<GpuQueue> queue_;
  std::unique_ptr<Workspace> workspace_;
  OpContext gpu_;
};

TEST_F(GpuWeights, OneBehindTheOtherThroughStagedCopiesAreThoseOfTheirOwn) {
  Numbers numbers(2);
  std::vector<Weight> weights;
  for (int bits : {2, 3, 4, 8}) {
    weights.push_back(random_weight(bits, 40, 576, 32, numbers));
    weights.push_back(floats({17 + bits}, numbers));
    weights.push_back(random_weight(bits, 2050, 1536, 128, numbers));
    weights.push_back(floats({50, 33}, numbers));
  }
  Tensor piece = Tensor::allocate_on(queue_.get(), DType::kU8, {int64_t{64} << 20});
  const ThreadPool threads(2);
  std::vector<Weight> there;
  {
    StagedCopies copies(*queue_, threads);
    size_t used = 0;
    for (const Weight& weight : weights) {
      there.push_back(gpu_layout(weight, [&](DType dtype, Shape shape) {
        const Tensor part = piece.part(used, dtype, std::move(shape));
        used += (part.byte_count() + 255) / 256 * 256;
        return part;
      }));
      fill_gpu_weight(gpu_, weight, there.back(),
                      [&](void* to, const void* from, size_t bytes) { copies.copy_in(to, from, bytes); });
    }
  }
  for (size_t i = 0; i < weights.size(); ++i) {
    const Weight own = to_gpu(gpu_, weights[i]);
    const auto a = tensors_of(own), b = tensors_of(there[i]);
    ASSERT_EQ(a.size(), b.size());
    for (size_t part = 0; part < a.size(); ++part)
      EXPECT_EQ(back(*a[part]), back(*b[part])) << i << ", " << part;
  }
}

// Larger than what is converted at a time.
TEST_F(GpuWeights, LargeDenseMatricesAreConvertedWhole) {
  Numbers numbers(3);
  const Tensor source = floats({3001, 2003}, numbers);
  for (DType dtype : {DType::kF32, DType::kF16, DType::kF64, DType::kBF16}) {
    const Tensor given = converted(source, dtype);
    const Tensor expected = converted(given, DType::kBF16);
    const std::vector<char> found = back(std::get<Tensor>(to_gpu(gpu_, given)));
    ASSERT_EQ(found.size(), expected.byte_count());
    EXPECT_EQ(std::memcmp(found.data(), expected.bytes(), found.size()), 0) << dtype_name(dtype);
  }
}

// A dense matrix that becomes codes there is the bytes of one that was encoded here.
TEST_F(GpuWeights, CodesMadeThereAreThoseMadeHere) {
  Numbers numbers(4);
  for (Format format : {Format::kNf4, Format::kFp4, Format::kInt8}) {
    for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      Tensor source = floats({37, 320}, numbers);
      for (int64_t i = 0; i < 64; ++i) source.mutable_data<float>()[i] = i % 3 == 0 ? 0.0f : -0.0f;
      for (int64_t i = 64; i < 128; ++i) source.mutable_data<float>()[i] = 1e-39f;
      const Tensor dense = converted(source, dtype);
      GpuEncoding encoding{.format = format, .modules = {"other", "it"}, .indices = {{dense.bytes(), 1}}};
      const uint32_t none = 2;
      encoding.failed = copied_to(*queue_, Tensor::borrow(nullptr, &none, DType::kU32, {1}));
      Weight there = gpu_layout(
          dense, [&](DType type, Shape shape) { return Tensor::allocate_on(queue_.get(), type, shape); },
          &encoding);
      const auto fill_it = [&](const Tensor& from) {
        encoding.indices = {{from.bytes(), 1}};
        fill_gpu_weight(
            gpu_, from, there,
            [&](void* to, const void* bytes, size_t count) { queue_->copy_in(to, bytes, count); }, &encoding);
        queue_->wait("a test");
      };
      fill_it(dense);
      check_encoding(gpu_, encoding);

      const ThreadPool threads(1);
      Workspace workspace;
      const Weight here = encoded({.threads = &threads, .workspace = &workspace}, dense, {.format = format});
      const Weight expected = to_gpu(gpu_, here);
      const auto a = tensors_of(there), b = tensors_of(expected);
      ASSERT_EQ(a.size(), b.size());
      for (size_t part = 0; part < a.size(); ++part)
        EXPECT_EQ(back(*a[part]), back(*b[part])) << format_name(format) << ", " << part;

      source.mutable_data<float>()[1000] = std::numeric_limits<float>::quiet_NaN();
      fill_it(converted(source, dtype));
      try {
        check_encoding(gpu_, encoding);
        FAIL() << "NaN was rounded";
      } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("it: "), std::string::npos) << error.what();
      }
    }
  }
}

}  // namespace
}  // namespace lowbit
