#include "quantize/calibration_states.h"

#include "base/fail.h"

#include <algorithm>
#include <limits>

namespace lowbit {

namespace {

std::vector<CalibrationBatch> cut(std::span<const std::vector<int32_t>> sequences, int64_t batch_size,
                                  int64_t most_tokens) {
  std::vector<CalibrationBatch> batches;
  int64_t row = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const int64_t tokens = static_cast<int64_t>(sequences[i].size());
    const bool fits = !batches.empty() && static_cast<int64_t>(batches.back().sequences) < batch_size &&
                      batches.back().tokens + tokens <= most_tokens;
    if (!fits) batches.push_back({row, 0, i, 0});
    batches.back().tokens += tokens;
    ++batches.back().sequences;
    row += tokens;
  }
  return batches;
}

int64_t most_tokens(const std::vector<CalibrationBatch>& batches) {
  int64_t most = 0;
  for (const CalibrationBatch& batch : batches) most = std::max(most, batch.tokens);
  return most;
}

// Input, outputs, one more of the outputs' size, and keys and values while a batch is in a stage.
int64_t scratch_per_token(const Model& model) {
  const ModelConfig& config = model.config();
  int64_t widths = 0;
  for (const Stage& stage : model.block(0).stages()) {
    widths = std::max(widths, stage.input_width + 3 * std::max(stage.carry_width, config.hidden_size));
  }
  return 4 * (widths + 2 * config.kv_heads * config.head_dim);
}

}  // namespace

CalibrationBatches::CalibrationBatches(const Model& model, std::span<const std::vector<int32_t>> sequences,
                                       int64_t batch_size, int threads) {
  const int64_t per_token = scratch_per_token(model);
  batches = cut(sequences, batch_size, kBatchTokens);
  most_tokens_at_once = most_tokens(batches) * threads;
  on_own_threads =
      static_cast<int64_t>(batches.size()) >= threads && most_tokens_at_once * per_token <= kBatchMemory;
  if (!on_own_threads) {
    batches = cut(sequences, batch_size, std::numeric_limits<int64_t>::max());
    most_tokens_at_once = most_tokens(batches);
  }
  scratch_bytes = most_tokens_at_once * per_token;
  round_tokens = std::max(HessianAccumulator::kChunkTokens, most_tokens_at_once);
}

CalibrationBatches::CalibrationBatches(const Model& model, std::span<const std::vector<int32_t>> sequences)
    : batches(cut(sequences, std::numeric_limits<int64_t>::max(), kGpuBatchTokens)) {
  most_tokens_at_once = most_tokens(batches);
  scratch_bytes = most_tokens_at_once * scratch_per_token(model) / 2;  // BF16
  round_tokens = 0;  // a batch is a round, so that sums do not depend on whether carries are kept
}

CalibrationStates::CalibrationStates(const Model& model, const OpContext& ops,
                                     std::span<const std::vector<int32_t>> sequences, const Options& options,
                                     MemoryMeter& meter)
    : model_(model),
      ops_(ops),
      sequences_(sequences),
      meter_(meter),
      carry_budget_(options.carry_budget),
      width_(model.config().hidden_size),
      plan_(ops.gpu ? CalibrationBatches(model, sequences)
                    : CalibrationBatches(model, sequences, options.batch_size, ops.threads->size())) {
  size_t longest = 0;
  for (const std::vector<int32_t>& ids : sequences) {
    longest = std::max(longest, ids.size());
    for (size_t i = 0; i < ids.size(); ++i) positions_.push_back(static_cast<int32_t>(i));
  }
  tokens_ = static_cast<int64_t>(positions_.size());
  rope_ = model.rope_tables(ops_, static_cast<int64_t>(longest));
  if (ops_.gpu && options.keeps_hidden_here) {
    hidden_here_.emplace(static_cast<size_t>(tokens_ * width_) * sizeof(float));
  } else {
    hidden_ = allocate(ops_, DType::kF32, {tokens_, width_});
  }
  embed();
  if (ops_.gpu) place_on_gpu();
}

