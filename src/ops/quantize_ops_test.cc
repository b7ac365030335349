// The ops of GPTQ's column loop: the block and the search for grids.
#include "format/affine.h"
#include "format/codebook.h"
#include "ops/clip_search.h"
#include "ops/gptq_block.h"
#include "ops/ops_test_support.h"
#include "support.h"

#include <algorithm>

namespace lowbit {
namespace {

using testing::Bench;
using testing::Numbers;

struct Block {
  int64_t columns, rows;
  int max_code = 15;
  std::vector<float> w, u, errors;
  std::vector<float> previous;       // empty: the loop of GPTQ
  std::vector<float> scales, zeros;  // a group for each column
  std::vector<int32_t> groups;
  std::vector<uint8_t> codes;
  const Levels* levels = nullptr;

  Block(int64_t columns, int64_t rows, uint32_t seed) : columns(columns), rows(rows) {
    Numbers numbers(seed);
    w = numbers.normals(columns * rows);
    u = numbers.normals(columns * columns, 0.1f);
    for (int64_t i = 0; i < columns; ++i)
      u[static_cast<size_t>(i * (columns + 1))] = 1 + std::fabs(numbers.normal());
    errors.assign(w.size(), NAN);
    codes.assign(w.size(), 99);
    for (int64_t i = 0; i < columns; ++i) {
      groups.push_back(static_cast<int32_t>(i));
      for (int64_t row = 0; row < rows; ++row) {
        scales.push_back(0.05f + std::fabs(numbers.normal(0.2f)));
        zeros.push_back(static_cast<float>(numbers.between(0, 15)));
      }
    }
  }
  // Makes it a step of coordinate descent from random codes.
  void set_previous(uint32_t seed) {
    Numbers numbers(seed);
    for (int64_t i = 0; i < columns; ++i) {
      for (int64_t row = 0; row < rows; ++row)
        previous.push_back(levels
                               ? scale(i, row) * levels->values[numbers.between(0, levels->count - 1)]
                               : decode_code(static_cast<int>(numbers.between(0, max_code)), grid(i, row)));
    }
  }
  AffineGrid grid(int64_t i, int64_t row) const {
    const size_t at = static_cast<size_t>(i * rows + row);
    return {scales[at], static_cast<int>(zeros[at])};
  }
  float scale(int64_t i, int64_t row) const { return scales[static_cast<size_t>(i * rows + row)]; }
  void run(OpContext context, int64_t begin, int64_t end) {
    gptq_block(context,
               {w.data(), rows, codes.data(), rows, errors.data(), rows, u.data(), columns, scales.data(),
                zeros.data(), rows, groups.data(), columns, begin, end, max_code,
                previous.empty() ? nullptr : previous.data(), rows, levels},
               rows);
  }
  // The same as gptq_block.h states it, one row after the other.
  void run_plainly() {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < columns; ++i) {
        const size_t at = static_cast<size_t>(i * rows + row);
        const float pivot = u[static_cast<size_t>(i * columns + i)];
        const float wanted = previous.empty() ? w[at] : previous[at] + w[at] / pivot;
        const int code = levels ? nearest_code(*levels, wanted * (1 / std::max(scale(i, row), kLeastScale)))
                                : nearest_code(wanted, grid(i, row), max_code);
        const float decoded =
            levels ? decode_code(levels->by_code, code, scale(i, row)) : decode_code(code, grid(i, row));
        codes[at] = static_cast<uint8_t>(code);
        errors[at] = previous.empty() ? (w[at] - decoded) / pivot : decoded - previous[at];
        for (int64_t j = i + 1; j < columns; ++j) {
          float& later = w[static_cast<size_t>(j * rows + row)];
          later = std::fma(-errors[at], u[static_cast<size_t>(i * columns + j)], later);
        }
      }
    }
  }
};

// Equal, also where both are NaN. Returns the first place that differs, or -1.
int64_t first_difference(const std::vector<float>& a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] != b[i] && !(std::isnan(a[i]) && std::isnan(b[i]))) return static_cast<int64_t>(i);
  }
  return a.size() == b.size() ? -1 : static_cast<int64_t>(std::min(a.size(), b.size()));
}

