#include "format/affine.h"
#include "ops/gemm.h"
#include "ops/gptq_block.h"
#include "quantize/methods.h"
#include "quantize/refine.h"
#include "tensor/half.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace lowbit {
namespace {

constexpr int64_t kBlockColumns = 128;

// GPTQ over a slab of rows. Steps are columns in the order of work.
class Slab {
 public:
  Slab(const OpContext& ops, const MatrixProblem& problem, const ColumnOrder& order,
       const InverseFactor& factor, const std::vector<float>& clip_weights, const std::vector<int32_t>& dead,
       const DampedHessian* damped, int64_t first_row, int64_t rows)
      : ops_(ops),
        problem_(problem),
        order_(order),
        u_(factor.values.data<float>()),
        damped_(damped),
        clip_weights_(clip_weights),
        dead_(dead),
        first_row_(first_row),
        rows_(rows),
        width_(static_cast<int64_t>(order.columns.size())),
        group_size_(effective_group_size(width_, problem.affine.group_size)),
        groups_(group_count(width_, problem.affine.group_size)),
        choice_{problem.affine, problem.gptq.mse, problem.least_zero_point, problem.as_autogptq},
        w_(Tensor::allocate(DType::kF32, {width_, rows})),
        codes_(Tensor::allocate(DType::kU8, {width_, rows})),
        errors_(Tensor::allocate(DType::kF32, {kBlockColumns, rows})),
        scales_(Tensor::allocate(DType::kF32, {groups_, rows})),
        zero_points_(Tensor::allocate(DType::kF32, {groups_, rows})),
        is_chosen_(static_cast<size_t>(groups_), false) {}

  struct Sums {
    double loss = 0;
    RefineResult refined;
  };
  Sums run(QuantizedTensor& out) {
    load_columns(ops_, problem_, first_row_, rows_, order_.columns, w_.mutable_data<float>());
    if (groups_ == 1 && problem_.as_autogptq) choose_group(0);  // before dead columns are cleared, as there
    for (int32_t step : dead_) std::fill_n(column(step), rows_, 0.0f);
    if (groups_ == 1 || problem_.gptq.static_groups || !order_.groups_are_runs) choose_static_groups();
    const std::vector<int64_t> starts = block_starts(order_, kBlockColumns, problem_.gptq.updated_groups);
    Sums sums;
    for (size_t i = 0; i < starts.size(); ++i) {
      const int64_t begin = starts[i], end = i + 1 < starts.size() ? starts[i + 1] : width_;
      run_block(begin, end);
      sums.loss += sum_of_squares(end - begin);
      if (end < width_) {
        gemm_subtract(ops_, {.a = u_ + begin * width_ + end,
                             .b = errors_.data<float>(),
                             .c = column(end),
                             .a_stride = width_,
                             .b_stride = rows_,
                             .c_stride = rows_,
                             .rows = width_ - end,
                             .columns = rows_,
                             .depth = end - begin});
      }
    }
    if (problem_.as_autogptq) repack_as_autogptq();
    if (damped_) {
      load_columns(ops_, problem_, first_row_, rows_, order_.columns, w_.mutable_data<float>());
      sums.refined = refine(ops_,
                            {.order = &order_,
                             .hessian = damped_,
                             .weights = w_.data<float>(),
                             .rows = rows_,
                             .max_code = (1 << problem_.affine.bits) - 1,
                             .codes = codes_.mutable_data<uint8_t>(),
                             .scales = scales_.mutable_data<float>(),
                             .zero_points = zero_points_.data<float>()},
                            problem_.gptq.refine_sweeps);
    }
    store(out);
    return sums;
  }

 private:
  float* column(int64_t step) { return w_.mutable_data<float>() + step * rows_; }
  float* scales(int64_t group) { return scales_.mutable_data<float>() + group * rows_; }
  float* zero_points(int64_t group) { return zero_points_.mutable_data<float>() + group * rows_; }

  void choose(int64_t group, const float* w, int64_t columns, const float* weights) {
    choose_grids(ops_, choice_, w, columns, rows_, weights, scales(group), zero_points(group));
    is_chosen_[static_cast<size_t>(group)] = true;
  }

  // From the present weights of the steps of a group that begins at `step`.
  void choose_group(int64_t step) {
    const int32_t group = order_.groups[static_cast<size_t>(step)];
    int64_t end = step;
    while (end < width_ && order_.groups[static_cast<size_t>(end)] == group) ++end;
    choose(group, column(step), end - step, clip_weights_.empty() ? nullptr : clip_weights_.data() + step);
  }

