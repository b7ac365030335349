#include "quantize/refine.h"

#include "format/affine.h"
#include "ops/gemm.h"
#include "ops/gptq_block.h"
#include "ops/parallel.h"

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
        starts_(block_starts(*problem.order, kBlockColumns, true)),
        values_(Tensor::allocate(DType::kF32, {width_, rows_})),
        gradient_(Tensor::zeros(DType::kF32, {width_, rows_})),
        block_(Tensor::allocate(DType::kF32, {kBlockColumns, rows_})),
        changes_(Tensor::allocate(DType::kF32, {kBlockColumns, rows_})),
        before_(Tensor::allocate(DType::kF32, {kBlockColumns, rows_})) {
    decode(0, width_);
    Tensor difference = Tensor::allocate(DType::kF32, {width_, rows_});
    float* to = difference.mutable_data<float>();
    for (int64_t i = 0; i < width_ * rows_; ++i) to[i] = values(0)[i] - problem_.weights[i];
    subtract_product(0, width_, to, gradient(0));  // H (W - Q)
  }

  void sweep() {
    for (size_t i = 0; i < starts_.size(); ++i) {
      refine_block(starts_[i], i + 1 < starts_.size() ? starts_[i + 1] : width_);
    }
  }

  RefineResult result() {
    RefineResult result;
    const float* w = problem_.weights;
    const float* g = gradient(0);
    const float* q = values(0);
    for (int64_t step = 0; step < width_; ++step) {
      for (int64_t i = step * rows_; i < (step + 1) * rows_; ++i) {
        const double difference = double{w[i]} - q[i];
        result.error +=
            difference * (g[i] - problem_.hessian->damping[static_cast<size_t>(step)] * difference);
      }
    }
    // The gradient is needed no more: it becomes -H W.
    std::memset(gradient_.mutable_bytes(), 0, gradient_.byte_count());
    subtract_product(0, width_, w, gradient(0));
    for (int64_t step = 0; step < width_; ++step) {
      for (int64_t i = step * rows_; i < (step + 1) * rows_; ++i)
        result.size -=
            double{w[i]} * (g[i] + double{problem_.hessian->damping[static_cast<size_t>(step)]} * w[i]);
    }
    return result;
  }

 private:
  float* values(int64_t step) { return values_.mutable_data<float>() + step * rows_; }
  float* gradient(int64_t step) { return gradient_.mutable_data<float>() + step * rows_; }
  const float* hessian() const { return problem_.hessian->values.data<float>(); }
  int32_t group_of(int64_t step) const { return problem_.order->groups[static_cast<size_t>(step)]; }
  float* scales_of(int64_t step) { return problem_.scales + group_of(step) * rows_; }
  const float* zero_points_of(int64_t step) const { return problem_.zero_points + group_of(step) * rows_; }

  void decode(int64_t begin, int64_t end) {
    for (int64_t step = begin; step < end; ++step) {
      const uint8_t* codes = problem_.codes + step * rows_;
      const float *scales = scales_of(step), *zero_points = zero_points_of(step);
      float* to = values(step);
      for (int64_t row = 0; row < rows_; ++row)
        to[row] = scales[row] * (static_cast<float>(codes[row]) - zero_points[row]);
    }
  }

  // to -= H[:, begin..end) change
  void subtract_product(int64_t begin, int64_t end, const float* change, float* to) {
    problem_.hessian->packed.subtract_product(ops_, begin, end, change, rows_, to, rows_, rows_);
  }
  // The same of the rows [to_begin, to_end) of H.
  void subtract_part(int64_t begin, int64_t end, const float* change, int64_t to_begin, int64_t to_end,
                     float* to) {
    gemm_subtract(ops_, {.a = hessian() + begin * width_ + to_begin,  // H is symmetric
                         .b = change,
                         .c = to,
                         .a_stride = width_,
                         .b_stride = rows_,
                         .c_stride = rows_,
                         .rows = to_end - to_begin,
                         .columns = rows_,
                         .depth = end - begin});
  }

  // Scales, then codes of a block. Until both are done only the block's own part of the gradient, in block_,
  // is kept up to date.
  void refine_block(int64_t begin, int64_t end) {
    const size_t bytes = static_cast<size_t>((end - begin) * rows_) * sizeof(float);
    std::memcpy(block_.mutable_bytes(), gradient(begin), bytes);
    std::memcpy(before_.mutable_bytes(), values(begin), bytes);
    for (int64_t first = begin; problem_.order->groups_are_runs && first < end;) {
      int64_t last = first + 1;
      while (last < width_ && group_of(last) == group_of(first)) ++last;
      // A group longer than a block keeps its scales.
      if (last <= end && (first == 0 || group_of(first - 1) != group_of(first)))
        fit_scales(begin, end, first, last);
      first = last;
    }
    descend(begin, end);
    float* change = before_.mutable_data<float>();
    for (int64_t i = 0; i < (end - begin) * rows_; ++i) change[i] = values(begin)[i] - change[i];
    subtract_product(begin, end, change, gradient(0));
  }

  // One pass over the codes of a block.
  void descend(int64_t begin, int64_t end) {
    const int64_t columns = end - begin;
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
                             hessian() + begin * width_ + begin,
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
    decode(begin, end);
  }

  // The least-squares scales of the group [first, last) for its present codes c:
  // scale += c^T gradient / c^T H c, rounded to what a file holds.
  void fit_scales(int64_t begin, int64_t end, int64_t first, int64_t last) {
    const int64_t columns = last - first;
    float* levels = changes_.mutable_data<float>();
    float* gradient = block_.mutable_data<float>() + (first - begin) * rows_;
    const float* zero_points = zero_points_of(first);
    for (int64_t i = 0; i < columns; ++i) {
      const uint8_t* codes = problem_.codes + (first + i) * rows_;
      for (int64_t row = 0; row < rows_; ++row)
        levels[i * rows_ + row] = static_cast<float>(codes[row]) - zero_points[row];
    }
    const OpScratch scratch(ops_, static_cast<size_t>((columns + 2) * rows_) * sizeof(float));
    float* product = scratch.as<float>();  // -H c
    float* slopes = product + columns * rows_;
    float* curvatures = slopes + rows_;
    std::fill_n(product, (columns + 2) * rows_, 0.0f);
    subtract_part(first, last, levels, first, last, product);
    for (int64_t i = 0; i < columns; ++i) {
      for (int64_t row = 0; row < rows_; ++row) {
        const int64_t at = i * rows_ + row;
        slopes[row] += levels[at] * gradient[at];
        curvatures[row] -= levels[at] * product[at];
      }
    }
    float* scales = scales_of(first);
    for (int64_t row = 0; row < rows_; ++row) {
      const float better = scales[row] + slopes[row] / curvatures[row];
      // A scale far from the present one comes from codes that say nothing about it.
      const bool is_sane = curvatures[row] > 0 && better > 0.5f * scales[row] && better < 2.0f * scales[row];
      const float scale = is_sane ? round_scale(better) : scales[row];
      slopes[row] = scale - scales[row];
      scales[row] = scale;
    }
    for (int64_t i = 0; i < columns; ++i) {
      for (int64_t row = 0; row < rows_; ++row) levels[i * rows_ + row] *= slopes[row];
    }
    subtract_part(first, last, levels, begin, end, block_.mutable_data<float>());
    decode(first, last);
  }

  const OpContext& ops_;
  const RefineProblem& problem_;
  int64_t width_, rows_;
  std::vector<int64_t> starts_;
  Tensor values_, gradient_, block_, changes_, before_;
};

}  // namespace