constexpr std::pair<int64_t, int64_t> kBlockShapes[] = {{1, 1},    {5, 3},   {128, 40}, {128, 37},
                                                        {33, 100}, {64, 16}, {128, 1},  {200, 9}};

void expect_plain_bits(bool descends) {
  for (const std::string& kernel : testing::available(gptq_block_kernels(), "gptq_block")) {
    for (const auto& [columns, rows] : kBlockShapes) {
      for (int max_code : {3, 15, 255}) {
        SCOPED_TRACE(kernel + " " + std::to_string(columns) + "x" + std::to_string(rows) + " max code " +
                     std::to_string(max_code));
        Block expected(columns, rows, 5);
        expected.max_code = max_code;
        if (descends) expected.set_previous(6);
        expected.w[0] = NAN;
        if (rows > 2) expected.w[2] = INFINITY;
        if (rows > 1) expected.w[1] = -1e30f;
        Block got(columns, rows, 5);
        got.max_code = max_code;
        got.w = expected.w;
        got.previous = expected.previous;
        expected.run_plainly();
        Bench bench(kernel, 2);
        for (int64_t part = 0; part < 3; ++part)
          got.run(bench.context(), columns * part / 3, columns * (part + 1) / 3);
        EXPECT_EQ(got.codes, expected.codes);
        EXPECT_EQ(first_difference(got.w, expected.w), -1);
        EXPECT_EQ(first_difference(got.errors, expected.errors), -1);
      }
    }
  }
}

std::vector<Levels> some_levels() {
  return {levels_of(Format::kNf4),     levels_of(Format::kFp4), levels_of(Format::kFp8),
          levels_of(Format::kFp8E5m2), log_levels({3, 2}),      log_levels({6, 1.2f})};
}

TEST(GptqBlock, EveryKernelGivesTheBitsOfThePlainLoopWithACodebook) {
  for (const std::string& kernel : testing::available(gptq_block_kernels(), "gptq_block")) {
    for (const Levels& levels : some_levels()) {
      for (const bool descends : {false, true}) {
        for (const auto& [columns, rows] : kBlockShapes) {
          SCOPED_TRACE(fmt::format("{} {} levels {}x{}", kernel, levels.count, columns, rows));
          Block expected(columns, rows, 7);
          expected.levels = &levels;
          for (size_t i = 0; i < expected.scales.size(); ++i)
            expected.scales[i] *= (i % 11 == 3 ? 0.0f : 3 / levels.largest);
          if (descends) expected.set_previous(8);
          expected.w[0] = NAN;
          if (rows > 2) expected.w[2] = INFINITY;
          if (rows > 1) expected.w[1] = -1e30f;
          Block got = expected;
          expected.run_plainly();
          Bench bench(kernel, 2);
          for (int64_t part = 0; part < 3; ++part)
            got.run(bench.context(), columns * part / 3, columns * (part + 1) / 3);
          EXPECT_EQ(got.codes, expected.codes);
          EXPECT_EQ(first_difference(got.w, expected.w), -1);
          EXPECT_EQ(first_difference(got.errors, expected.errors), -1);
        }
      }
    }
  }
}

TEST(GptqBlock, EveryKernelGivesTheBitsOfThePlainLoopAlsoInParts) { expect_plain_bits(false); }

TEST(GptqBlock, DescentGivesTheBitsOfThePlainLoopAlsoInParts) { expect_plain_bits(true); }

TEST(GptqBlock, RefusesABlockThatIsTooWide) {
  Bench bench;
  Block block(2, 2, 1);
  block.columns = kGptqBlockColumns + 1;
  testing::error_of(ErrorCode::kInvalidArgument, [&] { block.run(bench.context(), 0, 1); });
}

