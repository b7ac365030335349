// The operators of quantization on a GPU beside the reference on the CPU.
#include "format/affine.h"
#include "format/bits.h"
#include "ops/clip_search.h"
#include "ops/columns.h"
#include "ops/cuda/gpu_test_support.h"
#include "ops/fit_scales.h"
#include "ops/gemm.h"
#include "ops/gptq_block.h"
#include "ops/gram.h"
#include "ops/packed_gemm.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace lowbit {
namespace {

using GpuQuantize = testing::GpuTest;
using testing::Numbers;

size_t at(int64_t i) { return static_cast<size_t>(i); }

std::vector<float> random_codes(Numbers& numbers, int64_t count, int max_code) {
  std::vector<float> codes;
  for (int64_t i = 0; i < count; ++i) codes.push_back(static_cast<float>(numbers.between(0, max_code)));
  return codes;
}

std::vector<uint8_t> bytes_of(const std::vector<float>& values) {
  return std::vector<uint8_t>(values.begin(), values.end());
}

int64_t differences(const std::vector<float>& a, const std::vector<float>& b) {
  int64_t count = a.size() == b.size() ? 0 : -1;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    count += a[i] != b[i] && !(std::isnan(a[i]) && std::isnan(b[i]));
  return count;
}

TEST_F(GpuQuantize, BlocksHaveTheBitsOfTheReferenceAlsoInParts) {
  for (bool descends : {false, true}) {
    for (auto [columns, rows] : {std::pair<int64_t, int64_t>{1, 1},
                                 {5, 3},
                                 {128, 40},
                                 {33, 100},
                                 {64, 32},
                                 {128, 1},
                                 {200, 9},
                                 {256, 65}}) {
      for (int max_code : {3, 15, 255}) {
        SCOPED_TRACE(fmt::format("{} x {}, max code {}, {}", columns, rows, max_code, descends));
        Numbers numbers(static_cast<uint32_t>(columns + max_code));
        std::vector<float> w = numbers.normals(columns * rows), u = numbers.normals(columns * columns, 0.1f);
        for (int64_t i = 0; i < columns; ++i) u[at(i * (columns + 1))] = 1 + std::fabs(numbers.normal());
        w[0] = NAN;
        if (rows > 1) w[1] = -1e30f;
        if (rows > 2) w[2] = INFINITY;
        // Two columns share a group.
        const int64_t groups = (columns + 1) / 2;
        std::vector<float> scales, zeros = random_codes(numbers, groups * rows, max_code);
        for (int64_t i = 0; i < groups * rows; ++i) scales.push_back(0.05f + std::fabs(numbers.normal(0.2f)));
        std::vector<int32_t> group_of;
        for (int64_t i = 0; i < columns; ++i) group_of.push_back(static_cast<int32_t>(i / 2));
        std::vector<float> previous = numbers.normals(columns * rows), errors(w.size(), 0.0f);
        std::vector<uint8_t> codes(w.size(), 99);
        Tensor w_there = there(w), errors_there = there(errors), codes_there = there(codes);
        const Tensor u_there = there(u), scales_there = there(scales), zeros_there = there(zeros),
                     groups_there = there(group_of), previous_there = there(previous);
        for (int64_t part = 0; part < 3; ++part) {
          const int64_t begin = columns * part / 3, end = columns * (part + 1) / 3;
          gptq_block(cpu_,
                     {w.data(), rows, codes.data(), rows, errors.data(), rows, u.data(), columns,
                      scales.data(), zeros.data(), rows, group_of.data(), columns, begin, end, max_code,
                      descends ? previous.data() : nullptr, rows},
                     rows);
          gptq_block(
              gpu_,
              {w_there.mutable_data<float>(), rows, codes_there.mutable_data<uint8_t>(), rows,
               errors_there.mutable_data<float>(), rows, u_there.data<float>(), columns,
               scales_there.data<float>(), zeros_there.data<float>(), rows, groups_there.data<int32_t>(),
               columns, begin, end, max_code, descends ? previous_there.data<float>() : nullptr, rows},
              rows);
        }
        EXPECT_EQ(taken<uint8_t>(codes_there), codes);
        EXPECT_EQ(differences(taken<float>(w_there), w), 0);
        EXPECT_EQ(differences(taken<float>(errors_there), errors), 0);
      }
    }
  }
}

double error_of(const std::vector<float>& w, int64_t rows, int64_t row, AffineGrid grid, int max_code,
                const std::vector<float>& weights, double norm) {
  double error = 0;
  for (size_t c = 0; c < weights.size(); ++c) {
    const float value = w[c * at(rows) + at(row)];
    error +=
        double{weights[c]} *
        std::pow(std::fabs(double{value} - decode_code(nearest_code(value, grid, max_code), grid)), norm);
  }
  return error;
}

TEST_F(GpuQuantize, GridsAreThoseOfTheReference) {
  int64_t other = 0, all = 0;
  for (int bits : {2, 3, 4, 8}) {
    for (bool sym : {true, false}) {
      for (float norm : {0.0f, 2.0f, 2.4f}) {
        for (int64_t columns : {int64_t{1}, int64_t{31}, int64_t{128}, int64_t{300}}) {
          const int64_t rows = 45;
          Numbers numbers(static_cast<uint32_t>(bits * 100 + columns));
          std::vector<float> w = numbers.normals(columns * rows, 0.02f), weights;
          for (int64_t c = 0; c < columns; ++c)
            weights.push_back(c % 7 == 3 ? 0.0f : std::fabs(numbers.normal()) + 0.01f);
          for (int64_t c = 0; c < columns; ++c) {
            w[at(c * rows + 1)] = 0;                               // no range
            w[at(c * rows + 2)] *= 1e-9f;                          // below F16's range
            w[at(c * rows + 3)] = 1.5f;                            // constant
            w[at(c * rows + 5)] = std::fabs(w[at(c * rows + 5)]);  // a range that begins at zero
          }
          w[4] = 1e6f;  // above F16's range
          w[6] = NAN;
          std::vector<float> scales(at(rows)), zeros(at(rows));
          Tensor scales_there = room(DType::kF32, rows), zeros_there = room(DType::kF32, rows);
          const Tensor w_there = there(w), weights_there = there(weights);
          const int least_zero_point = sym ? 0 : 1;
          const GridProblem problem{w.data(),      rows,         columns,         rows,
                                    scales.data(), zeros.data(), least_zero_point};
          const GridProblem problem_there{w_there.data<float>(),
                                          rows,
                                          columns,
                                          rows,
                                          scales_there.mutable_data<float>(),
                                          zeros_there.mutable_data<float>(),
                                          least_zero_point};
          AffineOptions options;
          options.bits = bits, options.sym = sym;
          if (norm == 0) {
            range_grid(cpu_, problem, options);
            range_grid(gpu_, problem_there, options);
          } else {
            ClipSearchOptions search;
            search.norm = norm;
            clip_search(cpu_, problem, options, search, weights.data());
            clip_search(gpu_, problem_there, options, search, weights_there.data<float>());
          }
          const std::vector<float> got_scales = taken<float>(scales_there),
                                   got_zeros = taken<float>(zeros_there);
          for (int64_t row = 0; row < rows; ++row) {
            const AffineGrid expected{scales[at(row)], static_cast<int>(zeros[at(row)])},
                got{got_scales[at(row)], static_cast<int>(got_zeros[at(row)])};
            const bool differs = got.scale != expected.scale || got.zero_point != expected.zero_point;
            ++all;
            other += differs;
            if (!differs) continue;
            ASSERT_TRUE(norm > 0 && row != 6)
                << bits << " bits, row " << row << ", " << columns << " columns: " << got.scale << " "
                << got.zero_point << ", expected " << expected.scale << " " << expected.zero_point;
            const int max_code = (1 << bits) - 1;
            EXPECT_LE(error_of(w, rows, row, got, max_code, weights, double{norm}),
                      error_of(w, rows, row, expected, max_code, weights, double{norm}) * (1 + 1e-4) + 1e-30)
                << bits << " bits, row " << row;
          }
        }
      }
    }
  }
  EXPECT_LE(other * 100, all) << other << " of " << all << " rows chose another grid";
}

TEST_F(GpuQuantize, ColumnsAreLoadedDecodedSubtractedAndSummed) {
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kF64}) {
    const int64_t out = 70, in = 83, first = 5, rows = 61;
    Numbers numbers(7);
    const std::vector<float> values = numbers.normals(out * in);
    const Tensor weight = converted(Tensor::borrow(nullptr, values.data(), DType::kF32, {out, in}), dtype);
    std::vector<int32_t> order(at(in));
    std::iota(order.begin(), order.end(), 0);
    std::reverse(order.begin() + 3, order.end());
    std::vector<float> expected(at(in * rows));
    ASSERT_TRUE(load_columns(cpu_, weight, first, rows, order.data(), in, expected.data()));
    const Tensor weight_there = copied_to(*queue_, weight), order_there = there(order);
    Tensor w = room(DType::kF32, in * rows);
    ASSERT_TRUE(load_columns(gpu_, weight_there, first, rows, order_there.data<int32_t>(), in,
                             w.mutable_data<float>()));
    EXPECT_EQ(taken<float>(w), expected);
  }
  const std::vector<float> broken = {1, 2, NAN, 4};
  const Tensor weight = copied_to(*queue_, Tensor::borrow(nullptr, broken.data(), DType::kF32, {2, 2}));
  const Tensor order = there(std::vector<int32_t>{0, 1});
  Tensor w = room(DType::kF32, 4);
  EXPECT_FALSE(load_columns(gpu_, weight, 0, 2, order.data<int32_t>(), 2, w.mutable_data<float>()));

  const int64_t columns = 77, rows = 300, groups = 4;
  Numbers numbers(8);
  std::vector<uint8_t> codes = bytes_of(random_codes(numbers, columns * rows, 255));
  std::vector<float> scales = numbers.normals(groups * rows),
                     zeros = random_codes(numbers, groups * rows, 255);
  std::vector<int32_t> group_of;
  for (int64_t i = 0; i < columns; ++i) group_of.push_back(static_cast<int32_t>(i * 5 % groups));
  Tensor codes_there = there(codes), scales_there = there(scales);
  const Tensor zeros_there = there(zeros), groups_there = there(group_of);
  const int64_t begin = 9, count = columns - begin;
  std::vector<float> values(at(count * rows));
  decode_columns(cpu_, {codes.data(), scales.data(), zeros.data(), group_of.data(), rows}, begin, columns,
                 values.data());
  Tensor values_there = room(DType::kF32, count * rows);
  decode_columns(gpu_,
                 {codes_there.mutable_data<uint8_t>(), scales_there.mutable_data<float>(),
                  zeros_there.data<float>(), groups_there.data<int32_t>(), rows},
                 begin, columns, values_there.mutable_data<float>());
  EXPECT_EQ(taken<float>(values_there), values);

  const std::vector<float> other = numbers.normals(count * rows), weights = numbers.normals(count);
  const Tensor other_there = there(other), weights_there = there(weights);
  for (const float* weighs : {static_cast<const float*>(nullptr), weights.data()}) {
    double sum = 3;
    add_dot(cpu_, values.data(), other.data(), weighs, count, rows, &sum);
    Tensor sum_there = there(std::vector<double>{3});
    add_dot(gpu_, values_there.data<float>(), other_there.data<float>(),
            weighs ? weights_there.data<float>() : nullptr, count, rows, sum_there.mutable_data<double>());
    EXPECT_NEAR(taken<double>(sum_there)[0], sum, 1e-9 * std::abs(sum) + 1e-6);
  }
  subtract(cpu_, values.data(), other.data(), count * rows, values.data());
  subtract(gpu_, values_there.data<float>(), other_there.data<float>(), count * rows,
           values_there.mutable_data<float>());
  EXPECT_EQ(taken<float>(values_there), values);
}