RefineResult refine(const OpContext& ops, const RefineProblem& problem, int sweeps) {
  Refinement refinement(ops, problem);
  for (int sweep = 0; sweep < sweeps; ++sweep) refinement.sweep();
  return refinement.result();
}

DampedHessian::DampedHessian(const OpContext& ops, const Hessian& source, std::span<const int32_t> columns,
                             double damp_percent)
    : values(Tensor::allocate(DType::kF32, {source.width(), source.width()})) {
  const int64_t width = source.width();
  const float* from = source.values.data<float>();
  float* to = values.mutable_data<float>();
  double mean = 0;
  for (int64_t i = 0; i < width; ++i) mean += from[i * width + i] / static_cast<double>(width);
  ops.threads->parallel_for(width, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const float* row = from + columns[static_cast<size_t>(i)] * width;
      for (int64_t j = 0; j < width; ++j) to[i * width + j] = row[columns[static_cast<size_t>(j)]];
    }
  });
  for (int64_t i = 0; i < width; ++i) {
    float& pivot = to[i * (width + 1)];
    const float before = pivot;
    if (pivot <= 0) pivot = static_cast<float>(mean);  // a column without input stands alone
    pivot += static_cast<float>(damp_percent * mean);
    damping.push_back(pivot - before);
  }
  packed = PackedFactor(ops, to, width, width, width);
}

}  // namespace lowbit