void CalibrationStates::embed() {
  // The table stays where it is: only its rows are wanted, once.
  Workspace workspace;
  const OpContext here{ops_.threads, &workspace, ops_.kernels};
  std::vector<float> rows;
  float* hidden = hidden_here_ ? hidden_here_->as<float>() : hidden_.mutable_data<float>();
  const int32_t* positions = positions_.data();
  for (const std::vector<int32_t>& ids : sequences_) {
    const size_t count = ids.size() * static_cast<size_t>(width_);
    if (ops_.gpu && !hidden_here_) {
      rows.resize(count);
      model_.embed(here, ids, positions, rows.data());
      ops_.gpu->copy_in(hidden, rows.data(), count * sizeof(float));
    } else {
      model_.embed(here, ids, positions, hidden);
    }
    hidden += count;
    positions += ids.size();
  }
}

void CalibrationStates::place_on_gpu() {
  const ModelConfig& config = model_.config();
  cache_ =
      allocate(ops_, ops_.activations(), {plan_.most_tokens_at_once * 2 * config.kv_heads * config.head_dim});
  positions_there_ = placed(ops_, positions_);
  std::vector<AttentionSequence> all;
  for (const Batch& batch : plan_.batches) {
    for (const AttentionSequence& sequence :
         attention_sequences(batch, {cache_.mutable_bytes(), cache_.dtype()}))
      all.push_back(sequence);
  }
  const int64_t bytes = static_cast<int64_t>(all.size() * sizeof all[0]);
  sequences_there_ = copied_to(*ops_.gpu, Tensor::borrow(nullptr, all.data(), DType::kU8, {bytes}));
}

std::vector<AttentionSequence> CalibrationStates::attention_sequences(const Batch& batch,
                                                                      Activations cache) const {
  const int64_t kv_width = model_.config().kv_heads * model_.config().head_dim;
  std::vector<AttentionSequence> sequences;
  int64_t row = 0;
  for (size_t i = 0; i < batch.sequences; ++i) {
    const int64_t count = static_cast<int64_t>(sequences_[batch.first_sequence + i].size());
    const Activations keys = cache.from(row * 2 * kv_width);
    sequences.push_back({row, count, 0, count, keys.data, keys.from(count * kv_width).data});
    row += count;
  }
  return sequences;
}

bool CalibrationStates::keeps_carry(const Stage& stage, int64_t tokens, int64_t hidden_size,
                                    size_t carry_budget) {
  const size_t bytes = static_cast<size_t>(tokens * stage.carry_width) * sizeof(float);
  // Of a stage that takes a carry always (see Block).
  return bytes <= std::max(carry_budget, static_cast<size_t>(tokens * hidden_size) * sizeof(float));
}

void CalibrationStates::run(const OpContext& ops, const Batch& batch, Hidden use, const Body& body) {
  const ModelConfig& config = model_.config();
  std::optional<ActivationScratch> own_cache;
  if (!ops.gpu) own_cache.emplace(ops_, batch.tokens * 2 * config.kv_heads * config.head_dim);
  const std::vector<AttentionSequence> sequences = attention_sequences(
      batch, own_cache ? own_cache->rows() : Activations(cache_.mutable_bytes(), cache_.dtype()));
  StepInput step{.ops = &ops,
                 .tokens = batch.tokens,
                 .positions = positions_.data() + batch.row,
                 .rope = &rope_,
                 .sequences = sequences,
                 .cache_dtype = ops.activations(),
                 .mode = MatmulMode::kPrefill};
  if (ops.gpu) {
    step.positions = positions_there_.data<int32_t>() + batch.row;
    step.sequences.on_gpu =
        static_cast<const AttentionSequence*>(sequences_there_.bytes()) + batch.first_sequence;
  }
  if (!hidden_here_) return body(step, batch);
  const size_t bytes = static_cast<size_t>(batch.tokens * width_) * sizeof(float);
  float* const here = hidden_here_->as<float>() + batch.row * width_;
  const Scratch there = ops.workspace->take(bytes);
  ops.gpu->queue_copy_in(there.as<void>(), here, bytes);
  moving_ = there.as<float>();
  body(step, batch);
  moving_ = nullptr;
  if (use == Hidden::kChanged) ops.gpu->queue_copy_out(here, there.as<void>(), bytes);
}

