#include "quantize/calibration_states.h"

#include "base/fail.h"

#include <algorithm>
#include <cstring>

namespace lowbit {

CalibrationStates::CalibrationStates(const Model& model, const OpContext& ops,
                                     std::span<const std::vector<int32_t>> sequences, int64_t batch_size,
                                     MemoryMeter& meter, size_t carry_budget)
    : model_(model),
      ops_(ops),
      sequences_(sequences),
      meter_(meter),
      carry_budget_(carry_budget),
      width_(model.config().hidden_size),
      batch_size_(std::clamp<int64_t>(batch_size, 1, static_cast<int64_t>(sequences.size()))) {
  for (size_t first = 0; first < sequences.size(); first += static_cast<size_t>(batch_size_)) {
    Batch batch{tokens_, 0, first, std::min(static_cast<size_t>(batch_size_), sequences.size() - first)};
    for (size_t i = first; i < first + batch.sequences; ++i) {
      const int64_t count = static_cast<int64_t>(sequences[i].size());
      longest_ = std::max(longest_, count);
      batch.tokens += count;
      for (int64_t position = 0; position < count; ++position)
        positions_.push_back(static_cast<int32_t>(position));
    }
    tokens_ += batch.tokens;
    batches_.push_back(batch);
  }
  rope_ = model.rope_table(longest_);
  const ModelConfig& config = model.config();
  cache_ = Tensor::allocate(DType::kF32, {batch_size_, 2, config.kv_heads * longest_ * config.head_dim});
  hidden_ = Tensor::allocate(DType::kF32, {tokens_, width_});
  int64_t widest = 0;
  for (const Stage& stage : model.block(0).stages()) {
    if (keeps_carry(stage)) widest = std::max(widest, stage.carry_width);
  }
  if (widest > 0) carry_ = Tensor::allocate(DType::kF32, {tokens_, widest});
  int64_t row = 0;
  for (const std::vector<int32_t>& ids : sequences) {
    model.embed(ops, ids, hidden_.mutable_data<float>() + row * width_);
    row += static_cast<int64_t>(ids.size());
  }
}

bool CalibrationStates::keeps_carry(const Stage& stage) const {
  const size_t bytes = static_cast<size_t>(tokens_ * stage.carry_width) * sizeof(float);
  return bytes <= std::max(carry_budget_, static_cast<size_t>(tokens_ * width_) * sizeof(float));
}

Scratch CalibrationStates::take(const Batch& batch, int64_t width) const {
  return ops_.workspace->take(static_cast<size_t>(batch.tokens * std::max<int64_t>(1, width)) *
                              sizeof(float));
}

void CalibrationStates::for_each_batch(const Body& body) {
  const int64_t part = cache_.size(2);
  for (const Batch& batch : batches_) {
    std::vector<AttentionSequence> sequences;
    int64_t row = 0;
    for (size_t i = 0; i < batch.sequences; ++i) {
      const int64_t count = static_cast<int64_t>(sequences_[batch.first_sequence + i].size());
      float* keys = cache_.mutable_data<float>() + static_cast<int64_t>(i) * 2 * part;
      sequences.push_back({row, count, 0, longest_, keys, keys + part});
      row += count;
    }
    const StepInput step{.ops = &ops_,
                         .tokens = batch.tokens,
                         .positions = positions_.data() + batch.row,
                         .rope = &rope_,
                         .sequences = sequences,
                         .cache_dtype = DType::kF32,
                         .mode = MatmulMode::kPrefill};
    body(step, batch);
    meter_.sample();
  }
  ops_.workspace->release();
}

const float* CalibrationStates::carry_of(const Block& block, int stage, const StepInput& step,
                                         const Batch& batch, const Scratch& input, const Scratch& carry) {
  const Stage& maker = block.stages()[static_cast<size_t>(stage - 1)];
  if (keeps_carry(maker)) return kept_carry(maker, batch);
  block.prepare(stage - 1, step, hidden(batch), input.as<float>());
  block.finish(stage - 1, step, input.as<float>(), hidden(batch), carry.as<float>());
  return carry.as<float>();
}

Hessian CalibrationStates::collect(const Block& block, int index) {
  const Stage& stage = block.stages()[static_cast<size_t>(index)];
  HessianAccumulator accumulator(ops_, stage.input_width);
  for_each_batch([&](const StepInput& step, const Batch& batch) {
    if (stage.reads_hidden) {
      const Scratch input = take(batch, stage.input_width);
      block.prepare(index, step, hidden(batch), input.as<float>());
      accumulator.add(input.as<float>(), batch.tokens);
      return;
    }
    const Stage& maker = block.stages()[static_cast<size_t>(index - 1)];
    const bool kept = keeps_carry(maker);
    const Scratch input = take(batch, kept ? 0 : maker.input_width),
                  carry = take(batch, kept ? 0 : maker.carry_width);
    accumulator.add(carry_of(block, index, step, batch, input, carry), batch.tokens);
  });
  return accumulator.finish();
}

std::vector<Hessian> CalibrationStates::collect_all(const Block& block) {
  std::vector<HessianAccumulator> accumulators;
  int64_t input_width = 0, carry_width = 0;
  for (const Stage& stage : block.stages()) {
    accumulators.emplace_back(ops_, stage.input_width);
    input_width = std::max(input_width, stage.input_width);
    carry_width = std::max(carry_width, stage.carry_width);
  }
  for_each_batch([&](const StepInput& step, const Batch& batch) {
    const Scratch copy = take(batch, width_), input = take(batch, input_width),
                  carry = take(batch, carry_width);
    std::memcpy(copy.as<float>(), hidden(batch), static_cast<size_t>(batch.tokens * width_) * sizeof(float));
    for (size_t i = 0; i < block.stages().size(); ++i) {
      const Stage& stage = block.stages()[i];
      if (stage.reads_hidden) block.prepare(static_cast<int>(i), step, copy.as<float>(), input.as<float>());
      const float* source = stage.reads_hidden ? input.as<float>() : carry.as<float>();
      accumulators[i].add(source, batch.tokens);
      block.finish(static_cast<int>(i), step, source, copy.as<float>(), carry.as<float>());
    }
  });
  std::vector<Hessian> result;
  for (HessianAccumulator& accumulator : accumulators) result.push_back(accumulator.finish());
  return result;
}

Hessian CalibrationStates::collect_head() {
  HessianAccumulator accumulator(ops_, width_);
  for_each_batch([&](const StepInput&, const Batch& batch) {
    const Scratch normed = take(batch, width_);
    model_.final_norm(ops_, hidden(batch), batch.tokens, normed.as<float>());
    accumulator.add(normed.as<float>(), batch.tokens);
  });
  return accumulator.finish();
}

void CalibrationStates::advance(const Block& block, int index) {
  const Stage& stage = block.stages()[static_cast<size_t>(index)];
  if (stage.carry_width > 0 && !keeps_carry(stage)) return;  // made anew by whoever reads it
  for_each_batch([&](const StepInput& step, const Batch& batch) {
    const Stage* maker = stage.reads_hidden ? nullptr : &block.stages()[static_cast<size_t>(index - 1)];
    const bool kept = !maker || keeps_carry(*maker);
    const Scratch input = take(batch, maker ? (kept ? 0 : maker->input_width) : stage.input_width);
    const Scratch carry = take(batch, kept ? 0 : maker->carry_width);
    const float* source = input.as<float>();
    if (maker) {
      source = carry_of(block, index, step, batch, input, carry);
    } else {
      block.prepare(index, step, hidden(batch), input.as<float>());
    }
    block.finish(index, step, source, hidden(batch),
                 stage.carry_width > 0 ? kept_carry(stage, batch) : nullptr);
  });
}

void CalibrationStates::advance_all(const Block& block) {
  for (size_t i = 0; i < block.stages().size(); ++i) advance(block, static_cast<int>(i));
}

}  // namespace lowbit
