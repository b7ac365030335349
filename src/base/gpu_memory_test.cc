// The limit and the texts need no GPU: what the limit refuses is not asked of the driver.
#include "base/gpu_memory.h"

#include "base/fields.h"
#include "base/gpu.h"
#include "base/gpu_queue.h"
#include "base/json.h"
#include "base/staged_copies.h"
#include "lowbit/bytes.h"
#include "support.h"

#include <cstring>
#include <gtest/gtest.h>
#include <optional>

namespace lowbit {
namespace {

using testing::error_of;

TEST(Bytes, TextsWithUnits) {
  EXPECT_EQ(parse_bytes("0").count, 0u);
  EXPECT_EQ(parse_bytes("6000000000").count, 6000000000u);
  EXPECT_EQ(parse_bytes("6GB").count, 6000000000u);
  EXPECT_EQ(parse_bytes("1.5 gb").count, 1500000000u);
  EXPECT_EQ(parse_bytes("800MiB").count, uint64_t{800} << 20);
  EXPECT_EQ(parse_bytes("2TiB").count, uint64_t{2} << 40);
  EXPECT_EQ(parse_bytes("12 B").count, 12u);
}

TEST(Bytes, WhatIsNoneIsRefusedWithWhatIsExpected) {
  for (const char* text :
       {"", "GB", "-1", "6G", "6 G B", "6GBs", "0x10", "nan", "inf", "1e9", "99999999TB", "6,5GB"}) {
    const std::string message = error_of(ErrorCode::kInvalidArgument, [&] { parse_bytes(text); });
    EXPECT_NE(message.find("6GB"), std::string::npos) << message;
  }
}

TEST(Bytes, FieldsTakeNumbersAndTexts) {
  Bytes value(5);
  const Fields fields = {{"size", &value, ""}};
  EXPECT_EQ(fields_to_json(fields).find("size")->as_integer(), 5);
  fields_from_json(fields, parse_json("{\"size\": 7000}", "test"), "test");
  EXPECT_EQ(value.count, 7000u);
  fields_from_json(fields, parse_json("{\"size\": \"2kB\"}", "test"), "test");
  EXPECT_EQ(value.count, 2000u);
  error_of(ErrorCode::kInvalidArgument,
           [&] { fields_from_json(fields, parse_json("{\"size\": true}", "test"), "test"); });
}

TEST(GpuMemory, WhatTheLimitRefusesNamesPurposeAndNumbersAndHelp) {
  GpuMemory memory(0, 1000000);
  memory.set_purpose(
      {.use = GpuUse::kCache, .what = "the keys and values", .tokens = 77, .helps = "do less"});
  EXPECT_EQ(memory.try_allocate(2000000, GpuUse::kWork), nullptr);
  const std::string message = error_of(ErrorCode::kOutOfMemory, [&] { memory.allocate(2000000); });
  for (const char* part : {"the keys and values of 77 tokens", "2.0 MB", "cuda:0",
                           "limit of 1.0 MB (--max-gpu-memory)", "0 B in use", "do less"})
    EXPECT_NE(message.find(part), std::string::npos) << message;
}

TEST(GpuMemory, WithoutALimitNoneIsNamed) {
  const std::string text =
      shortage_text({.purpose = {.what = "loading"}, .gpu = 1, .asked = 5000, .free = 12});
  EXPECT_EQ(text,
            "out of GPU memory for loading: it needs 5.0 kB more, cuda:1 has 12 B free; use --device cpu");
}

TEST(GpuMemory, AsksForWhatIsOnlyKeptBeforeItGivesUp) {
  GpuMemory memory(0, 100);
  int calls = 0;
  memory.set_reclaim([&] { ++calls; });
  EXPECT_EQ(memory.try_allocate(101, GpuUse::kWork), nullptr);
  EXPECT_EQ(calls, 1);
}

class GpuQueues : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!gpu_support().problem.empty()) GTEST_SKIP() << gpu_support().problem;
  }
};

TEST_F(GpuQueues, CountWhatIsTakenAndFreed) {
  GpuQueue queue(0, 1 << 20);
  GpuMemory& memory = queue.memory();
  const GpuQueue beside(queue, GpuQueue::Beside::kIt);
  EXPECT_EQ(&beside.memory(), &memory);
  void* const a = memory.allocate(600000, GpuUse::kWeights);
  void* const b = memory.allocate(400000, GpuUse::kCache);
  EXPECT_EQ(memory.figures().used, 1000000u);
  EXPECT_EQ(memory.available(), (uint64_t{1} << 20) - 1000000);
  EXPECT_EQ(memory.try_allocate(100000, GpuUse::kWork), nullptr);
  memory.free(a);
  void* const c = memory.allocate(100000, GpuUse::kWork);
  memory.free(b);
  memory.free(c);
  const GpuMemoryFigures figures = memory.figures();
  EXPECT_EQ(figures.weights, 600000u);
  EXPECT_EQ(figures.cache, 400000u);
  EXPECT_EQ(figures.work, 100000u);
  EXPECT_EQ(figures.used, 0u);
  EXPECT_EQ(figures.peak, 1000000u);
}

TEST_F(GpuQueues, APhaseEndsWithItsBlock) {
  GpuQueue queue(0);
  {
    const GpuPhase phase(&queue, {.what = "a test"});
    EXPECT_EQ(queue.memory().purpose().what, "a test");
  }
  EXPECT_NE(queue.memory().purpose().what, "a test");
}

TEST_F(GpuQueues, ASpoiltRecordingIsMadeAgain) {
  GpuQueue queue(0);
  constexpr size_t kBytes = 1000;
  void* const there = queue.memory().allocate(kBytes);
  std::vector<char> here(kBytes, 1);
  queue.copy_in(there, here.data(), kBytes);
  int tries = 0;
  GpuGraph graph(queue, [&] {
    if (++tries == 1) {
      EXPECT_THROW(queue.is_idle("what is recorded"), Error);
      return;
    }
    queue.clear(there, kBytes);
  });
  EXPECT_EQ(tries, 2);
  graph.launch();
  queue.copy_out(here.data(), there, kBytes);
  EXPECT_EQ(here, std::vector<char>(kBytes));
  queue.memory().free(there);
}

// More than the ring holds, in pieces of every size, each source overwritten at once.
TEST_F(GpuQueues, StagedCopiesArriveWhole) {
  GpuQueue queue(0);
  const ThreadPool threads(3);
  constexpr size_t kBytes = (size_t{150} << 20) + 12345;
  void* const there = queue.memory().allocate(kBytes);
  const auto value = [](size_t i) { return static_cast<char>((i * 2654435761u) >> 13); };
  {
    StagedCopies copies(queue, threads);
    std::vector<char> source;
    size_t size = 1;
    for (size_t at = 0; at < kBytes; at += source.size(), size = size * 3 + 1) {
      if (size > (size_t{40} << 20)) size = 1;
      source.resize(std::min(size, kBytes - at));
      for (size_t i = 0; i < source.size(); ++i) source[i] = value(at + i);
      copies.copy_in(static_cast<char*>(there) + at, source.data(), source.size());
      std::memset(source.data(), 0x55, source.size());
    }
  }
  std::vector<char> back(kBytes);
  queue.copy_out(back.data(), there, kBytes);
  size_t wrong = 0;
  for (size_t i = 0; i < kBytes; ++i) wrong += back[i] != value(i);
  EXPECT_EQ(wrong, 0u);
  queue.memory().free(there);
}

}  // namespace
}  // namespace lowbit
