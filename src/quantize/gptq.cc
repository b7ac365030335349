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

// What all slabs of a matrix share, where the operators compute.
struct SharedParts {
  const MatrixProblem& problem;
  const ColumnOrder& order;
  const InverseFactor& factor;
  const DampedHessian* damped;  // null without refinement
  Tensor columns, groups;       // order's
  Tensor step_of;               // of each position where a code is stored; empty where they are the same
  Tensor clip_weights;          // per step, or empty
  std::vector<int32_t> dead;    // steps whose weights are cleared

  const float* clip_weights_from(int64_t step) const {
    return clip_weights.empty() ? nullptr : clip_weights.data<float>() + step;
  }
};

// GPTQ over a slab of rows. Steps are columns in the order of work.
class Slab {
 public:
  Slab(const OpContext& ops, const SharedParts& shared, int64_t first_row, int64_t rows)
      : ops_(ops),
        shared_(shared),
        problem_(shared.problem),
        order_(shared.order),
        u_(shared.factor.values.data<float>()),
        first_row_(first_row),
        rows_(rows),
        width_(static_cast<int64_t>(order_.columns.size())),
        group_size_(effective_group_size(width_, problem_.affine.group_size)),
        groups_(group_count(width_, problem_.affine.group_size)),
        choice_{problem_.affine, problem_.gptq.mse, problem_.least_zero_point, problem_.as_autogptq,
                problem_.levels()},
        w_(allocate(ops, DType::kF32, {width_, rows})),
        codes_(allocate(ops, DType::kU8, {width_, rows})),
        errors_(allocate(ops, DType::kF32, {kBlockColumns, rows})),
        scales_(allocate(ops, DType::kF32, {groups_, rows})),
        zero_points_(allocate(ops, DType::kF32, {groups_, rows})),
        is_chosen_(static_cast<size_t>(groups_), false) {}

