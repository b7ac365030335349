#include "runtime/layer_stream.h"

#include "base/gpu.h"

#include <algorithm>
#include <gtest/gtest.h>
#include <numeric>

namespace lowbit {
namespace {

constexpr size_t kBytes = size_t{4} << 20;

class GpuLayerStream : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!gpu_support().problem.empty()) GTEST_SKIP() << gpu_support().problem;
    queue_ = std::make_unique<GpuQueue>(0);
  }

  // Of layer i: its number in every byte.
  std::unique_ptr<LayerStream> make(size_t layers) {
    auto stream = std::make_unique<LayerStream>(*queue_, kBytes);
    for (size_t layer = 0; layer < layers; ++layer) {
      const std::vector<char> bytes(kBytes, static_cast<char>(layer + 1));
      queue_->copy_in(const_cast<void*>(stream->buffer(layer).bytes()), bytes.data(), kBytes);
      stream->keep(kBytes - layer);  // a layer may be smaller than the buffer
    }
    EXPECT_GT(stream->begin(), 0);
    return stream;
  }

  // Runs layers [0, count): what each finds in its buffer goes to a place of its own, several times over, so
  // that a copy that came too early or too late is seen.
  std::vector<char> run(LayerStream& stream, size_t count) {
    constexpr size_t kTimes = 8;
    Tensor found =
        Tensor::allocate_on(queue_.get(), DType::kU8, {static_cast<int64_t>(count * kTimes * kBytes)});
    char* to = static_cast<char*>(found.mutable_bytes());
    for (size_t layer = 0; layer < count; ++layer) {
      stream.arrive(layer);
      for (size_t time = 0; time < kTimes; ++time, to += kBytes)
        queue_->copy_within(to, stream.buffer(layer).bytes(), kBytes - layer);
      stream.leave(layer);
    }
    std::vector<char> here(found.byte_count());
    queue_->copy_out(here.data(), found.bytes(), here.size());
    // One byte for each layer: its number, or 0 where something else was found.
    std::vector<char> layers;
    for (size_t layer = 0; layer < count; ++layer) {
      char seen = static_cast<char>(layer + 1);
      for (size_t time = 0; time < kTimes; ++time) {
        const char* const begin = here.data() + (layer * kTimes + time) * kBytes;
        const char* const end = begin + kBytes - layer;
        if (std::any_of(begin, end, [&](char byte) { return byte != static_cast<char>(layer + 1); }))
          seen = 0;
      }
      layers.push_back(seen);
    }
    return layers;
  }

  static std::vector<char> numbers(size_t count) {
    std::vector<char> numbers(count);
    std::iota(numbers.begin(), numbers.end(), char{1});
    return numbers;
  }

  std::unique_ptr<GpuQueue> queue_;
};

TEST_F(GpuLayerStream, EveryLayerFindsItsWeightsPassAfterPass) {
  for (size_t layers : {3, 4, 5, 8}) {
    const auto stream = make(layers);
    for (int pass = 0; pass < 4; ++pass) EXPECT_EQ(run(*stream, layers), numbers(layers)) << layers;
  }
}

TEST_F(GpuLayerStream, APassThatWasBrokenOffDoesNoHarm) {
  const auto stream = make(7);
  for (size_t broken_at : {1, 2, 3, 6}) {
    EXPECT_EQ(run(*stream, broken_at), numbers(broken_at));
    stream->arrive(broken_at);  // and its work failed
    EXPECT_EQ(run(*stream, 7), numbers(7)) << broken_at;
  }
}

TEST_F(GpuLayerStream, CountsWhatIsCopiedInAPass) {
  // Of three layers the second one has a buffer of its own.
  EXPECT_EQ(make(3)->bytes_per_pass(), 2 * kBytes - 2);
  EXPECT_EQ(make(5)->bytes_per_pass(), 5 * kBytes - 10);
}

}  // namespace
}  // namespace lowbit