// Batches [first, last) of plan_.
void CalibrationStates::for_each_batch(size_t first, size_t last, Hidden use, const Body& body) {
  if (ops_.gpu) {
    for (size_t i = first; i < last; ++i) run(ops_, plan_.batches[i], use, body);
    return;
  }
  const ThreadPool one_thread(1);
  const OpContext own{&one_thread, ops_.workspace, ops_.kernels};
  const int64_t count = static_cast<int64_t>(last - first);
  // A range of one chunk runs here, where operators may use all threads.
  ops_.threads->parallel_for(
      count, plan_.on_own_threads ? 1 : count, [&](int64_t begin, int64_t end, int worker) {
        for (size_t i = first + static_cast<size_t>(begin); i < first + static_cast<size_t>(end); ++i) {
          run(plan_.on_own_threads ? own : ops_, plan_.batches[i], use, body);
          if (worker == 0) meter_.sample();
        }
      });
}

// On a GPU, which waits for nothing until memory is freed, buffers are kept.
void CalibrationStates::release_scratch() const {
  if (!ops_.gpu) ops_.workspace->release();
}

// Rows are made in rounds, in parallel, and taken in their order.
void CalibrationStates::make_rows(int64_t width, const Fill& fill, const Take& take) {
  const std::vector<Batch>& batches = plan_.batches;
  for (size_t first = 0; first < batches.size();) {
    const int64_t start = batches[first].row;
    size_t last = first + 1;
    auto tokens = [&] { return batches[last - 1].row + batches[last - 1].tokens - start; };
    while (last < batches.size() && tokens() + batches[last].tokens <= plan_.round_tokens) ++last;
    const ActivationScratch rows(ops_, tokens() * width);
    for_each_batch(first, last, Hidden::kRead, [&](const StepInput& step, const Batch& batch) {
      fill(step, batch, rows.rows().from((batch.row - start) * width));
    });
    take(rows.rows(), tokens(), batches[first].first_sequence);
    meter_.sample();
    first = last;
  }
  release_scratch();
}

void CalibrationStates::make_input(const Block& block, int index, const Take& take_rows) {
  const Stage& stage = block.stages()[static_cast<size_t>(index)];
  if (stage.reads_hidden) {
    make_rows(
        stage.input_width,
        [&](const StepInput& step, const Batch& batch, Activations rows) {
          block.prepare(index, step, hidden(batch), rows);
        },
        take_rows);
    return;
  }
  const Stage& maker = block.stages()[static_cast<size_t>(index - 1)];
  if (keeps_carry(maker)) {
    if (ops_.gpu) {  // which sums what it is given at a time, here as where carries are made anew
      for (const Batch& batch : plan_.batches)
        take_rows(kept_carry(maker, batch), batch.tokens, batch.first_sequence);
    } else {
      take_rows(carry_.data<float>(), tokens_, 0);
    }
    return;
  }
  make_rows(
      stage.input_width,
      [&](const StepInput& step, const Batch& batch, Activations rows) {
        const ActivationScratch input = take(batch, maker.input_width);
        block.prepare(index - 1, step, hidden(batch), input.rows());
        block.finish(index - 1, step, input.rows(), hidden(batch), rows);
      },
      take_rows);
}

Hessian CalibrationStates::collect(const Block& block, int index) {
  HessianAccumulator accumulator(ops_, block.stages()[static_cast<size_t>(index)].input_width);
  make_input(block, index,
             [&](ConstActivations rows, int64_t tokens, size_t) { accumulator.add(rows, tokens); });
  return accumulator.finish();
}

void CalibrationStates::visit_input(const Block& block, int index, const VisitSample& visit) {
  const int64_t width = block.stages()[static_cast<size_t>(index)].input_width;
  make_input(block, index, [&](ConstActivations rows, int64_t tokens, size_t sequence) {
    const float* x = floats(rows);
    for (const float* const end = x + tokens * width; x < end; ++sequence) {
      const auto count = static_cast<int64_t>(sequences_[sequence].size());
      visit(x, count);
      x += count * width;
    }
  });
}