TEST_F(GpuQuantize, PacksTheStreamOfEveryRow) {
  for (int bits : {2, 3, 4, 8}) {
    for (int64_t columns : {int64_t{1}, int64_t{32}, int64_t{43}, int64_t{128}, int64_t{200}}) {
      for (bool is_ordered : {false, true}) {
        const int64_t rows = 70, words = packed_words(columns, bits);
        Numbers numbers(static_cast<uint32_t>(columns));
        const std::vector<uint8_t> codes = bytes_of(random_codes(numbers, columns * rows, (1 << bits) - 1));
        std::vector<int32_t> column_of(at(columns));
        std::iota(column_of.begin(), column_of.end(), 0);
        std::reverse(column_of.begin(), column_of.end());
        std::vector<uint32_t> expected(at(words * rows));
        pack_columns(cpu_, {codes.data(), is_ordered ? column_of.data() : nullptr, columns, rows, bits,
                            expected.data(), rows});
        const Tensor codes_there = there(codes), order_there = there(column_of);
        Tensor words_there = room(DType::kU32, words * rows);
        pack_columns(gpu_, {codes_there.data<uint8_t>(), is_ordered ? order_there.data<int32_t>() : nullptr,
                            columns, rows, bits, words_there.mutable_data<uint32_t>(), rows});
        EXPECT_EQ(taken<uint32_t>(words_there), expected) << bits << " bits, " << columns << " columns";
      }
    }
  }
}

