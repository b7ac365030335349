#include "ops/cuda/matmul_decode.h"

#include "base/gpu.h"
#include "format/bits.h"
#include "format/codebook.h"
#include "ops/cuda/elementwise_gpu.h"
#include "ops/cuda/fragments.h"
#include "ops/cuda/fragments_gpu.h"
#include "ops/cuda/matmul_gpu.h"
#include "tensor/half.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>
#include <numeric>
#include <random>
#include <tuple>
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
  Format format = Format::kAffine;
};

const Problem kProblems[] = {{16, 64, 4, 64, false},
                             {48, 1536, 4, 128, false},
                             {40, 1536, 4, 128, true},
                             {17, 96, 4, 32, true},
                             {1, 16, 4, 16, false},
                             {256, 8960, 4, 128, true},
                             {33, 48, 4, 48, false},
                             {70, 576, 4, 64, true},
                             {48, 1536, 8, 128, false},
                             {40, 8960, 8, 128, true},
                             {5, 80, 8, 16, true},
                             {64, 1536, 8, 1536, true},
                             {31, 320, 8, 96, true},
                             {48, 1536, 3, 128, true},
                             {33, 200, 3, 100, false},
                             {64, 1536, 2, 128, true},
                             {20, 72, 2, 24, true},
                             {16, 16, 16, 0, false},
                             {50, 1536, 16, 0, false},
                             {7, 8960, 16, 0, false},
                             {100, 200, 16, 0, false},
                             {9, 100, 16, 0, false},
                             {20, 6144, 4, 128, true},
                             {20, 3072, 8, 128, false},
                             {5632, 4096, 4, 128, true},  // three of them: rows that leave little room
                             // So many outputs that blocks go from group to group.
                             {8500, 256, 4, 128, true},
                             {8500, 160, 8, 32, false},
                             {8500, 320, 16, 0, false},
                             {48, 1536, 4, 64, false, Format::kNf4},
                             {40, 8960, 4, 64, false, Format::kFp4},
                             {33, 200, 4, 8, false, Format::kNf4},
                             {20, 96, 4, 256, false, Format::kFp4},
                             {8500, 320, 4, 64, false, Format::kNf4},
                             {5632, 4096, 4, 128, false, Format::kNf4},
                             {48, 1536, 8, 64, false, Format::kFp8},
                             {40, 8960, 8, 8960, false, Format::kFp8E5m2},
                             {33, 200, 8, 40, false, Format::kFp8},
                             {256, 1536, 8, 1536, false, Format::kFp8},
                             {8500, 320, 8, 128, false, Format::kFp8E5m2}};

// A matrix as files have it, and its values.
struct Matrix {
  std::vector<uint16_t> dense;      // BF16 [out, in]
  std::vector<uint32_t> words;      // [packed_words(in, bits), out]
  std::vector<uint16_t> scales;     // F16 [groups, out]
  std::vector<float> table_scales;  // instead, with a codebook; `scales` are these rounded
  std::vector<uint8_t> zeros;       // [groups, out]
  std::vector<uint8_t> codes;       // [out, in]
  std::vector<double> values;       // [out, in]; a codebook's are BF16
  std::vector<double> exact;        // with a codebook as it is
};

int64_t groups_of(const Problem& p) { return p.bits == 16 ? 0 : (p.in + p.group_size - 1) / p.group_size; }
int64_t kept_size(const Problem& p) {
  return p.bits == 16 ? 0 : kept_group_size(p.in, p.group_size, has_codebook(p.format));
}
int64_t groups_there(const Problem& p) { return p.bits == 16 ? 0 : kept_groups(p.in, kept_size(p)); }

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
  for (int64_t i = 0; i < groups_of(p) * p.out; ++i) {
    m.table_scales.push_back(0.01f + 0.02f * std::abs(normal(random)));
    m.scales.push_back(float_to_f16(m.table_scales.back()));
    if (p.has_zeros) m.zeros.push_back(static_cast<uint8_t>(random() % (1u << p.bits)));
  }
  m.codes.resize(elements);
  for (uint8_t& code : m.codes) {
    code = static_cast<uint8_t>(random() % (1u << p.bits));
    if (has_codebook(p.format) && !std::isfinite(codebook_of(p.format)[code])) code = 3;
  }
  m.words.assign(static_cast<size_t>(packed_words(p.in, p.bits) * p.out), 0);
  for (int64_t n = 0; n < p.out; ++n) {
    pack_bits(m.codes.data() + n * p.in, 1, p.in, p.bits, m.words.data() + n, p.out);
    for (int64_t k = 0; k < p.in; ++k) {
      const size_t at = static_cast<size_t>(k / p.group_size * p.out + n),
                   element = static_cast<size_t>(n * p.in + k);
      const int zero = p.has_zeros ? m.zeros[at] : 1 << (p.bits - 1);
      m.values[element] = double{f16_to_float(m.scales[at])} * (int{m.codes[element]} - zero);
      if (has_codebook(p.format)) {
        const float value = codebook_of(p.format)[m.codes[element]];
        m.values[element] = double{f16_to_float(m.scales[at])} * bf16_to_float(float_to_bf16(value));
        m.exact.push_back(double{f16_to_float(m.scales[at])} * value);
      }
    }
  }
  if (!has_codebook(p.format)) m.exact = m.values;
  return m;
}