  struct Sums {
    double loss = 0;
    RefineResult refined;
  };
  Sums run(QuantizedTensor& out) {
    load();
    if (groups_ == 1 && problem_.as_autogptq) choose_group(0);  // before dead columns are cleared, as there
    for (int32_t step : shared_.dead) std::fill_n(column(step), rows_, 0.0f);
    if (groups_ == 1 || problem_.gptq.static_groups || !order_.groups_are_runs) choose_static_groups();
    const std::vector<int64_t> starts = block_starts(order_, kBlockColumns, problem_.gptq.updated_groups);
    const Tensor loss = zeros(ops_, DType::kF64, {1});
    for (size_t i = 0; i < starts.size(); ++i) {
      const int64_t begin = starts[i], end = i + 1 < starts.size() ? starts[i + 1] : width_;
      run_block(begin, end);
      const float* errors = errors_.data<float>();
      add_dot(ops_, errors, errors, nullptr, end - begin, rows_, const_cast<double*>(loss.data<double>()));
      if (end < width_) {
        gemm_subtract(ops_, {.a = u_ + begin * width_ + end,
                             .b = errors,
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
    Sums sums;
    copy_here(ops_, &sums.loss, loss.bytes(), sizeof sums.loss);
    if (shared_.damped) {
      load();
      sums.refined = refine(ops_,
                            {.order = &order_,
                             .groups = shared_.groups.data<int32_t>(),
                             .hessian = shared_.damped,
                             .weights = w_.data<float>(),
                             .rows = rows_,
                             .max_code = (1 << problem_.affine.bits) - 1,
                             .codes = codes_.mutable_data<uint8_t>(),
                             .scales = scales_.mutable_data<float>(),
                             .zero_points = zero_points_.data<float>(),
                             .levels = problem_.levels()},
                            problem_.gptq.refine_sweeps);
    }
    store_slab(ops_,
               {first_row_, rows_, codes_.data<uint8_t>(),
                shared_.step_of.empty() ? nullptr : shared_.step_of.data<int32_t>(), scales_.data<float>(),
                zero_points_.data<float>()},
               out);
    return sums;
  }

 private:
  float* column(int64_t step) { return w_.mutable_data<float>() + step * rows_; }
  float* scales(int64_t group) { return scales_.mutable_data<float>() + group * rows_; }
  float* zero_points(int64_t group) { return zero_points_.mutable_data<float>() + group * rows_; }

  void load() {
    load_weights(ops_, problem_, first_row_, rows_, shared_.columns.data<int32_t>(), width_,
                 w_.mutable_data<float>());
  }

  void choose(int64_t group, const float* w, int64_t columns, const float* weights) {
    choose_grids(ops_, choice_, w, columns, rows_, weights, scales(group), zero_points(group));
    is_chosen_[static_cast<size_t>(group)] = true;
  }

  // From the present weights of the steps of a group that begins at `step`.
  void choose_group(int64_t step) {
    const int32_t group = order_.groups[static_cast<size_t>(step)];
    int64_t end = step;
    while (end < width_ && order_.groups[static_cast<size_t>(end)] == group) ++end;
    choose(group, column(step), end - step, shared_.clip_weights_from(step));
  }

  // From the weights as they are before the first step; the steps of a group may be anywhere.
  void choose_static_groups() {
    std::vector<std::vector<int64_t>> members(static_cast<size_t>(groups_));
    for (int64_t step = 0; step < width_; ++step)
      members[static_cast<size_t>(order_.groups[static_cast<size_t>(step)])].push_back(step);
    Tensor gathered = allocate(ops_, DType::kF32, {group_size_, rows_});
    Tensor weights = allocate(ops_, DType::kF32, {group_size_});
    for (int64_t group = 0; group < groups_; ++group) {
      if (is_chosen_[static_cast<size_t>(group)]) continue;
      const std::vector<int64_t>& steps = members[static_cast<size_t>(group)];
      if (order_.groups_are_runs) {
        choose_group(steps[0]);
        continue;
      }
      for (size_t i = 0; i < steps.size(); ++i) {
        copy(ops_, gathered.mutable_data<float>() + static_cast<int64_t>(i) * rows_, column(steps[i]),
             static_cast<size_t>(rows_) * sizeof(float));
        if (!shared_.clip_weights.empty())
          copy(ops_, weights.mutable_data<float>() + i, shared_.clip_weights_from(steps[i]), sizeof(float));
      }
      choose(group, gathered.data<float>(), static_cast<int64_t>(steps.size()),
             shared_.clip_weights.empty() ? nullptr : weights.data<float>());
    }
  }

  void run_block(int64_t begin, int64_t end) {
    if (!problem_.gptq.updated_groups) {
      for (int64_t step = begin; step < end; ++step) {
        if (!is_chosen_[static_cast<size_t>(order_.groups[static_cast<size_t>(step)])]) choose_group(step);
      }
    }
    GptqBlockArgs args{column(begin),
                       rows_,
                       codes_.mutable_data<uint8_t>() + begin * rows_,
                       rows_,
                       errors_.mutable_data<float>(),
                       rows_,
                       u_ + begin * width_ + begin,
                       width_,
                       scales(0),
                       zero_points(0),
                       rows_,
                       shared_.groups.data<int32_t>() + begin,
                       end - begin,
                       0,
                       0,
                       (1 << problem_.affine.bits) - 1,
                       nullptr,
                       0,
                       problem_.levels()};
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

  // AutoGPTQ keeps the rounded weights as floats and finds the codes again when it packs, now with the F16
  // scale. On the CPU.
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

  const OpContext& ops_;
  const SharedParts& shared_;
  const MatrixProblem& problem_;
  const ColumnOrder& order_;
  const float* u_;
  int64_t first_row_, rows_, width_, group_size_, groups_;
  GridChoice choice_;
  Tensor w_, codes_, errors_, scales_, zero_points_;
  std::vector<bool> is_chosen_;
};

std::vector<int32_t> steps_of_positions(const ColumnOrder& order) {
  std::vector<int32_t> steps(order.columns.size());
  for (int32_t step = 0; step < static_cast<int32_t>(steps.size()); ++step)
    steps[static_cast<size_t>(order.position(step))] = step;
  return steps;
}

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
  Workspace workspace;
  const OpContext cpu{ops.threads, &workspace, ops.kernels};
  QuantizedMatrix result = quantize_rtn(ops.gpu ? cpu : ops, problem);
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
    if (ops_.workspace && !ops_.gpu) ops_.workspace->release();  // it holds a copy as large as H
  }
  return factor_ ? &*factor_ : nullptr;
}

const DampedHessian& FactorCache::damped() {
  if (!damped_) damped_.emplace(ops_, hessian_, order_, factor_->damp_percent);
  return *damped_;
}

QuantizedMatrix quantize_gptq(const OpContext& ops, const MatrixProblem& problem, FactorCache& factors) {
  const Hessian& hessian = factors.hessian();
  const std::vector<float>& diagonal = hessian.diagonal;
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

  QuantizedMatrix result{allocate_quantized(problem), "gptq", factor->note, factor->damp_percent, 0};
  const bool weighs = problem.gptq.mse > 0 && problem.gptq.weighted_mse;
  const std::vector<float> weights =
      weighs ? clip_weights(order, diagonal, factor->damp_percent) : std::vector<float>();
  const bool refines = problem.gptq.refine_sweeps > 0 && !problem.as_autogptq;
  const DampedHessian* damped = refines || ops.gpu ? &factors.damped() : nullptr;
  if (ops.gpu && problem.is_last) factors.forget_values();
  const std::vector<int32_t> step_of =
      order.is_scattered ? std::vector<int32_t>() : steps_of_positions(order);
  SharedParts shared{.problem = problem,
                     .order = order,
                     .factor = *factor,
                     .damped = damped,
                     .columns = placed(ops, order.columns),
                     .groups = placed(ops, order.groups),
                     .step_of = order.is_scattered ? Tensor() : placed(ops, step_of),
                     .clip_weights = weighs ? placed(ops, weights) : Tensor(),
                     .dead = {}};
  // A column that never saw an input is rounded like the others, which its zero correlation leaves alone;
  // AutoGPTQ clears it.
  for (size_t step = 0; problem.as_autogptq && step < order.columns.size(); ++step) {
    if (diagonal[static_cast<size_t>(order.columns[step])] == 0)
      shared.dead.push_back(static_cast<int32_t>(step));
  }
  std::vector<Slab::Sums> slabs(static_cast<size_t>(slab_count(result.weight.out_features)));
  for_each_slab(ops, result.weight.out_features,
                [&](const OpContext& one_thread, int64_t slab, int64_t first_row, int64_t rows) {
                  slabs[static_cast<size_t>(slab)] =
                      Slab(one_thread, shared, first_row, rows).run(result.weight);
                });
  RefineResult refined;
  for (const Slab::Sums& sums : slabs) {
    result.loss += sums.loss;
    refined.error += sums.refined.error;
    refined.size += sums.refined.size;
  }
  if (shared.damped && refined.size > 0)
    result.relative_error = std::sqrt(std::max(0.0, refined.error) / refined.size);
  if (order.is_scattered) {
    result.weight.column_order = Tensor::allocate(DType::kI32, {result.weight.in_features});
    std::copy(order.columns.begin(), order.columns.end(), result.weight.column_order.mutable_data<int32_t>());
  }
  return result;
}

}  // namespace lowbit