TEST_F(GpuQuantize, ScalesAreThoseOfTheReference) {
  for (auto [columns, first, last] :
       {std::array<int64_t, 3>{128, 0, 128}, {128, 32, 64}, {96, 64, 96}, {70, 0, 35}, {5, 1, 2}}) {
    SCOPED_TRACE(fmt::format("{} to {} of {}", first, last, columns));
    const int64_t rows = 75, stride = columns + 9;
    Numbers numbers(static_cast<uint32_t>(columns + first));
    // H = X^T X of some rows, so that it is positive definite.
    const std::vector<float> x = numbers.normals(300 * columns);
    std::vector<float> h(at(columns * stride));
    for (int64_t i = 0; i < columns; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        for (int64_t t = 0; t < 300; ++t)
          h[at(i * stride + j)] += x[at(t * columns + i)] * x[at(t * columns + j)];
      }
    }
    const std::vector<uint8_t> codes = bytes_of(random_codes(numbers, columns * rows, 15));
    const std::vector<float> zeros(at(rows), 8.0f);
    std::vector<float> scales, gradient = numbers.normals(columns * rows, 20),
                               values = numbers.normals(columns * rows);
    for (int64_t row = 0; row < rows; ++row)
      scales.push_back(round_scale(0.02f + 0.001f * static_cast<float>(row)));
    Tensor scales_there = there(scales), gradient_there = there(gradient), values_there = there(values);
    const Tensor h_there = there(h), codes_there = there(codes), zeros_there = there(zeros);
    const std::vector<float> before = scales;
    fit_scales(cpu_, {h.data(), stride, columns, rows, first, last, codes.data(), zeros.data(), scales.data(),
                      gradient.data(), values.data()});
    fit_scales(gpu_, {h_there.data<float>(), stride, columns, rows, first, last, codes_there.data<uint8_t>(),
                      zeros_there.data<float>(), scales_there.mutable_data<float>(),
                      gradient_there.mutable_data<float>(), values_there.mutable_data<float>()});
    const std::vector<float> got = taken<float>(scales_there), got_values = taken<float>(values_there),
                             got_gradient = taken<float>(gradient_there);
    int64_t changed = 0, other = 0;
    double largest = 0;
    for (float value : gradient) largest = std::max(largest, std::abs(double{value}));
    for (int64_t row = 0; row < rows; ++row) {
      changed += got[at(row)] != before[at(row)];
      const bool same = got[at(row)] == scales[at(row)];
      other += !same;
      EXPECT_NEAR(got[at(row)] / scales[at(row)], 1, 1e-3);  // the next number that F16 has
      for (int64_t j = 0; j < columns && same; ++j) {
        EXPECT_EQ(got_values[at(j * rows + row)], values[at(j * rows + row)]);
        EXPECT_NEAR(got_gradient[at(j * rows + row)], gradient[at(j * rows + row)], 1e-5 * largest);
      }
    }
    EXPECT_GT(changed, 0);
    EXPECT_LE(other, 2);
  }
}