// A matrix on the GPU as the kernels read it.
struct Packed {
  OnGpu<uint16_t> dense, scales, zeros;
  OnGpu<uint8_t> fragments;
  bool has_zeros;

  static size_t group_places(const Problem& p) {
    return static_cast<size_t>(tile_count(p.out) * kTileOutputs * groups_there(p));
  }
  Packed(const Problem& p, const Matrix& m)
      : dense(m.dense),
        scales(std::vector<uint16_t>(group_places(p), 0xffff)),
        zeros(std::vector<uint16_t>(group_places(p), 0xffff)),
        fragments(std::vector<uint8_t>(
            p.bits == 16 ? 0 : static_cast<size_t>(fragment_bytes(p.out, p.in, fragment_bits(p.bits))),
            0xff)),
        has_zeros(p.has_zeros) {
    if (p.bits == 16) return;
    const OnGpu<uint32_t> words(m.words);
    const OnGpu<uint16_t> given_scales(m.scales);
    const OnGpu<float> table_scales(m.table_scales);
    const OnGpu<uint8_t> given_zeros(m.zeros);
    gpu_pack_fragments(
        {.out = p.out,
         .in = p.in,
         .group_size = p.group_size,
         .kept_group_size = kept_size(p),
         .bits = p.bits,
         .has_table = has_codebook(p.format),
         .has_wide_scales = has_codebook(p.format),
         .scale_factor = kept_scale_factor(p.format),
         .words = words.get(),
         .scales = has_codebook(p.format) ? static_cast<const void*>(table_scales.get()) : given_scales.get(),
         .zero_points = has_zeros ? given_zeros.get() : nullptr,
         .fragments = fragments.get(),
         .fragment_scales = scales.get(),
         .fragment_zero_points = zeros.get()},
        nullptr);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
  GpuMatrix matrix(const Problem& p) const {
    GpuMatrix matrix;
    matrix.out = p.out;
    matrix.weight = p.bits == 16 ? static_cast<const void*>(dense.get()) : fragments.get();
    matrix.scales = scales.get();
    matrix.zero_points = has_zeros ? zeros.get() : nullptr;
    return matrix;
  }
};

TEST(Fragments, EveryElementHasAPlaceOfItsOwn) {
  for (const Problem& p : kProblems) {
    if (p.bits == 16) continue;
    const int bits = fragment_bits(p.bits);
    std::vector<int> uses(static_cast<size_t>(fragment_bytes(p.out, p.in, bits) * 2), 0);  // of half bytes
    for (int64_t n = 0; n < p.out; ++n) {
      for (int64_t k = 0; k < p.in; ++k) {
        const FragmentPlace place = fragment_place(n, k, p.in, bits);
        for (int digit = 0; digit < bits / 4; ++digit) {
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
    EXPECT_EQ(used, p.out * p.in * bits / 4);
  }
}

TEST(DecodeArgs, RowsOfACallAreItsPointersMovedOn) {
  std::vector<uint16_t> x(80), halves(50);
  std::vector<float> hidden(80), factors(10), added(70);
  GpuDecodeArgs args{.rows = 10, .in = 8, .x = x.data(), .hidden = hidden.data(), .matrices = 3};
  args.matrix[0].out = 5, args.matrix[0].y = Activations(halves.data(), DType::kBF16);
  args.matrix[1].out = 7, args.matrix[1].add_to = added.data();
  GpuDecodeArgs some = rows_of(args, 3, 4);
  EXPECT_EQ(some.rows, 4);
  EXPECT_EQ(some.x, x.data() + 3 * 8);
  EXPECT_EQ(some.hidden, hidden.data() + 3 * 8);
  EXPECT_EQ(some.factors, nullptr);
  EXPECT_EQ(some.matrix[0].y.data, halves.data() + 3 * 5);
  EXPECT_EQ(some.matrix[0].add_to, nullptr);
  EXPECT_EQ(some.matrix[1].add_to, added.data() + 3 * 7);
  EXPECT_EQ(some.matrix[1].y.data, nullptr);
  EXPECT_EQ(some.matrix[2].y.data, nullptr);
  args.factors = factors.data();
  args.hidden = nullptr;
  some = rows_of(args, 9, 1);
  EXPECT_EQ(some.factors, factors.data() + 9);
  EXPECT_EQ(some.hidden, nullptr);
}

TEST(GpuMatmulDecode, PacksWhereFragmentPlaceSays) {
  LOWBIT_SKIP_WITHOUT_GPU();
  std::mt19937 random(1);
  for (const Problem& p : kProblems) {
    if (p.bits == 16) continue;
    const Matrix m = make_matrix(p, random);
    const Packed there(p, m);
    const int bits = fragment_bits(p.bits);
    const std::vector<uint8_t> packed = there.fragments.read();
    const std::vector<uint16_t> scales = there.scales.read(), zeros = there.zeros.read();
    for (int64_t n = 0; n < p.out; ++n) {
      for (int64_t k = 0; k < p.in; ++k) {
        const FragmentPlace place = fragment_place(n, k, p.in, bits);
        uint32_t word = 0;
        std::memcpy(&word, packed.data() + place.byte / 4 * 4, sizeof word);
        const uint32_t code =
            has_codebook(p.format) && bits == 4
                ? code_in_word(word, element_of_step(n, k))
                : packed[static_cast<size_t>(place.byte)] >> place.shift & ((1u << bits) - 1);
        ASSERT_EQ(code, m.codes[static_cast<size_t>(n * p.in + k)]) << p.bits << " bits " << n << " " << k;
      }
      for (int64_t group = 0; group * kept_size(p) < p.in; ++group) {
        const size_t at = static_cast<size_t>(group_place(n, group, groups_there(p))),
                     from = static_cast<size_t>(group * kept_size(p) / p.group_size * p.out + n);
        ASSERT_EQ(scales[at], float_to_f16(kept_scale_factor(p.format) * f16_to_float(m.scales[from])));
        if (p.has_zeros) {
          ASSERT_EQ(zeros[at], m.zeros[from]);
        }
      }
    }
  }
}

TEST(GpuMatmulDecode, UnpacksToTheRoundedValuesInTheColumnsOrder) {
  LOWBIT_SKIP_WITHOUT_GPU();
  std::mt19937 random(3);
  for (const Problem& p : kProblems) {
    if (p.bits == 16) continue;
    const Matrix m = make_matrix(p, random);
    const Packed there(p, m);
    std::vector<int32_t> order(static_cast<size_t>(p.in));
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
    std::shuffle(order.begin(), order.end(), random);
    const OnGpu<int32_t> order_there(order);
    for (bool is_ordered : {false, true}) {
      const OnGpu<uint16_t> to(std::vector<uint16_t>(m.values.size(), 0x7fc0));
      const GpuMatrix matrix = there.matrix(p);
      gpu_unpack_fragments(
          {.out = p.out,
           .in = p.in,
           .group_size = kept_size(p),
           .bits = p.bits,
           .codebook = has_codebook(p.format) ? codebook_of(p.format) : std::span<const float>(),
           .scale_factor = kept_scale_factor(p.format),
           .fragments = matrix.weight,
           .scales = matrix.scales,
           .zero_points = matrix.zero_points,
           .column_order = is_ordered ? order_there.get() : nullptr,
           .to = to.get()},
          nullptr);
      const std::vector<uint16_t> values = to.read();
      for (int64_t n = 0; n < p.out; ++n) {
        for (int64_t k = 0; k < p.in; ++k) {
          const int64_t column = is_ordered ? order[static_cast<size_t>(k)] : k;
          ASSERT_EQ(values[static_cast<size_t>(n * p.in + column)],
                    float_to_bf16(static_cast<float>(m.exact[static_cast<size_t>(n * p.in + k)])))
              << p.bits << " bits " << n << " " << k;
        }
      }
    }
  }
}

struct Product {
  const Problem& p;
  const Matrix& m;
  std::vector<uint16_t> x;  // BF16 [rows, in]
  std::vector<float> bias;

  double expected(int64_t row, int64_t n, double& magnitude) const {
    double sum = bias[static_cast<size_t>(n)];
    magnitude = std::abs(sum);
    for (int64_t k = 0; k < p.in; ++k) {
      const double term = m.values[static_cast<size_t>(n * p.in + k)] *
                          double{bf16_to_float(x[static_cast<size_t>(row * p.in + k)])};
      sum += term;
      magnitude += std::abs(term);
    }
    return sum;
  }
};

// The kernel takes off the sums what it adds to every code of 4 bits (up to 143, in F32): more than rounding,
// but 100 times less than what BF16 does to x.
double tolerance(int bits) { return bits <= 4 ? 4e-5 : 1e-5; }

TEST(GpuMatmulDecode, AgreesWithTheExactProductAndIsTheSameInAnyBatch) {
  LOWBIT_SKIP_WITHOUT_GPU();
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (const Problem& p : kProblems) {
    const Matrix m = make_matrix(p, random);
    const Packed there(p, m);
    constexpr int64_t kRows = kDecodeRows;
    Product product{p, m, {}, {}};
    for (int64_t i = 0; i < kRows * p.in; ++i) product.x.push_back(float_to_bf16(normal(random)));
    for (int64_t i = 0; i < p.out; ++i) product.bias.push_back(normal(random));
    std::vector<float> before(static_cast<size_t>(kRows * p.out));
    for (float& value : before) value = normal(random);
    const OnGpu<uint16_t> x_there(product.x);
    const OnGpu<float> bias_there(product.bias);

    std::vector<float> whole;
    for (int64_t rows : {kRows, int64_t{1}, int64_t{3}, int64_t{8}, int64_t{13}, int64_t{20}}) {
      const OnGpu<float> sums(before);
      const OnGpu<float> floats_there(std::vector<float>(before.size()));
      const OnGpu<uint16_t> halves_there(std::vector<uint16_t>(before.size()));
      GpuDecodeArgs args{.rows = rows,
                         .in = p.in,
                         .bits = p.bits,
                         .group_size = kept_size(p),
                         .has_table = has_codebook(p.format),
                         .table = code_table(p.format),
                         .x = x_there.get(),
                         .matrices = 3};
      for (GpuMatrix& matrix : args.matrix) {
        matrix = there.matrix(p);
        matrix.bias = bias_there.get();
      }
      args.matrix[0].y = Activations(floats_there.get());
      args.matrix[1].add_to = sums.get();
      args.matrix[2].y = Activations(halves_there.get(), DType::kBF16);
      (fits_gpu_decode(p.in, p.bits, kept_size(p)) ? gpu_matmul_decode : gpu_matmul_plain)(args, nullptr);
      const std::vector<float> y = floats_there.read(), added = sums.read();
      const std::vector<uint16_t> rounded = halves_there.read();
      if (rows == kRows) whole = y;
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t n = 0; n < p.out; ++n) {
          const size_t at = static_cast<size_t>(row * p.out + n);
          if (rows == kRows) {
            double magnitude = 0;
            const double expected = product.expected(row, n, magnitude);
            ASSERT_NEAR(y[at], expected, tolerance(p.bits) * magnitude)
                << p.bits << " bits, " << p.in << ", " << row << " " << n;
          }
          ASSERT_EQ(y[at], whole[at]) << p.bits << " bits, " << p.in << ": alone and in a batch of " << rows;
          ASSERT_EQ(added[at], before[at] + y[at]);
          ASSERT_EQ(rounded[at], float_to_bf16(y[at]));
        }
      }
    }
  }
}

bool has_many_outputs(const Problem& p) { return p.out > 1000; }

// What the kernel does to x and to two products: norm, order of columns, SwiGLU.
void norm_gather_and_gate(bool (*is_meant)(const Problem&)) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  for (const Problem& p : kProblems) {
    if (!is_meant(p) || !fits_gpu_decode(p.in, p.bits, kept_size(p))) continue;
    const Matrix gate = make_matrix(p, random), up = make_matrix(p, random);
    const Packed gate_there(p, gate), up_there(p, up);
    std::vector<int32_t> order(static_cast<size_t>(p.in));
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
    for (int64_t rows : {1, 3, 7, 8, 12, 32}) {
      const bool is_ordered = p.bits != 16 && rows != 3 && rows != 8;
      std::iota(order.begin(), order.end(), 0);
      if (is_ordered) std::shuffle(order.begin(), order.end(), random);
      const int64_t tiles = tile_count(p.out);
      const bool prepares = prepares_in_decode(rows, p.in, tiles, p.bits, kept_size(p)) &&
                            prepares_in_decode(rows, p.in, 2 * tiles, p.bits, kept_size(p));
      std::vector<float> hidden, norm;
      for (int64_t i = 0; i < rows * p.in; ++i) hidden.push_back(3 * normal(random));
      for (int64_t i = 0; i < p.in; ++i) norm.push_back(normal(random));
      Product product{p, gate, std::vector<uint16_t>(hidden.size()),
                      std::vector<float>(static_cast<size_t>(p.out))};
      std::vector<double> factors;
      for (int64_t row = 0; row < rows; ++row) {
        double squares = 0;
        const float* const from = hidden.data() + row * p.in;
        for (int64_t k = 0; k < p.in; ++k) squares += double{from[k]} * from[k];
        factors.push_back(1 / std::sqrt(squares / static_cast<double>(p.in) + 1e-6));
        for (int64_t k = 0; k < p.in; ++k) {
          const size_t column = static_cast<size_t>(order[static_cast<size_t>(k)]);
          product.x[static_cast<size_t>(row * p.in + k)] = float_to_bf16(from[column] * norm[column]);
        }
      }
      const OnGpu<float> hidden_there(hidden), norm_there(norm);
      const OnGpu<int32_t> order_there(order);
      const OnGpu<float> y(std::vector<float>(static_cast<size_t>(rows * p.out))), gated(y.read());
      GpuDecodeArgs args{.rows = rows,
                         .in = p.in,
                         .bits = p.bits,
                         .group_size = kept_size(p),
                         .has_table = has_codebook(p.format),
                         .table = code_table(p.format),
                         .column_order = is_ordered ? order_there.get() : nullptr,
                         .hidden = hidden_there.get(),
                         .norm_weight = norm_there.get(),
                         .epsilon = 1e-6f,
                         .matrices = 1};
      const OnGpu<uint16_t> normed(std::vector<uint16_t>(hidden.size()));
      const OnGpu<float> row_factors(std::vector<float>(static_cast<size_t>(rows)));
      if (!prepares) {
        gpu_norm_rows({.x = args.hidden,
                       .weight = args.norm_weight,
                       .order = args.column_order,
                       .rows = rows,
                       .width = p.in,
                       .epsilon = args.epsilon,
                       .to = normed.get(),
                       .factors = row_factors.get()},
                      nullptr);
        args.x = normed.get();
        args.factors = row_factors.get();
        args.hidden = args.norm_weight = nullptr;
        args.column_order = nullptr;
      }
      args.matrix[0] = gate_there.matrix(p);
      args.matrix[0].y = Activations(y.get());
      gpu_matmul_decode(args, nullptr);
      if (rows > gated_decode_rows(p.in, 2 * tiles, p.bits, kept_size(p))) continue;
      args.swiglu = true;
      args.matrices = 2;
      args.matrix[0].y = Activations(gated.get());
      args.matrix[1] = up_there.matrix(p);
      gpu_matmul_decode(args, nullptr);
      const std::vector<float> values = y.read(), products = gated.read();
      const Product second{p, up, product.x, product.bias};
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t n = 0; n < p.out; ++n) {
          const size_t at = static_cast<size_t>(row * p.out + n);
          double magnitude = 0, up_magnitude = 0;
          const double factor = factors[static_cast<size_t>(row)];
          const double a = factor * product.expected(row, n, magnitude),
                       b = factor * second.expected(row, n, up_magnitude);
          magnitude *= factor, up_magnitude *= factor;
          ASSERT_NEAR(values[at], a, tolerance(p.bits) * magnitude + 1e-6 * std::abs(a))
              << p.bits << " bits, " << p.out << " x " << p.in << ", row " << row << " of " << rows
              << ", output " << n;
          const double silu = a / (1 + std::exp(-a));
          ASSERT_NEAR(products[at], silu * b,
                      0.01 * (std::abs(silu) + 0.1 * magnitude) * (std::abs(b) + 0.1 * up_magnitude))
              << p.bits << " bits, " << p.in;
        }
      }
    }
  }
}
TEST(GpuMatmulDecode, NormsGathersAndGates) {
  LOWBIT_SKIP_WITHOUT_GPU();
  norm_gather_and_gate([](const Problem& p) { return !has_many_outputs(p); });
}
TEST(GpuMatmulDecode, NormsGathersAndGatesManyOutputs) {
  LOWBIT_SKIP_WITHOUT_GPU();
  norm_gather_and_gate(has_many_outputs);
}

