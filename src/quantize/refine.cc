#include "quantize/refine.h"

#include "format/affine.h"
#include "ops/gemm.h"
#include "ops/gptq_block.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace lowbit {
namespace {

constexpr int64_t kBlockColumns = 128;

class Refinement {
 public:
  Refinement(const OpContext& ops, const RefineProblem& problem)
      : ops_(ops),
        problem_(problem),
        width_(static_cast<int64_t>(problem.order->columns.size())),
        rows_(problem.rows),
        values_(Tensor::allocate(DType::kF32, {width_, rows_})),
        gradient_(Tensor::zeros(DType::kF32, {width_, rows_})),
        block_(Tensor::allocate(DType::kF32, {kBlockColumns, rows_})),
        changes_(Tensor::allocate(DType::kF32, {kBlockColumns, rows_})) {
    decode(0, width_);
    // gradient = H (W - Q)
    Tensor difference = Tensor::allocate(DType::kF32, {width_, rows_});
    for_rows(0, width_, [&](int64_t step) {
      const float* w = problem_.weights + step * rows_;
      const float* q = values(step);
      float* to = difference.mutable_data<float>() + step * rows_;
      for (int64_t row = 0; row < rows_; ++row) to[row] = q[row] - w[row];
    });
    subtract_product(0, width_, difference.data<float>());
  }

  void sweep() {
    const std::vector<int32_t>& groups = problem_.order->groups;
    for (int64_t begin = 0; begin < width_; begin += kBlockColumns) {
      const int64_t end = std::min(begin + kBlockColumns, width_);
      if (problem_.order->groups_are_runs) {
        for (int64_t step = begin; step < end; ++step) {
          const bool is_first =
              step == 0 || groups[static_cast<size_t>(step)] != groups[static_cast<size_t>(step) - 1];
          if (is_first) fit_scales(step);
        }
      }
      descend(begin, end);
    }
  }

 private:
  float* values(int64_t step) { return values_.mutable_data<float>() + step * rows_; }
  float* gradient(int64_t step) { return gradient_.mutable_data<float>() + step * rows_; }
  float* scales_of(int64_t step) {
    return problem_.scales + problem_.order->groups[static_cast<size_t>(step)] * rows_;
  }
  const float* zero_points_of(int64_t step) const {
    return problem_.zero_points + problem_.order->groups[static_cast<size_t>(step)] * rows_;
  }

  template <class Body>
  void for_rows(int64_t begin, int64_t end, const Body& body) {
    ops_.threads->parallel_for(end - begin, 8, [&](int64_t first, int64_t last, int) {
      for (int64_t i = first; i < last; ++i) body(begin + i);
    });
  }

  void decode(int64_t begin, int64_t end) {
    for_rows(begin, end, [&](int64_t step) {
      const uint8_t* codes = problem_.codes + step * rows_;
      const float *scales = scales_of(step), *zero_points = zero_points_of(step);
      float* to = values(step);
      for (int64_t row = 0; row < rows_; ++row)
        to[row] = scales[row] * (static_cast<float>(codes[row]) - zero_points[row]);
    });
  }

  // gradient -= H[:, begin..end) change
  void subtract_product(int64_t begin, int64_t end, const float* change) {
    gemm_subtract(ops_, {.a = problem_.hessian + begin,
                         .b = change,
                         .c = gradient(0),
                         .a_stride = width_,
                         .b_stride = rows_,
                         .c_stride = rows_,
                         .rows = width_,
                         .columns = rows_,
                         .depth = end - begin});
  }

  // One pass over the codes of a block.
  void descend(int64_t begin, int64_t end) {
    const int64_t columns = end - begin;
    std::memcpy(block_.mutable_bytes(), gradient(begin),
                static_cast<size_t>(columns * rows_) * sizeof(float));
    const float* scale_of[kBlockColumns];
    const float* zero_point_of[kBlockColumns];
    for (int64_t i = 0; i < columns; ++i) {
      scale_of[i] = scales_of(begin + i);
      zero_point_of[i] = zero_points_of(begin + i);
    }
    const GptqBlockArgs args{block_.mutable_data<float>(),
                             rows_,
                             problem_.codes + begin * rows_,
                             rows_,
                             changes_.mutable_data<float>(),
                             rows_,
                             problem_.hessian + begin * width_ + begin,
                             width_,
                             scale_of,
                             zero_point_of,
                             columns,
                             0,
                             columns,
                             problem_.max_code,
                             values(begin),
                             rows_};
    gptq_block(ops_, args, rows_);
    subtract_product(begin, end, changes_.data<float>());
    decode(begin, end);
  }