TEST_F(GpuQuantize, GramAndItsInverse) {
  if (!libraries_->solver_problem().empty()) GTEST_SKIP() << libraries_->solver_problem();
  for (int64_t width : {1, 7, 64, 130, 1300}) {
    SCOPED_TRACE(width);
    const int64_t tokens = width + 64;
    Numbers numbers(static_cast<uint32_t>(width));
    std::vector<float> x = numbers.normals(tokens * width);
    std::vector<float> h(at(width * width));
    const Tensor x_there = rounded(x);
    Tensor h_there = zeros(gpu_, DType::kF32, {width, width});
    for (int part = 0; part < 2; ++part) {
      gram_accumulate(cpu_, x.data(), tokens, width, h.data());
      gram_accumulate(gpu_, {x_there.bytes(), DType::kBF16}, tokens, width, h_there.mutable_data<float>());
    }
    mirror_upper(cpu_, h.data(), width);
    mirror_upper(gpu_, h_there.mutable_data<float>(), width);
    std::vector<float> got = taken<float>(h_there);
    const double largest = *std::max_element(h.begin(), h.end());
    for (size_t i = 0; i < h.size(); ++i) ASSERT_NEAR(got[i], h[i], 1e-5 * largest);
    for (int64_t i = 0; i < width; ++i) {
      for (int64_t j = 0; j < i; ++j) ASSERT_EQ(got[at(i * width + j)], got[at(j * width + i)]);
    }
    std::vector<float> diagonal = diagonal_of(gpu_, h_there.data<float>(), width);
    for (int64_t i = 0; i < width; ++i) ASSERT_EQ(diagonal[at(i)], got[at(i * (width + 1))]);

    std::vector<int32_t> order(at(width));
    std::iota(order.begin(), order.end(), 0);
    std::reverse(order.begin(), order.end());
    for (float& value : diagonal) value += 0.05f * static_cast<float>(largest);
    std::vector<float> permuted(h.size()), u(h.size());
    const Tensor order_there = there(order), diagonal_there = there(diagonal);
    Tensor permuted_there = room(DType::kF32, width * width), u_there = room(DType::kF32, width * width);
    const int64_t cut = width / 3;
    for (auto [first, rows] : {std::pair<int64_t, int64_t>{0, cut}, {cut, width - cut}}) {
      if (rows == 0) continue;
      permute_gram(cpu_, {got.data(), order.data(), diagonal.data(), width, first, rows,
                          permuted.data() + first * width});
      permute_gram(gpu_, {h_there.data<float>(), order_there.data<int32_t>(), diagonal_there.data<float>(),
                          width, first, rows, permuted_there.mutable_data<float>() + first * width});
    }
    ASSERT_EQ(taken<float>(permuted_there), permuted);
    for (FactorPrecision precision : {FactorPrecision::kFloat, FactorPrecision::kDouble}) {
      ASSERT_TRUE(inverse_cholesky(cpu_, permuted.data(), width, FactorPrecision::kDouble, u.data()));
      ASSERT_TRUE(inverse_cholesky(gpu_, permuted_there.data<float>(), width, precision,
                                   u_there.mutable_data<float>()));
      const std::vector<float> got_u = taken<float>(u_there);
      const double most = *std::max_element(u.begin(), u.end());
      const double share = precision == FactorPrecision::kDouble ? 1e-6 : 1e-4;
      for (size_t i = 0; i < u.size(); ++i) ASSERT_NEAR(got_u[i], u[i], share * most);
    }
  }
  const Tensor indefinite = there(std::vector<float>{1, 2, 2, 1});
  Tensor u = room(DType::kF32, 4);
  EXPECT_FALSE(
      inverse_cholesky(gpu_, indefinite.data<float>(), 2, FactorPrecision::kFloat, u.mutable_data<float>()));
}