double error_of_grid(const std::vector<float>& w, int64_t rows, int64_t columns, int64_t row, AffineGrid grid,
                     int max_code, const std::vector<float>& weights, double norm) {
  double error = 0;
  for (int64_t c = 0; c < columns; ++c) {
    const float value = w[static_cast<size_t>(c * rows + row)];
    const double difference = double{value} - double{decode_code(nearest_code(value, grid, max_code), grid)};
    error += double{weights[static_cast<size_t>(c)]} * std::pow(std::fabs(difference), norm);
  }
  return error;
}

TEST(ClipSearch, FindsTheLeastErrorOfThePlainLoop) {
  for (const std::string& kernel : testing::available(clip_search_kernels(), "clip_search")) {
    int64_t other = 0, all = 0;
    for (int bits : {2, 3, 4, 8}) {
      for (bool sym : {true, false}) {
        for (float norm : {2.0f, 2.4f, 3.0f}) {
          const int64_t columns = bits == 3 ? 33 : 128, rows = 37;
          Numbers numbers(static_cast<uint32_t>(bits));
          std::vector<float> w = numbers.normals(columns * rows), weights;
          for (int64_t c = 0; c < columns; ++c)
            weights.push_back(c % 7 == 0 ? 0.0f : std::fabs(numbers.normal()));
          for (int64_t c = 0; c < columns; ++c) w[static_cast<size_t>(c * rows + 1)] = 0;  // no range
          for (int64_t c = 0; c < columns; ++c)
            w[static_cast<size_t>(c * rows + 2)] *= 1e-9f;  // below F16's range
          for (int64_t c = 0; c < columns; ++c) w[static_cast<size_t>(c * rows + 3)] = 1.5f;  // constant
          w[4] = 1e6f;  // above F16's range
          AffineOptions options;
          options.bits = bits, options.sym = sym;
          ClipSearchOptions search;
          search.norm = norm;
          std::vector<float> scales(static_cast<size_t>(rows)), zeros = scales;
          Bench bench(kernel, 2);
          clip_search(bench.context(), {w.data(), rows, columns, rows, scales.data(), zeros.data()}, options,
                      search, weights.data());
          const int max_code = (1 << bits) - 1;
          for (int64_t row = 0; row < rows; ++row) {
            float low = 0, high = 0;
            for (int64_t c = 0; c < columns; ++c) {
              low = std::min(low, w[static_cast<size_t>(c * rows + row)]);
              high = std::max(high, w[static_cast<size_t>(c * rows + row)]);
            }
            double least = INFINITY;
            AffineGrid best;
            for (int i = 0; i < 80; ++i) {
              const float shrink = static_cast<float>(1.0 - i * 0.01);
              const AffineGrid grid = affine_grid(low * shrink, high * shrink, options);
              const double error =
                  error_of_grid(w, rows, columns, row, grid, max_code, weights, double{norm});
              if (error < least) least = error, best = grid;
            }
            const AffineGrid got{scales[static_cast<size_t>(row)],
                                 static_cast<int>(zeros[static_cast<size_t>(row)])};
            EXPECT_LE(error_of_grid(w, rows, columns, row, got, max_code, weights, double{norm}),
                      least * (1 + 1e-4) + 1e-30)
                << kernel << " bits " << bits << " sym " << sym << " norm " << norm << " row " << row;
            ++all;
            other += got.scale != best.scale || got.zero_point != best.zero_point;
          }
        }
      }
    }
    EXPECT_LE(other * 100, all) << kernel << ": " << other << " of " << all << " rows chose another grid";
  }
}