  // The least-squares scale of the group that begins at `first`, for its present codes c:
  // scale += c^T gradient / c^T H c, rounded to what a file holds. Groups longer than a block keep theirs.
  void fit_scales(int64_t first) {
    const std::vector<int32_t>& groups = problem_.order->groups;
    int64_t last = first;
    while (last < width_ && groups[static_cast<size_t>(last)] == groups[static_cast<size_t>(first)]) ++last;
    const int64_t columns = last - first;
    if (columns > kBlockColumns) return;
    // block = -H c
    float* product = block_.mutable_data<float>();
    float* levels = changes_.mutable_data<float>();
    std::fill_n(product, columns * rows_, 0.0f);
    for_rows(0, columns, [&](int64_t i) {
      const uint8_t* codes = problem_.codes + (first + i) * rows_;
      const float* zero_points = zero_points_of(first + i);
      for (int64_t row = 0; row < rows_; ++row)
        levels[i * rows_ + row] = static_cast<float>(codes[row]) - zero_points[row];
    });
    gemm_subtract(ops_, {.a = problem_.hessian + first * width_ + first,
                         .b = levels,
                         .c = product,
                         .a_stride = width_,
                         .b_stride = rows_,
                         .c_stride = rows_,
                         .rows = columns,
                         .columns = rows_,
                         .depth = columns});
    float* scales = scales_of(first);
    ops_.threads->parallel_for(rows_, 256, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        double slope = 0, curvature = 0;
        for (int64_t i = 0; i < columns; ++i) {
          slope += double{levels[i * rows_ + row]} * gradient(first + i)[row];
          curvature -= double{levels[i * rows_ + row]} * product[i * rows_ + row];
        }
        const double better = scales[row] + slope / curvature;
        // A scale far from the present one comes from codes that say nothing about it.
        const bool is_sane = curvature > 0 && better > 0.5 * scales[row] && better < 2 * scales[row];
        const float scale = is_sane ? round_scale(static_cast<float>(better)) : scales[row];
        const float change = scale - scales[row];
        scales[row] = scale;
        for (int64_t i = 0; i < columns; ++i) levels[i * rows_ + row] *= change;
      }
    });
    subtract_product(first, last, levels);
    decode(first, last);
  }

  const OpContext& ops_;
  const RefineProblem& problem_;
  int64_t width_, rows_;
  Tensor values_, gradient_, block_, changes_;
};

}  // namespace

void refine(const OpContext& ops, const RefineProblem& problem, int sweeps) {
  Refinement refinement(ops, problem);
  for (int sweep = 0; sweep < sweeps; ++sweep) refinement.sweep();
}

Tensor damped_in_order(const Hessian& hessian, std::span<const int32_t> columns, double damp_percent) {
  const int64_t width = hessian.width();
  Tensor out = Tensor::allocate(DType::kF32, {width, width});
  const float* from = hessian.values.data<float>();
  float* to = out.mutable_data<float>();
  double mean = 0;
  for (int64_t i = 0; i < width; ++i) mean += from[i * width + i] / static_cast<double>(width);
  for (int64_t i = 0; i < width; ++i) {
    const float* row = from + columns[static_cast<size_t>(i)] * width;
    for (int64_t j = 0; j < width; ++j) to[i * width + j] = row[columns[static_cast<size_t>(j)]];
    float& pivot = to[i * width + i];
    if (pivot <= 0) pivot = static_cast<float>(mean);  // a column without input stands alone
    pivot += static_cast<float>(damp_percent * mean);
  }
  return out;
}

}  // namespace lowbit
