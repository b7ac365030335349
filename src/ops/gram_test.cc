#include "ops/gram.h"

#include "ops/gemm.h"
#include "ops/ops_test_support.h"
#include "ops/packed_gemm.h"

namespace lowbit {
namespace {

using testing::Bench;
using testing::Numbers;

std::vector<double> gram_of(const std::vector<float>& x, int64_t tokens, int64_t width) {
  std::vector<double> h(static_cast<size_t>(width * width));
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < width; ++i) {
      for (int64_t j = i; j < width; ++j) {
        h[static_cast<size_t>(i * width + j)] +=
            double{x[static_cast<size_t>(t * width + i)]} * double{x[static_cast<size_t>(t * width + j)]};
      }
    }
  }
  return h;
}

TEST(Gram, EveryKernelMatchesDoubleAndLeavesTheLowerTriangleAlone) {
  for (const std::string& kernel : testing::available(gram_kernels(), "gram")) {
    Bench bench(kernel);
    for (int64_t width : {1, 5, 6, 16, 17, 31, 33, 97, 130, 300}) {
      for (int64_t tokens : {1, 2, 31, 33, 513}) {
        Numbers numbers(static_cast<uint32_t>(width * 1000 + tokens));
        std::vector<float> x = numbers.normals(tokens * width + 1);
        x.erase(x.begin());
        std::vector<float> h(static_cast<size_t>(width * width), 0.0f);
        for (int64_t i = 0; i < width; ++i) {
          for (int64_t j = 0; j < i; ++j) h[static_cast<size_t>(i * width + j)] = 77;
        }
        gram_accumulate(bench.context(), x.data(), tokens, width, h.data());
        gram_accumulate(bench.context(), x.data(), tokens, width, h.data());
        std::vector<double> expected = gram_of(x, tokens, width);
        for (int64_t i = 0; i < width; ++i) {
          for (int64_t j = 0; j < width; ++j) {
            double& value = expected[static_cast<size_t>(i * width + j)];
            value = j < i ? 77 : 2 * value;
            if (j < i) {
              ASSERT_EQ(h[static_cast<size_t>(i * width + j)], 77);
            }
          }
        }
        EXPECT_LT(testing::relative_error(h, expected), kernel == "amx_bf16" ? 8e-3 : 2e-5)
            << kernel << " width " << width << " tokens " << tokens;
      }
    }
  }
}

TEST(Gram, DoesNotDependOnThreads) {
  for (const std::string& kernel : testing::available(gram_kernels(), "gram")) {
    Numbers numbers(4);
    const int64_t width = 300, tokens = 700;
    const std::vector<float> x = numbers.normals(tokens * width);
    std::vector<float> one(static_cast<size_t>(width * width)), four = one;
    Bench alone(kernel, 1), many(kernel, 4);
    gram_accumulate(alone.context(), x.data(), tokens, width, one.data());
    gram_accumulate(many.context(), x.data(), tokens, width, four.data());
    EXPECT_TRUE(testing::same_bits(one, four)) << kernel;
  }
}

TEST(Gemm, SubtractMatchesDouble) {
  for (const std::string& kernel : testing::available(gemm_kernels(), "gemm")) {
    for (const auto& [rows, columns, depth] : std::vector<std::array<int64_t, 3>>{{1, 1, 1},
                                                                                  {7, 19, 3},
                                                                                  {96, 128, 128},
                                                                                  {97, 129, 65},
                                                                                  {200, 300, 1030},
                                                                                  {5, 700, 128},
                                                                                  {6, 16, 0}}) {
      Numbers numbers(static_cast<uint32_t>(rows));
      const int64_t a_stride = rows + 3, b_stride = columns + 5, c_stride = columns + 1;
      const std::vector<float> a = numbers.normals((depth + 1) * a_stride),
                               b = numbers.normals((depth + 1) * b_stride);
      std::vector<float> c = numbers.normals(rows * c_stride), threaded = c;
      std::vector<double> expected(c.begin(), c.end());
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j) {
          for (int64_t d = 0; d < depth; ++d) {
            expected[static_cast<size_t>(i * c_stride + j)] -=
                double{a[static_cast<size_t>(d * a_stride + i)]} *
                double{b[static_cast<size_t>(d * b_stride + j)]};
          }
        }
      }
      Bench one(kernel, 1), three(kernel, 3);
      GemmOperands operands{a.data(), b.data(), c.data(), a_stride, b_stride, c_stride, rows, columns, depth};
      gemm_subtract(one.context(), operands);
      operands.c = threaded.data();
      gemm_subtract(three.context(), operands);
      EXPECT_LT(testing::relative_error(c, expected), 1e-5)
          << kernel << " " << rows << "x" << columns << "x" << depth;
      EXPECT_TRUE(testing::same_bits(c, threaded)) << kernel;
    }
  }
}

