#include "ops/cuda/matmul_decode.h"

#include "base/gpu.h"
#include "format/bits.h"
#include "ops/cuda/fragments.h"
#include "tensor/half.h"

#include <cmath>
#include <cstring>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>
#include <random>
#include <vector>

namespace lowbit {
namespace {

#define LOWBIT_SKIP_WITHOUT_GPU() \
  if (!gpu_support().problem.empty()) GTEST_SKIP() << gpu_support().problem

// An array on the GPU.
template <class T>
class OnGpu {
 public:
  explicit OnGpu(const std::vector<T>& values) : count_(values.size()) {
    EXPECT_EQ(cudaMalloc(&data_, std::max<size_t>(1, count_ * sizeof(T))), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
  }
  OnGpu(const OnGpu&) = delete;
  OnGpu& operator=(const OnGpu&) = delete;
  ~OnGpu() { cudaFree(data_); }

  T* get() const { return static_cast<T*>(data_); }
  std::vector<T> read() const {
    std::vector<T> values(count_);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return values;
  }

 private:
  void* data_ = nullptr;
  size_t count_;
};

struct Problem {
  int64_t out, in;
  int bits;
  int64_t group_size;
  bool has_zeros;
};

const Problem kProblems[] = {{16, 64, 4, 64, false},   {48, 1536, 4, 128, false}, {40, 1536, 4, 128, true},
                             {17, 96, 4, 32, true},    {1, 16, 4, 16, false},     {256, 8960, 4, 128, true},
                             {33, 48, 4, 48, false},   {48, 1536, 8, 128, false}, {40, 8960, 8, 128, true},
                             {5, 80, 8, 16, true},     {64, 1536, 8, 1536, true}, {16, 16, 16, 0, false},
                             {50, 1536, 16, 0, false}, {7, 8960, 16, 0, false}};

// A matrix as files have it, and its values.
struct Matrix {
  std::vector<uint16_t> dense;   // BF16 [out, in]
  std::vector<uint32_t> words;   // [in * bits / 32, out]
  std::vector<uint16_t> scales;  // F16 [groups, out]
  std::vector<uint8_t> zeros;    // [groups, out]
  std::vector<uint8_t> codes;    // [out, in]
  std::vector<double> values;    // [out, in]
};

Matrix make_matrix(const Problem& p, std::mt19937& random) {
  Matrix m;
  const size_t elements = static_cast<size_t>(p.out * p.in);
  m.values.resize(elements);
  std::normal_distribution<float> normal;
  if (p.bits == 16) {
    for (double& value : m.values) {
      m.dense.push_back(float_to_bf16(normal(random)));
      value = bf16_to_float(m.dense.back());
    }
    return m;
  }
  const int64_t in_word = 32 / p.bits, groups = (p.in + p.group_size - 1) / p.group_size;
  m.words.assign(static_cast<size_t>((p.in + in_word - 1) / in_word * p.out), 0);
  for (int64_t i = 0; i < groups * p.out; ++i) {
    m.scales.push_back(float_to_f16(0.01f + 0.02f * std::abs(normal(random))));
    if (p.has_zeros) m.zeros.push_back(static_cast<uint8_t>(random() % (1u << p.bits)));
  }
  m.codes.resize(elements);
  for (int64_t n = 0; n < p.out; ++n) {
    for (int64_t k = 0; k < p.in; ++k) {
      const uint32_t code = static_cast<uint32_t>(random() % (1u << p.bits));
      const size_t at = static_cast<size_t>(k / p.group_size * p.out + n);
      m.codes[static_cast<size_t>(n * p.in + k)] = static_cast<uint8_t>(code);
      m.words[static_cast<size_t>(k / in_word * p.out + n)] |= code << (k % in_word * p.bits);
      const int zero = p.has_zeros ? m.zeros[at] : 1 << (p.bits - 1);
      m.values[static_cast<size_t>(n * p.in + k)] =
          double{f16_to_float(m.scales[at])} * (static_cast<int>(code) - zero);
    }
  }
  return m;
}

TEST(Fragments, EveryElementHasAPlaceOfItsOwn) {
  for (const Problem& p : kProblems) {
    std::vector<int> uses(static_cast<size_t>(fragment_bytes(p.out, p.in, p.bits) * 2), 0);  // of half bytes
    for (int64_t n = 0; n < p.out; ++n) {
      for (int64_t k = 0; k < p.in; ++k) {
        const FragmentPlace place = fragment_place(n, k, p.in, p.bits);
        for (int digit = 0; digit < p.bits / 4; ++digit) {
          const size_t at = static_cast<size_t>(place.byte * 2 + place.shift / 4 + digit);
          ASSERT_LT(at, uses.size());
          ++uses[at];
        }
      }
    }
    int64_t used = 0;
    for (int count : uses) {
      ASSERT_LE(count, 1);
      used += count;
    }
    EXPECT_EQ(used, p.out * p.in * p.bits / 4);
  }
}

TEST(GpuMatmulDecode, PacksWhereFragmentPlaceSays) {
  LOWBIT_SKIP_WITHOUT_GPU();
  std::mt19937 random(1);
  for (const Problem& p : kProblems) {
    const Matrix m = make_matrix(p, random);
    const OnGpu<uint8_t> fragments(
        std::vector<uint8_t>(static_cast<size_t>(fragment_bytes(p.out, p.in, p.bits)), 0xff));
    const OnGpu<uint16_t> dense(m.dense);
    const OnGpu<uint32_t> words(m.words);
    gpu_pack_fragments(p.bits == 16 ? static_cast<const void*>(dense.get()) : words.get(), p.out, p.in,
                       p.bits, fragments.get(), nullptr);
    const std::vector<uint8_t> packed = fragments.read();
    for (int64_t n = 0; n < p.out; ++n) {
      for (int64_t k = 0; k < p.in; ++k) {
        const FragmentPlace place = fragment_place(n, k, p.in, p.bits);
        const uint8_t* at = packed.data() + place.byte;
        const size_t element = static_cast<size_t>(n * p.in + k);
        if (p.bits == 16) {
          uint16_t value;
          std::memcpy(&value, at, 2);
          ASSERT_EQ(value, m.dense[element]) << n << " " << k;
        } else {
          ASSERT_EQ(*at >> place.shift & ((1 << p.bits) - 1), m.codes[element]) << n << " " << k;
        }
      }
    }
  }
}

TEST(GpuMatmulDecode, AgreesWithTheExactProductAndIsTheSameInAnyBatch) {
  LOWBIT_SKIP_WITHOUT_GPU();
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (const Problem& p : kProblems) {
    const Matrix m = make_matrix(p, random);
    const OnGpu<uint16_t> dense(m.dense), scales(m.scales);
    const OnGpu<uint32_t> words(m.words);
    const OnGpu<uint8_t> zeros(m.zeros);
    const OnGpu<uint8_t> fragments(
        std::vector<uint8_t>(static_cast<size_t>(fragment_bytes(p.out, p.in, p.bits))));
    gpu_pack_fragments(p.bits == 16 ? static_cast<const void*>(dense.get()) : words.get(), p.out, p.in,
                       p.bits, fragments.get(), nullptr);
    constexpr int64_t kRows = 8;
    std::vector<uint16_t> x(static_cast<size_t>(kRows * p.in));
    for (uint16_t& value : x) value = float_to_bf16(normal(random));
    std::vector<float> bias(static_cast<size_t>(p.out)), before(static_cast<size_t>(kRows * p.out));
    for (float& value : bias) value = normal(random);
    for (float& value : before) value = normal(random);
    const OnGpu<uint16_t> x_there(x);
    const OnGpu<float> bias_there(bias);

    std::vector<float> whole;
    for (int64_t rows : {kRows, int64_t{1}, int64_t{3}}) {
      const OnGpu<float> sums(before);
      const OnGpu<float> floats(std::vector<float>(before.size()));
      const OnGpu<uint16_t> halves(std::vector<uint16_t>(before.size()));
      GpuDecodeArgs args{.rows = rows,
                         .in = p.in,
                         .out = p.out,
                         .bits = p.bits,
                         .group_size = p.group_size,
                         .fragments = fragments.get(),
                         .scales = scales.get(),
                         .zero_points = p.has_zeros ? zeros.get() : nullptr,
                         .x = x_there.get(),
                         .bias = bias_there.get()};
      args.y_float = floats.get();
      gpu_matmul_decode(args, nullptr);
      args.add_to = sums.get();
      gpu_matmul_decode(args, nullptr);
      args.add_to = args.y_float = nullptr;
      args.y = halves.get();
      gpu_matmul_decode(args, nullptr);
      const std::vector<float> y = floats.read(), added = sums.read();
      const std::vector<uint16_t> rounded = halves.read();
      if (rows == kRows) whole = y;
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t n = 0; n < p.out; ++n) {
          const size_t at = static_cast<size_t>(row * p.out + n);
          double expected = bias[static_cast<size_t>(n)], magnitude = std::abs(expected);
          for (int64_t k = 0; k < p.in; ++k) {
            const double term = m.values[static_cast<size_t>(n * p.in + k)] *
                                double{bf16_to_float(x[static_cast<size_t>(row * p.in + k)])};
            expected += term;
            magnitude += std::abs(term);
          }
          ASSERT_NEAR(y[at], expected, 1e-5 * magnitude)
              << p.bits << " bits, " << p.in << ", " << row << " " << n;
          ASSERT_EQ(y[at], whole[at]) << "alone and in a batch";
          ASSERT_EQ(added[at], before[at] + y[at]);
          ASSERT_EQ(rounded[at], float_to_bf16(y[at]));
        }
      }
    }
  }
}

}  // namespace
}  // namespace lowbit