std::vector<Hessian> CalibrationStates::collect_all(const Block& block) {
  std::vector<HessianAccumulator> accumulators;
  int64_t input_width = 0, carry_width = 0;
  bool has_two_carries = false;
  for (const Stage& stage : block.stages()) {
    accumulators.emplace_back(ops_, stage.input_width);
    input_width = std::max(input_width, stage.input_width);
    carry_width = std::max(carry_width, stage.carry_width);
    has_two_carries = has_two_carries || stage.takes_and_leaves();
  }
  auto visit = [&](const StepInput& step, const Batch& batch) {
    const size_t bytes = static_cast<size_t>(batch.tokens * width_) * sizeof(float);
    const Scratch moving = ops_.workspace->take(bytes);
    const ActivationScratch input = take(batch, input_width), first = take(batch, carry_width),
                            second = take(batch, has_two_carries ? carry_width : 0);
    Activations carry = first.rows(), next = has_two_carries ? second.rows() : carry;
    copy(ops_, moving.as<void>(), hidden(batch), bytes);
    for (size_t i = 0; i < block.stages().size(); ++i) {
      const Stage& stage = block.stages()[i];
      if (stage.reads_hidden) block.prepare(static_cast<int>(i), step, moving.as<float>(), input.rows());
      const Activations source = stage.reads_hidden ? input.rows() : carry;
      accumulators[i].add(source, batch.tokens);
      block.finish(static_cast<int>(i), step, source, moving.as<float>(), next);
      if (stage.carry_width > 0) std::swap(carry, next);
    }
  };
  // One batch after the other, since all Hessians grow at once.
  for (const Batch& batch : plan_.batches) {
    run(ops_, batch, Hidden::kRead, visit);
    meter_.sample();
  }
  std::vector<Hessian> result;
  for (HessianAccumulator& accumulator : accumulators) result.push_back(accumulator.finish());
  return result;
}

Hessian CalibrationStates::collect_head() {
  HessianAccumulator accumulator(ops_, model_.head_width());
  make_rows(
      model_.head_width(),
      [&](const StepInput& step, const Batch& batch, Activations rows) {
        model_.head_input(*step.ops, hidden(batch), batch.tokens, rows);
      },
      [&](ConstActivations rows, int64_t tokens, size_t) { accumulator.add(rows, tokens); });
  return accumulator.finish();
}

void CalibrationStates::advance(const Block& block, int index) {
  const Stage& stage = block.stages()[static_cast<size_t>(index)];
  Tensor next;  // what the stage leaves, where it takes the carry that is kept
  if (stage.carry_width > 0) {
    // A carry that is not kept is made anew by whoever reads it, and memory for the one before it is not
    // held meanwhile: that is a large model, and its widest Hessian comes next.
    if (!keeps_carry(stage)) {
      carry_ = Tensor();
      return;
    }
    const int64_t count = tokens_ * stage.carry_width;
    if (stage.takes_and_leaves()) {
      next = allocate(ops_, ops_.activations(), {count});
    } else if (carry_.empty() || carry_.element_count() < count) {
      carry_ = allocate(ops_, ops_.activations(), {count});
    }
  }
  for_each_batch(0, plan_.batches.size(), Hidden::kChanged, [&](const StepInput& step, const Batch& batch) {
    const Stage* maker = stage.reads_hidden ? nullptr : &block.stages()[static_cast<size_t>(index - 1)];
    const bool kept = maker && keeps_carry(*maker);
    const ActivationScratch input = take(batch, kept    ? 0
                                                : maker ? maker->input_width
                                                        : stage.input_width),
                            carry = take(batch, maker && !kept ? maker->carry_width : 0);
    const Activations source = kept ? kept_carry(*maker, batch) : maker ? carry.rows() : input.rows();
    if (!kept) {
      const int first = maker ? index - 1 : index;
      block.prepare(first, step, hidden(batch), input.rows());
      if (maker) block.finish(first, step, input.rows(), hidden(batch), carry.rows());
    }
    block.finish(
        index, step, source, hidden(batch),
        stage.carry_width == 0 ? Activations() : rows_of(next.empty() ? carry_ : next, stage, batch));
  });
  if (!next.empty()) carry_ = std::move(next);
  release_scratch();
}

void CalibrationStates::advance_all(const Block& block) {
  for (size_t i = 0; i < block.stages().size(); ++i) advance(block, static_cast<int>(i));
}

}  // namespace lowbit
