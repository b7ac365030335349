#include "quantize/refine.h"

#include "ops/columns.h"
#include "ops/fit_scales.h"
#include "ops/gptq_block.h"
#include "ops/gram.h"

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
        columns_{problem.codes,  problem.scales, problem.zero_points,
                 problem.groups, problem.rows,   problem.levels},
        values_(allocate(ops, DType::kF32, {width_, rows_})),
        gradient_(zeros(ops, DType::kF32, {width_, rows_})),
        block_(allocate(ops, DType::kF32, {kBlockColumns, rows_})),
        changes_(allocate(ops, DType::kF32, {kBlockColumns, rows_})),
        before_(allocate(ops, DType::kF32, {kBlockColumns, rows_})) {
    decode_columns(ops_, columns_, 0, width_, values(0));
    Tensor difference = allocate(ops, DType::kF32, {width_, rows_});
    subtract(ops_, values(0), problem_.weights, width_ * rows_, difference.mutable_data<float>());
    subtract_product(0, width_, difference.data<float>(), gradient(0));  // H (W - Q)
  }

  void sweep() {
    for (size_t i = 0; i < starts_.size(); ++i) {
      refine_block(starts_[i], i + 1 < starts_.size() ? starts_[i + 1] : width_);
    }
  }

  RefineResult result() {
    const float* w = problem_.weights;
    const float* damping = problem_.hessian->damping.data<float>();
    Tensor sums = zeros(ops_, DType::kF64, {4});
    double* sum = sums.mutable_data<double>();
    float* difference = values(0);  // which are needed no more
    subtract(ops_, w, difference, width_ * rows_, difference);
    add_dot(ops_, difference, gradient(0), nullptr, width_, rows_, sum);
    add_dot(ops_, difference, difference, damping, width_, rows_, sum + 1);
    // Nor is the gradient: it becomes -H W.
    gradient_ = Tensor();
    gradient_ = zeros(ops_, DType::kF32, {width_, rows_});
    subtract_product(0, width_, w, gradient(0));
    add_dot(ops_, w, gradient(0), nullptr, width_, rows_, sum + 2);
    add_dot(ops_, w, w, damping, width_, rows_, sum + 3);
    double found[4];
    copy_here(ops_, found, sum, sizeof found);
    return {.error = found[0] - found[1], .size = -found[2] - found[3]};
  }

 private:
  float* values(int64_t step) { return values_.mutable_data<float>() + step * rows_; }
  float* gradient(int64_t step) { return gradient_.mutable_data<float>() + step * rows_; }
  int32_t group_of(int64_t step) const { return problem_.order->groups[static_cast<size_t>(step)]; }

  // to -= H[:, begin..end) change
  void subtract_product(int64_t begin, int64_t end, const float* change, float* to) {
    problem_.hessian->packed.subtract_product(ops_, begin, end, change, rows_, to, rows_, rows_);
  }
  // Scales, then codes of a block. Until both are done only the block's own part of the gradient, in block_,
  // is kept up to date.
  void refine_block(int64_t begin, int64_t end) {
    const size_t bytes = static_cast<size_t>((end - begin) * rows_) * sizeof(float);
    copy(ops_, block_.mutable_bytes(), gradient(begin), bytes);
    copy(ops_, before_.mutable_bytes(), values(begin), bytes);
    for (int64_t first = begin; problem_.order->groups_are_runs && first < end;) {
      int64_t last = first + 1;
      while (last < width_ && group_of(last) == group_of(first)) ++last;
      // A group longer than a block keeps its scales.
      if (last <= end && (first == 0 || group_of(first - 1) != group_of(first))) fit(begin, end, first, last);
      first = last;
    }
    descend(begin, end);
    float* change = before_.mutable_data<float>();
    subtract(ops_, values(begin), change, (end - begin) * rows_, change);
    subtract_product(begin, end, change, gradient(0));
  }

  // One pass over the codes of a block.
  void descend(int64_t begin, int64_t end) {
    const int64_t columns = end - begin;
    const DampedHessian::Block hessian = problem_.hessian->block(begin);
    const GptqBlockArgs args{block_.mutable_data<float>(),
                             rows_,
                             problem_.codes + begin * rows_,
                             rows_,
                             changes_.mutable_data<float>(),
                             rows_,
                             hessian.data,
                             hessian.stride,
                             problem_.scales,
                             problem_.zero_points,
                             rows_,
                             problem_.groups + begin,
                             columns,
                             0,
                             columns,
                             problem_.max_code,
                             values(begin),
                             rows_,
                             problem_.levels};
    gptq_block(ops_, args, rows_);
    decode_columns(ops_, columns_, begin, end, values(begin));
  }

  // The scales of the group [first, last).
  void fit(int64_t begin, int64_t end, int64_t first, int64_t last) {
    const int64_t grid = group_of(first) * rows_;
    const DampedHessian::Block hessian = problem_.hessian->block(begin);
    fit_scales(ops_, {.hessian = hessian.data,
                      .hessian_stride = hessian.stride,
                      .columns = end - begin,
                      .rows = rows_,
                      .first = first - begin,
                      .last = last - begin,
                      .codes = problem_.codes + begin * rows_,
                      .zero_points = problem_.zero_points + grid,
                      .scales = problem_.scales + grid,
                      .gradient = block_.mutable_data<float>(),
                      .values = values(begin),
                      .levels = problem_.levels});
  }

  const OpContext& ops_;
  const RefineProblem& problem_;
  int64_t width_, rows_;
  std::vector<int64_t> starts_;
  CodeColumns columns_;
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
    : is_band_(ops.gpu != nullptr) {
  const int64_t width = source.width();
  double mean = 0;
  for (float value : source.diagonal) mean += value / static_cast<double>(width);
  std::vector<float> diagonal, added;
  for (int32_t column : columns) {
    const float before = source.diagonal[static_cast<size_t>(column)];
    // A column without input stands alone.
    diagonal.push_back((before > 0 ? before : static_cast<float>(mean)) +
                       static_cast<float>(damp_percent * mean));
    added.push_back(diagonal.back() - before);
  }
  damping = allocate(ops, DType::kF32, {width});
  const Tensor added_there = placed(ops, added), diagonal_there = placed(ops, diagonal),
               order = placed(ops, columns);
  copy(ops, damping.mutable_bytes(), added_there.bytes(), damping.byte_count());
  PermuteGramArgs gram{.h = source.values.data<float>(),
                       .order = order.data<int32_t>(),
                       .diagonal = diagonal_there.data<float>(),
                       .width = width,
                       .rows = width};
  if (is_band_) {
    values = allocate(ops, DType::kF32, {width, kGramBand});
    permuted_gram_band(ops, gram, values.mutable_data<float>());
    packed = PackedFactor(ops, gram);
  } else {
    values = allocate(ops, DType::kF32, {width, width});
    gram.to = values.mutable_data<float>();
    permute_gram(ops, gram);
    packed = PackedFactor(ops, gram.to, width, width, width);
  }
}

DampedHessian::Block DampedHessian::block(int64_t begin) const {
  const float* data = values.data<float>();
  if (is_band_) return {data + begin * kGramBand + kGramBand / 2, kGramBand - 1};
  const int64_t width = values.size(1);
  return {data + begin * (width + 1), width};
}

}  // namespace lowbit
