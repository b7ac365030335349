#include "ops/cpu/limits_kernels.h"

#include <cstring>

namespace lowbit {

uint64_t read_streams_ref(const void* data, size_t bytes, int streams) noexcept {
  const char* p = static_cast<const char*>(data);
  const size_t part = bytes / static_cast<size_t>(streams);
  uint64_t total = 0;
  for (size_t at = 0; at + 8 <= part; at += 8) {
    for (int s = 0; s < streams; ++s) {
      uint64_t word;
      std::memcpy(&word, p + static_cast<size_t>(s) * part + at, sizeof word);
      total += word;
    }
  }
  return total;
}

double multiply_add_ref(int64_t rounds, float* sink) noexcept {
  constexpr int kChains = 32;
  float sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = static_cast<float>(i);
  for (int64_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * 0.999f + 0.001f;
  }
  for (int i = 1; i < kChains; ++i) sums[0] += sums[i];
  *sink = sums[0];
  return 2.0 * kChains;
}

}  // namespace lowbit
