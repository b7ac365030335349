#include "ops/machine_limits.h"

#include "ops/cpu/limits_kernels.h"
#include "ops/kernel_table.h"

#include <chrono>
#include <gtest/gtest.h>
#include <vector>

namespace lowbit {
namespace {

TEST(MachineLimits, EveryReaderReadsEveryWord) {
  std::vector<uint32_t> words(4096, 0);
  using Read = uint64_t (*)(const void*, size_t, int) noexcept;
  std::vector<Read> readers = {read_streams_ref};
  if (isa_available(Isa::kAvx2)) readers.push_back(read_streams_avx2);
  if (isa_available(Isa::kAvx512)) readers.push_back(read_streams_avx512);
  for (size_t place : {size_t{0}, size_t{255}, size_t{1024}, size_t{3000}, size_t{4095}}) {
    words[place] = 1;
    for (Read read : readers) {
      for (int streams : {1, 2, 4, 8, 16})
        EXPECT_NE(read(words.data(), words.size() * 4, streams), 0u) << place;
    }
    words[place] = 0;
  }
}

TEST(MachineLimits, FiguresArePossibleAndQuick) {
  const ThreadPool threads(2);
  const auto begin = std::chrono::steady_clock::now();
  const MachineLimits limits = measure_machine_limits(threads, size_t{16} << 20);
  EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(), 20);
  EXPECT_EQ(limits.buffer_bytes, size_t{16} << 20);
  for (const ReadBandwidth& read : {limits.read_one, limits.read_all}) {
    EXPECT_GT(read.gb_per_s, 0.01);
    EXPECT_LT(read.gb_per_s, 10000);
    EXPECT_GE(read.best_gb_per_s, read.gb_per_s);
    EXPECT_GE(read.streams, 1);
  }
  EXPECT_GT(limits.fp32.one, 0.01);
  EXPECT_LT(limits.fp32.all, 100000);
  EXPECT_EQ(limits.amx_bf16.one > 0, isa_available(Isa::kAmxBf16));
  EXPECT_EQ(limits.amx_int8.all > 0, isa_available(Isa::kAmxInt8));
  EXPECT_LT(limits.amx_int8.all, 1e6);
}

}  // namespace
}  // namespace lowbit
