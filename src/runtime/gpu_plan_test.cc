#include "runtime/gpu_plan.h"

#include <gtest/gtest.h>
#include <numeric>

namespace lowbit {
namespace {

using Layers = std::vector<int64_t>;

GpuSizes ten_layers() {
  return {.frame = 100, .layers = std::vector<uint64_t>(10, 10), .cache = 20, .work = 30, .tokens = 64};
}

TEST(GpuPlan, StreamsAsFewLayersAsTheMemoryAllows) {
  // frame, cache and work take 150, two buffers 20.
  const struct {
    uint64_t available;
    bool fits;
    size_t streamed;
    uint64_t needed;
  } cases[] = {
      {1000, true, 0, 250},  {250, true, 0, 250}, {249, true, 3, 240},  {240, true, 3, 240},
      {239, true, 4, 230},   {200, true, 7, 200}, {170, true, 10, 170}, {179, true, 10, 170},
      {169, false, 10, 170}, {0, false, 10, 170},
  };
  for (const auto& c : cases) {
    const GpuPlan plan = plan_layers(ten_layers(), c.available);
    EXPECT_EQ(plan.fits, c.fits) << c.available;
    EXPECT_EQ(plan.streamed.size(), c.streamed) << c.available;
    EXPECT_EQ(plan.needed_bytes, c.needed) << c.available;
    EXPECT_EQ(plan.buffer_bytes, c.streamed > 0 ? 10u : 0u);
    EXPECT_EQ(plan.streamed_bytes, 10 * c.streamed);
  }
}

TEST(GpuPlan, SpreadsStreamedLayersEvenly) {
  EXPECT_EQ(plan_with_streamed(ten_layers(), 3).streamed, (Layers{2, 5, 9}));
  EXPECT_EQ(plan_with_streamed(ten_layers(), 5).streamed, (Layers{1, 3, 5, 7, 9}));
  Layers all(10);
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(plan_with_streamed(ten_layers(), 10).streamed, all);
}

TEST(GpuPlan, BuffersAreAsLargeAsTheLargestStreamedLayer) {
  GpuSizes sizes = ten_layers();
  sizes.layers[5] = 40;
  const GpuPlan plan = plan_with_streamed(sizes, 3);  // 2, 5, 9
  EXPECT_EQ(plan.buffer_bytes, 40u);
  EXPECT_EQ(plan.streamed_bytes, 60u);
  EXPECT_EQ(plan.needed_bytes, 150u + 70 + 80);
}

TEST(GpuPlan, OfFewLayersNoneCanBeStreamed) {
  const GpuSizes sizes{.frame = 1, .layers = {10, 10}};
  EXPECT_TRUE(plan_layers(sizes, 21).fits);
  EXPECT_FALSE(plan_layers(sizes, 20).fits);
}

TEST(GpuPlan, SaysWhyNothingFitsAndWhatHelps) {
  GpuSizes sizes = ten_layers();
  std::string text = shortage_text(sizes, 99, 99);
  EXPECT_NE(text.find("embedding and the head alone take 100 B"), std::string::npos) << text;
  EXPECT_NE(text.find("99 B of GPU memory (--max-gpu-memory 99 B)"), std::string::npos) << text;
  text = shortage_text(sizes, 160, 0);
  for (const char* part : {"160 B of GPU memory,", "64 tokens 20 B", "two layers at a time 20 B",
                           "--kv-cache-tokens", "--device cpu"})
    EXPECT_NE(text.find(part), std::string::npos) << text;
}

}  // namespace
}  // namespace lowbit