TEST(ClipSearch, FindsTheLeastErrorOfThePlainLoopWithACodebook) {
  for (const std::string& kernel : testing::available(clip_search_kernels(), "clip_search")) {
    for (const Levels& levels : some_levels()) {
      for (const float norm : {2.0f, 2.4f}) {
        SCOPED_TRACE(fmt::format("{} {} levels norm {}", kernel, levels.count, norm));
        const int64_t columns = 64, rows = 37;
        Numbers numbers(static_cast<uint32_t>(levels.count));
        std::vector<float> w = numbers.normals(columns * rows), weights;
        for (int64_t c = 0; c < columns; ++c) {
          weights.push_back(c % 7 == 0 ? 0.0f : std::fabs(numbers.normal()));
          w[static_cast<size_t>(c * rows + 1)] = 0;
          w[static_cast<size_t>(c * rows + 2)] *= 1e-9f;
        }
        std::vector<float> scales(static_cast<size_t>(rows), NAN), plain = scales;
        Bench bench(kernel, 2);
        GridProblem problem{w.data(), rows, columns, rows, scales.data(), nullptr, 0, &levels};
        clip_search(bench.context(), problem, {}, {.norm = norm}, weights.data());
        problem.scales = plain.data();
        range_grid(bench.context(), problem, {});
        for (int64_t row = 0; row < rows; ++row) {
          float most = 0;
          for (int64_t c = 0; c < columns; ++c)
            most = std::max(most, std::fabs(w[static_cast<size_t>(c * rows + row)]));
          const float widest = most / levels.largest;
          EXPECT_EQ(plain[static_cast<size_t>(row)], widest);
          auto error_of = [&](float scale) {
            double error = 0;
            for (int64_t c = 0; c < columns; ++c) {
              const float value = w[static_cast<size_t>(c * rows + row)];
              const int code = nearest_code(levels, value * (1 / std::max(scale, kLeastScale)));
              error += double{weights[static_cast<size_t>(c)]} *
                       std::pow(std::fabs(double{value} - double{decode_code(levels.by_code, code, scale)}),
                                double{norm});
            }
            return error;
          };
          double least = INFINITY;
          for (int i = 0; i < 80; ++i)
            least = std::min(least, error_of(widest * static_cast<float>(1.0 - i * 0.01)));
          EXPECT_LE(error_of(scales[static_cast<size_t>(row)]), least * (1 + 1e-4) + 1e-30) << row;
        }
      }
    }
  }
}

TEST(ClipSearch, RangeGridIsTheAffineGridOfTheRange) {
  for (const std::string& kernel : testing::available(clip_search_kernels(), "clip_search")) {
    for (bool sym : {true, false}) {
      for (int bits : {2, 3, 4, 8}) {
        const int64_t rows = 53, columns = 19;
        Numbers numbers(8);
        std::vector<float> w = numbers.normals(columns * rows, 0.02f);
        for (int64_t c = 0; c < columns; ++c) {
          for (int64_t row = 0; row < 20; ++row) {
            float& value = w[static_cast<size_t>(c * rows + row)];
            value = row == 0   ? 0
                    : row == 1 ? std::fabs(value)
                    : row == 2 ? -std::fabs(value)
                               : std::ldexp(value, -int(row));
          }
        }
        w[0] = NAN;
        AffineOptions options;
        options.bits = bits, options.sym = sym;
        std::vector<float> scales(static_cast<size_t>(rows)), zeros = scales;
        Bench bench(kernel);
        range_grid(bench.context(), {w.data(), rows, columns, rows, scales.data(), zeros.data()}, options);
        for (int64_t row = 0; row < rows; ++row) {
          float low = 0, high = 0;
          for (int64_t c = 0; c < columns; ++c) {
            const float value = w[static_cast<size_t>(c * rows + row)];
            if (value < low) low = value;
            if (value > high) high = value;
          }
          const AffineGrid grid = affine_grid(low, high, options);
          EXPECT_EQ(scales[static_cast<size_t>(row)], grid.scale) << kernel << " row " << row;
          EXPECT_EQ(zeros[static_cast<size_t>(row)], static_cast<float>(grid.zero_point))
              << kernel << " row " << row;
        }
      }
    }
  }
}

TEST(ClipSearch, RefusesOptionsOutOfRange) {
  Bench bench;
  ClipSearchOptions search;
  search.norm = 0.5f;
  testing::error_of(ErrorCode::kInvalidArgument,
                    [&] { clip_search(bench.context(), {}, {}, search, nullptr); });
}

}  // namespace
}  // namespace lowbit