TEST_F(GpuQuantize, ProductsAtAnyPlace) {
  Numbers numbers(3);
  for (auto [rows, columns, depth] :
       {std::array<int64_t, 3>{1, 1, 1}, {33, 17, 5}, {200, 130, 128}, {64, 500, 31}}) {
    const int64_t a_stride = rows + 3, b_stride = columns + 1, c_stride = columns + 5, skip = 3;
    const std::vector<float> a = numbers.normals(depth * a_stride + skip),
                             b = numbers.normals(depth * b_stride + skip);
    std::vector<float> c = numbers.normals(rows * c_stride + skip);
    const Tensor a_there = there(a), b_there = there(b);
    Tensor c_there = there(c);
    auto operands = [&](const float* a, const float* b, float* c) {
      return GemmOperands{a + skip, b + skip, c + skip, a_stride, b_stride, c_stride, rows, columns, depth};
    };
    gemm_subtract(cpu_, operands(a.data(), b.data(), c.data()));
    gemm_subtract(gpu_,
                  operands(a_there.data<float>(), b_there.data<float>(), c_there.mutable_data<float>()));
    const std::vector<float> got = taken<float>(c_there);
    for (size_t i = 0; i < c.size(); ++i) ASSERT_NEAR(got[i], c[i], 1e-4) << rows << " x " << columns;
  }
}

TEST_F(GpuQuantize, ProductsWithAPackedFactor) {
  Numbers numbers(4);
  for (auto [rows, columns, depth] :
       {std::array<int64_t, 3>{1, 1, 1}, {33, 17, 5}, {200, 131, 128}, {64, 500, 31}}) {
    const int64_t stride = rows + 3, begin = depth / 3, c_stride = columns + 2;
    const std::vector<float> a = numbers.normals(depth * stride),
                             b = numbers.normals((depth - begin) * columns);
    std::vector<float> c = numbers.normals(rows * c_stride);
    const Tensor a_there = there(a), b_there = there(b);
    Tensor c_there = there(c);
    PackedFactor(cpu_, a.data(), stride, rows, depth)
        .subtract_product(cpu_, begin, depth, b.data(), columns, c.data(), c_stride, columns);
    const PackedFactor packed(gpu_, a_there.data<float>(), stride, rows, depth);
    packed.subtract_product(gpu_, begin, depth, b_there.data<float>(), columns, c_there.mutable_data<float>(),
                            c_stride, columns);
    const std::vector<float> got = taken<float>(c_there);
    // 2^-16 of each of up to 128 products.
    for (size_t i = 0; i < c.size(); ++i) ASSERT_NEAR(got[i], c[i], 2e-3) << rows << " x " << columns;
  }
}

}  // namespace
}  // namespace lowbit
