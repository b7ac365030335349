// The hidden states of all calibration tokens on their way through the model: one block at a time, stage by
// stage, so that each operator runs once per layer and each Hessian is seen before its weights are replaced.
#pragma once

#include "model/model.h"
#include "quantize/hessian.h"
#include "quantize/memory_meter.h"

#include <functional>
#include <memory>
#include <span>
#include <vector>

namespace lowbit {

class CalibrationStates {
 public:
  // A carry (the output of attention, or of the activation) is kept for all tokens when it takes at most the
  // bytes of the hidden states or `carry_budget`; otherwise its stage is run again where it is needed. Both
  // give the same bits.
  static constexpr size_t kCarryBudget = size_t{448} << 20;

  // Embeds the samples. `sequences` must outlive this.
  CalibrationStates(const Model& model, const OpContext& ops, std::span<const std::vector<int32_t>> sequences,
                    int64_t batch_size, MemoryMeter& meter, size_t carry_budget = kCarryBudget);

  int64_t tokens() const { return tokens_; }

  // X^T X of a stage's input, as the stages before it have left things.
  Hessian collect(const Block& block, int stage);
  // Of all stages at once, with the block as it is and without changing any state (true_sequential off).
  std::vector<Hessian> collect_all(const Block& block);
  // Of what the head reads.
  Hessian collect_head();
  // Runs the stage's linears and what follows them.
  void advance(const Block& block, int stage);
  void advance_all(const Block& block);

 private:
  struct Batch {
    int64_t row, tokens;
    size_t first_sequence, sequences;
  };
  using Body = std::function<void(const StepInput& step, const Batch& batch)>;

  void for_each_batch(const Body& body);
  bool keeps_carry(const Stage& stage) const;
  float* hidden(const Batch& batch) { return hidden_.mutable_data<float>() + batch.row * width_; }
  float* kept_carry(const Stage& maker, const Batch& batch) {
    return carry_.mutable_data<float>() + batch.row * maker.carry_width;
  }
  // The input of a stage that reads the carry: kept, or made anew in `scratch`.
  const float* carry_of(const Block& block, int stage, const StepInput& step, const Batch& batch,
                        const Scratch& input, const Scratch& carry);
  Scratch take(const Batch& batch, int64_t width) const;

  const Model& model_;
  const OpContext& ops_;
  std::span<const std::vector<int32_t>> sequences_;
  MemoryMeter& meter_;
  size_t carry_budget_;
  int64_t tokens_ = 0, width_, longest_ = 0, batch_size_;
  Tensor hidden_;  // F32 [tokens, hidden_size]
  Tensor carry_;   // F32, of the widest carry that is kept
  Tensor cache_;   // F32 keys and values of one batch, of the layer at work
  RopeTable rope_;
  std::vector<int32_t> positions_;
  std::vector<Batch> batches_;
};

}  // namespace lowbit