TEST(PackedGemm, RangesOfTheDepthMatchDouble) {
  constexpr int64_t kRows = 101, kDepth = 700, kColumns = 45, kStride = kRows + 2;
  for (const std::string& kernel : testing::available(packed_gemm_kernels(), "packed_gemm")) {
    Numbers numbers(5);
    const std::vector<float> a = numbers.normals(kDepth * kStride), b = numbers.normals(kDepth * kColumns);
    Bench one(kernel, 1), three(kernel, 3);
    const PackedFactor factor(three.context(), a.data(), kStride, kRows, kDepth);
    for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{
             {0, 128}, {64, 192}, {7, 40}, {0, 700}, {33, 699}, {5, 5}}) {
      std::vector<float> c = numbers.normals(kRows * kColumns), threaded = c, cut = c;
      std::vector<double> expected(c.begin(), c.end());
      for (int64_t i = 0; i < kRows; ++i) {
        for (int64_t j = 0; j < kColumns; ++j) {
          for (int64_t d = begin; d < end; ++d) {
            expected[static_cast<size_t>(i * kColumns + j)] -=
                double{a[static_cast<size_t>(d * kStride + i)]} *
                double{b[static_cast<size_t>((d - begin) * kColumns + j)]};
          }
        }
      }
      factor.subtract_product(one.context(), begin, end, b.data(), kColumns, c.data(), kColumns, kColumns);
      factor.subtract_product(three.context(), begin, end, b.data(), kColumns, threaded.data(), kColumns,
                              kColumns);
      factor.subtract_product(one.context(), begin, end, b.data(), kColumns, cut.data(), kColumns, 7);
      factor.subtract_product(one.context(), begin, end, b.data() + 7, kColumns, cut.data() + 7, kColumns,
                              kColumns - 7);
      EXPECT_LT(testing::relative_error(c, expected), 3e-5) << kernel << " " << begin << " " << end;
      EXPECT_TRUE(testing::same_bits(c, threaded)) << kernel;
      EXPECT_TRUE(testing::same_bits(c, cut)) << kernel;
    }
  }
}

// A covariance of correlated columns, damped like GPTQ's.
std::vector<float> covariance(int64_t width, uint32_t seed) {
  Numbers numbers(seed);
  const int64_t tokens = 2 * width;
  std::vector<float> x = numbers.normals(tokens * width);
  for (int64_t t = 0; t < tokens; ++t) {
    const float shared = numbers.normal(2);
    for (int64_t i = 0; i < width; ++i) x[static_cast<size_t>(t * width + i)] += shared;
  }
  Bench bench;
  std::vector<float> h(static_cast<size_t>(width * width));
  gram_accumulate(bench.context(), x.data(), tokens, width, h.data());
  double mean = 0;
  for (int64_t i = 0; i < width; ++i)
    mean += double{h[static_cast<size_t>(i * (width + 1))]} / static_cast<double>(width);
  for (int64_t i = 0; i < width; ++i)
    h[static_cast<size_t>(i * (width + 1))] += static_cast<float>(0.01 * mean);
  return h;
}

// max |U^T U H - I|
double residual(const std::vector<float>& u, const std::vector<float>& h, int64_t n) {
  const auto at = [n](int64_t i, int64_t j) { return static_cast<size_t>(i * n + j); };
  double worst = 0;
  std::vector<double> uh(static_cast<size_t>(n * n));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = i; k < n; ++k) {
      const double factor = double{u[at(i, k)]};
      for (int64_t j = 0; j < n; ++j) uh[at(i, j)] += factor * double{h[k <= j ? at(k, j) : at(j, k)]};
    }
  }
  std::vector<double> row(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    std::fill(row.begin(), row.end(), 0.0);
    for (int64_t k = 0; k <= i; ++k) {
      for (int64_t j = 0; j < n; ++j) row[static_cast<size_t>(j)] += double{u[at(k, i)]} * uh[at(k, j)];
    }
    row[static_cast<size_t>(i)] -= 1;
    for (double value : row) worst = std::fabs(value) <= worst ? worst : std::fabs(value);
  }
  return worst;
}

TEST(InverseCholesky, FactorsTheInverse) {
  for (const std::string& kernel : testing::available(gemm_kernels(), "gemm")) {
    for (int64_t width : {1, 2, 7, 95, 96, 97, 200, 321}) {
      const std::vector<float> h = covariance(width, static_cast<uint32_t>(width));
      for (FactorPrecision precision : {FactorPrecision::kFloat, FactorPrecision::kDouble}) {
        Bench one(kernel, 1), three(kernel, 3);
        std::vector<float> u(h.size(), NAN), in_place = h;
        ASSERT_TRUE(inverse_cholesky(one.context(), h.data(), width, precision, u.data()));
        ASSERT_TRUE(inverse_cholesky(three.context(), in_place.data(), width, precision, in_place.data()));
        EXPECT_TRUE(testing::same_bits(u, in_place)) << kernel << " " << width;
        EXPECT_LT(residual(u, h, width), precision == FactorPrecision::kFloat ? 3e-3 : 3e-5)
            << kernel << " " << width;
        for (int64_t i = 0; i < width; ++i) {
          EXPECT_GT(u[static_cast<size_t>(i * (width + 1))], 0);
          for (int64_t j = 0; j < i; ++j) ASSERT_EQ(u[static_cast<size_t>(i * width + j)], 0);
        }
      }
    }
  }
}

TEST(InverseCholesky, SaysWhenTheMatrixIsNotPositiveDefinite) {
  for (int64_t width : {3, 200}) {
    for (FactorPrecision precision : {FactorPrecision::kFloat, FactorPrecision::kDouble}) {
      Bench bench("", 2);
      const std::vector<float> good = covariance(width, 9);
      std::vector<float> u(good.size());
      for (float bad : {0.0f, -1.0f, NAN, INFINITY}) {
        std::vector<float> h = good;
        h[static_cast<size_t>(width + 1)] =
            bad;  // diagonal element 1, the last but one that the algorithm reaches
        EXPECT_FALSE(inverse_cholesky(bench.context(), h.data(), width, precision, u.data())) << bad;
      }
      std::vector<float> singular(good.size(), 1.0f);
      EXPECT_FALSE(inverse_cholesky(bench.context(), singular.data(), width, precision, u.data()));
    }
  }
}

}  // namespace
}  // namespace lowbit