// Where GpuKeptRows has input k of a row.
size_t kept_place(int kept, int64_t in, int64_t row, int64_t k) {
  if (kept == 8) return static_cast<size_t>(row * in + k);
  const int64_t block = k / 32, c = k % 32 / 8, piece = k % 8 / 2;
  return static_cast<size_t>(((block * 4 + piece) * kept + row) * 8 + c * 2 + k % 2);
}
float squares_of_eight(const float* x) {
  const auto of_four = [](const float* four) {
    return std::fma(four[3], four[3],
                    std::fma(four[2], four[2], std::fma(four[1], four[1], four[0] * four[0])));
  };
  return of_four(x) + of_four(x + 4);
}

// A row's way through three products of a layer: what is added to hidden, gate and up of its norm, and what
// reads those; alone, and in a batch whose products leave their outputs to the next one.
TEST(GpuMatmulDecode, KeptRowsGiveTheBytesOfARowAlone) {
  LOWBIT_SKIP_WITHOUT_GPU();
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  constexpr int64_t kWidth = 256, kCarry = 384;
  if (!keeps_rows(8, kWidth, tile_count(kWidth), 4, 128))
    GTEST_SKIP() << "this GPU has no kernel that keeps rows";
  for (auto [bits, group_size, format] : {std::tuple{4, 128, Format::kAffine},
                                          {4, 32, Format::kAffine},
                                          {4, 64, Format::kNf4},
                                          {8, 128, Format::kAffine},
                                          {16, 0, Format::kAffine}}) {
    for (int64_t inner : {640, 8576}) {  // few outputs, many
      const auto problem = [&](int64_t out, int64_t in) {
        return Problem{out, in, bits, group_size, bits != 16 && !has_codebook(format), format};
      };
      const Problem o_shape = problem(kWidth, kCarry), gate_shape = problem(inner, kWidth),
                    down_shape = problem(kWidth, inner);
      const Packed o(o_shape, make_matrix(o_shape, random)),
          gate(gate_shape, make_matrix(gate_shape, random)), up(gate_shape, make_matrix(gate_shape, random)),
          down(down_shape, make_matrix(down_shape, random));
      const std::vector<float> bias_here = [&] {
        std::vector<float> values(static_cast<size_t>(inner));
        for (float& value : values) value = normal(random);
        return values;
      }();
      const OnGpu<float> bias(bias_here);
      std::vector<float> norm_here;
      for (int64_t i = 0; i < kWidth; ++i) norm_here.push_back(1 + 0.1f * normal(random));
      const OnGpu<float> norm(norm_here);
      for (int64_t rows : {2, 8, 13, 20, 32}) {
        if (!keeps_rows(rows, kWidth, 2 * tile_count(inner), bits, group_size) ||
            !keeps_rows(rows, inner, tile_count(kWidth), bits, group_size) ||
            !keeps_rows(rows, kCarry, tile_count(kWidth), bits, group_size))
          continue;
        std::vector<uint16_t> carry_here;
        for (int64_t i = 0; i < rows * kCarry; ++i) carry_here.push_back(float_to_bf16(normal(random)));
        std::vector<float> hidden_here;
        for (int64_t i = 0; i < rows * kWidth; ++i) hidden_here.push_back(3 * normal(random));
        const OnGpu<uint16_t> carry(carry_here);

        struct Outputs {
          std::vector<float> hidden, end;
          std::vector<uint16_t> gated;
        };
        const int kept = kept_rows(rows);
        const OnGpu<uint16_t> kept_x(std::vector<uint16_t>(static_cast<size_t>(kept * kWidth))),
            kept_inner(std::vector<uint16_t>(static_cast<size_t>(kept * inner)));
        const OnGpu<float> squares(std::vector<float>(static_cast<size_t>(rows * kWidth / 8)));
        const auto run = [&](int64_t first, int64_t count, bool keeps) {
          const std::vector<float> here(hidden_here.begin() + first * kWidth,
                                        hidden_here.begin() + (first + count) * kWidth);
          const OnGpu<float> hidden(here), end(std::vector<float>(here.size()));
          const OnGpu<uint16_t> gated(std::vector<uint16_t>(static_cast<size_t>(count * inner)));
          GpuDecodeArgs args{.rows = count,
                             .bits = bits,
                             .group_size = group_size,
                             .has_table = has_codebook(format),
                             .table = code_table(format),
                             .matrices = 1};
          args.in = kCarry;
          args.x = carry.get() + first * kCarry;
          args.matrix[0] = o.matrix(o_shape);
          args.matrix[0].bias = bias.get();
          args.matrix[0].add_to = hidden.get();
          const GpuKeptRows hidden_kept{kept_x.get(), norm.get(), squares.get()};
          const GpuKeptRows inner_kept{.x = kept_inner.get()};
          if (keeps) args.matrix[0].next = hidden_kept;
          gpu_matmul_decode(args, nullptr);

          args.in = kWidth;
          args.matrices = 2;
          args.swiglu = true;
          args.epsilon = 1e-5f;
          args.x = nullptr;
          args.matrix[0] = gate.matrix(gate_shape), args.matrix[1] = up.matrix(gate_shape);
          args.matrix[0].bias = bias.get();
          args.matrix[0].y = Activations(gated.get(), DType::kBF16);
          if (keeps) {
            args.kept = hidden_kept;
            args.matrix[0].next = inner_kept;
          } else {
            args.hidden = hidden.get();
            args.norm_weight = norm.get();
          }
          gpu_matmul_decode(args, nullptr);

          args.in = inner;
          args.matrices = 1;
          args.swiglu = false;
          args.hidden = args.norm_weight = nullptr;
          args.kept = keeps ? inner_kept : GpuKeptRows{};
          args.x = keeps ? nullptr : gated.get();
          args.matrix[0] = down.matrix(down_shape);
          args.matrix[0].y = Activations(end.get());
          gpu_matmul_decode(args, nullptr);
          return Outputs{hidden.read(), end.read(), gated.read()};
        };
        const Outputs together = run(0, rows, true);
        const std::vector<uint16_t> x_read = kept_x.read(), inner_read = kept_inner.read();
        const std::vector<float> squares_read = squares.read();
        for (int64_t row = 0; row < rows; ++row) {
          const Outputs alone = run(row, 1, false);
          for (int64_t k = 0; k < kWidth; ++k) {
            const size_t at = static_cast<size_t>(row * kWidth + k);
            const float value = alone.hidden[static_cast<size_t>(k)];
            ASSERT_EQ(together.hidden[at], value)
                << bits << " bits, groups of " << group_size << ", row " << row << " of " << rows
                << ", output " << k << ", inner " << inner;
            ASSERT_EQ(x_read[kept_place(kept, kWidth, row, k)],
                      float_to_bf16(value * norm_here[static_cast<size_t>(k)]))
                << bits << " bits, row " << row << " of " << rows << ", input " << k;
            if (k % 8 == 0) {
              ASSERT_EQ(squares_read[at / 8], squares_of_eight(&alone.hidden[static_cast<size_t>(k)]));
            }
          }
          for (int64_t k = 0; k < inner; ++k)
            ASSERT_EQ(inner_read[kept_place(kept, inner, row, k)], alone.gated[static_cast<size_t>(k)])
                << bits << " bits, row " << row << " of " << rows << ", input " << k << " of " << inner;
          for (int64_t k = 0; k < kWidth; ++k)
            ASSERT_EQ(together.end[static_cast<size_t>(row * kWidth + k)], alone.end[static_cast<size_t>(k)])
                << bits << " bits, row " << row << " of " << rows << ", inner " << inner;
        }
      }
    }
  }
}

}  // namespace
}  // namespace lowbit