  // From the weights as they are before the first step; the steps of a group may be anywhere.
  void choose_static_groups() {
    std::vector<std::vector<int64_t>> members(static_cast<size_t>(groups_));
    for (int64_t step = 0; step < width_; ++step)
      members[static_cast<size_t>(order_.groups[static_cast<size_t>(step)])].push_back(step);
    Tensor gathered = Tensor::allocate(DType::kF32, {group_size_, rows_});
    std::vector<float> weights;
    for (int64_t group = 0; group < groups_; ++group) {
      if (is_chosen_[static_cast<size_t>(group)]) continue;
      const std::vector<int64_t>& steps = members[static_cast<size_t>(group)];
      weights.clear();
      for (size_t i = 0; i < steps.size(); ++i) {
        std::memcpy(gathered.mutable_data<float>() + static_cast<int64_t>(i) * rows_, column(steps[i]),
                    static_cast<size_t>(rows_) * sizeof(float));
        if (!clip_weights_.empty()) weights.push_back(clip_weights_[static_cast<size_t>(steps[i])]);
      }
      choose(group, gathered.data<float>(), static_cast<int64_t>(steps.size()),
             weights.empty() ? nullptr : weights.data());
    }
  }

  void run_block(int64_t begin, int64_t end) {
    if (!problem_.gptq.updated_groups) {
      for (int64_t step = begin; step < end; ++step) {
        if (!is_chosen_[static_cast<size_t>(order_.groups[static_cast<size_t>(step)])]) choose_group(step);
      }
    }
    const float* scale_of[kBlockColumns];
    const float* zero_point_of[kBlockColumns];
    for (int64_t step = begin; step < end; ++step) {
      scale_of[step - begin] = scales(order_.groups[static_cast<size_t>(step)]);
      zero_point_of[step - begin] = zero_points(order_.groups[static_cast<size_t>(step)]);
    }
    GptqBlockArgs args{column(begin),
                       rows_,
                       codes_.mutable_data<uint8_t>() + begin * rows_,
                       rows_,
                       errors_.mutable_data<float>(),
                       rows_,
                       u_ + begin * width_ + begin,
                       width_,
                       scale_of,
                       zero_point_of,
                       end - begin,
                       0,
                       0,
                       (1 << problem_.affine.bits) - 1,
                       nullptr,
                       0};
    for (int64_t step = begin; step < end;) {
      if (!is_chosen_[static_cast<size_t>(order_.groups[static_cast<size_t>(step)])]) choose_group(step);
      int64_t stop = step + 1;
      while (stop < end && is_chosen_[static_cast<size_t>(order_.groups[static_cast<size_t>(stop)])]) ++stop;
      args.begin = step - begin;
      args.end = stop - begin;
      gptq_block(ops_, args, rows_);
      step = stop;
    }
  }

  double sum_of_squares(int64_t columns) const {
    double total = 0;
    for (int64_t i = 0; i < columns * rows_; ++i) {
      const double error = errors_.data<float>()[i];
      total += error * error;
    }
    return total;
  }

  // AutoGPTQ keeps the rounded weights as floats and finds the codes again when it packs, now with the F16
  // scale.
  void repack_as_autogptq() {
    const float max_code = static_cast<float>((1 << problem_.affine.bits) - 1);
    for (int64_t step = 0; step < width_; ++step) {
      const float* exact = scales(order_.groups[static_cast<size_t>(step)]);
      uint8_t* codes = codes_.mutable_data<uint8_t>() + step * rows_;
      for (int64_t row = 0; row < rows_; ++row) {
        const float stored = round_scale(exact[row]);
        codes[row] = static_cast<uint8_t>(
            std::clamp(std::nearbyint(static_cast<float>(codes[row]) * exact[row] / stored), 0.0f, max_code));
      }
    }
    for (int64_t i = 0; i < groups_ * rows_; ++i) scales(0)[i] = round_scale(scales(0)[i]);
  }

  void store(QuantizedTensor& out) {
    CodeSlab slab{first_row_, rows_, codes_.data<uint8_t>(), scales_.data<float>(),
                  zero_points_.data<float>()};
    Tensor placed;
    if (!order_.is_scattered) {
      placed = Tensor::allocate(DType::kU8, {width_, rows_});
      for (int64_t step = 0; step < width_; ++step) {
        std::memcpy(placed.mutable_data<uint8_t>() + order_.position(step) * rows_, slab.codes + step * rows_,
                    static_cast<size_t>(rows_));
      }
      slab.codes = placed.data<uint8_t>();
    }
    store_slab(ops_, slab, out);
  }

