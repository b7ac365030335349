// What the tests of ops share: seeded numbers, and a context that forces one kernel.
#pragma once

#include "ops/context.h"
#include "ops/kernel_table.h"

#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <random>
#include <string>
#include <vector>

namespace lowbit::testing {

class Numbers {
 public:
  explicit Numbers(uint32_t seed) : engine_(seed) {}
  float normal(float deviation = 1) { return std::normal_distribution<float>(0, deviation)(engine_); }
  int64_t between(int64_t least, int64_t most) {
    return std::uniform_int_distribution<int64_t>(least, most)(engine_);
  }
  std::vector<float> normals(int64_t count, float deviation = 1) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = normal(deviation);
    return values;
  }

 private:
  std::mt19937 engine_;
};

// A context of its own; kernel "" lets the op choose.
class Bench {
 public:
  explicit Bench(std::string kernel = "", int threads = 1) : pool_(threads) {
    choice_.all = std::move(kernel);
  }
  OpContext context() { return {&pool_, &workspace_, &choice_}; }

 private:
  ThreadPool pool_;
  Workspace workspace_;
  KernelChoice choice_;
};

// The names of an op's kernels that this processor runs, the reference among them.
inline std::vector<std::string> available(const std::vector<KernelListing>& listings, const std::string& op) {
  std::vector<std::string> names;
  for (const KernelListing& listing : listings) {
    if (listing.op == op && listing.available) names.push_back(listing.kernel);
  }
  EXPECT_FALSE(names.empty()) << op;
  return names;
}

inline double relative_error(const std::vector<float>& got, const std::vector<double>& expected) {
  double worst = 0, scale = 1e-30;
  for (double value : expected) scale = std::max(scale, std::fabs(value));
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = std::fabs(double{got[i]} - expected[i]);
    if (!(error <= worst)) worst = error;  // a NaN stays
  }
  return worst / scale;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace lowbit::testing