  const OpContext& ops_;
  const MatrixProblem& problem_;
  const ColumnOrder& order_;
  const float* u_;
  const DampedHessian* damped_;             // null without refinement
  const std::vector<float>& clip_weights_;  // per step, or empty
  const std::vector<int32_t>& dead_;        // steps whose weights are cleared
  int64_t first_row_, rows_, width_, group_size_, groups_;
  GridChoice choice_;
  Tensor w_, codes_, errors_, scales_, zero_points_;
  std::vector<bool> is_chosen_;
};

// What an error of each step's column costs alone: the damped diagonal of H.
std::vector<float> clip_weights(const ColumnOrder& order, std::span<const float> diagonal,
                                double damp_percent) {
  double mean = 0;
  for (float value : diagonal) mean += value / static_cast<double>(diagonal.size());
  std::vector<float> weights;
  for (int32_t column : order.columns) {
    const double own = diagonal[static_cast<size_t>(column)] / mean;
    weights.push_back(static_cast<float>(own + damp_percent));
  }
  return weights;
}

QuantizedMatrix fall_back(const OpContext& ops, const MatrixProblem& problem, std::string note) {
  QuantizedMatrix result = quantize_rtn(ops, problem);
  result.note = std::move(note);
  return result;
}

}  // namespace

const InverseFactor* FactorCache::factor(const std::vector<int32_t>& order, const Inversion& inversion) {
  if (order != order_ || !(inversion == inversion_)) {
    factor_.reset();
    damped_.reset();
    order_ = order;
    inversion_ = inversion;
    factor_ = invert(ops_, hessian_, order, inversion);
    if (ops_.workspace) ops_.workspace->release();  // it holds a copy as large as H
  }
  return factor_ ? &*factor_ : nullptr;
}

const DampedHessian& FactorCache::damped() {
  if (!damped_) damped_.emplace(ops_, hessian_, order_, factor_->damp_percent);
  return *damped_;
}

QuantizedMatrix quantize_gptq(const OpContext& ops, const MatrixProblem& problem, FactorCache& factors) {
  const Hessian& hessian = factors.hessian();
  const std::vector<float> diagonal = hessian.diagonal();
  if (!hessian.is_finite()) {
    return fall_back(ops, problem, "non-finite activations reach it: rounded to nearest instead");
  }
  if (*std::max_element(diagonal.begin(), diagonal.end()) <= 0) {
    return fall_back(ops, problem, "all its calibration inputs are zero: rounded to nearest instead");
  }
  const int64_t group_size = effective_group_size(hessian.width(), problem.affine.group_size);
  const ColumnOrder order = column_order(diagonal, group_size, problem.gptq);
  Inversion inversion{.damp_percent = problem.gptq.damp_percent};
  if (problem.as_autogptq) {
    inversion.dead_diagonal = 1;
    inversion.precision =
        FactorPrecision::kDouble;  // where another program's codes are to be met, no noise is added
  }
  const InverseFactor* factor = factors.factor(order.columns, inversion);
  if (!factor)
    return fall_back(ops, problem, "its Hessian could not be inverted: rounded to nearest instead");

  // A column that never saw an input is rounded like the others, which its zero correlation leaves alone;
  // AutoGPTQ clears it.
  std::vector<int32_t> dead;
  for (size_t step = 0; problem.as_autogptq && step < order.columns.size(); ++step) {
    if (diagonal[static_cast<size_t>(order.columns[step])] == 0) dead.push_back(static_cast<int32_t>(step));
  }
  QuantizedMatrix result{allocate_quantized(problem), "gptq", factor->note, factor->damp_percent, 0};
  const bool weighs = problem.gptq.mse > 0 && problem.gptq.weighted_mse;
  const std::vector<float> weights =
      weighs ? clip_weights(order, diagonal, factor->damp_percent) : std::vector<float>();
  const bool refines = problem.gptq.refine_sweeps > 0 && !problem.as_autogptq;
  const DampedHessian* damped = refines ? &factors.damped() : nullptr;
  std::vector<Slab::Sums> slabs(static_cast<size_t>(slab_count(result.weight.out_features)));
  for_each_slab(ops, result.weight.out_features,
                [&](const OpContext& one_thread, int64_t slab, int64_t first_row, int64_t rows) {
                  slabs[static_cast<size_t>(slab)] =
                      Slab(one_thread, problem, order, *factor, weights, dead, damped, first_row, rows)
                          .run(result.weight);
                });
  RefineResult refined;
  for (const Slab::Sums& sums : slabs) {
    result.loss += sums.loss;
    refined.error += sums.refined.error;
    refined.size += sums.refined.size;
  }
  if (refines && refined.size > 0)
    result.relative_error = std::sqrt(std::max(0.0, refined.error) / refined.size);
  if (order.is_scattered) {
    result.weight.column_order = Tensor::allocate(DType::kI32, {hessian.width()});
    std::copy(order.columns.begin(), order.columns.end(), result.weight.column_order.mutable_data<int32_t>());
  }
  return result;
}

}  // namespace lowbit
