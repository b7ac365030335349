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

// Samples that go through a stage together.
struct CalibrationBatch {
  int64_t row, tokens;
  size_t first_sequence, sequences;
};

// How the samples are cut into batches: of at most batch_size samples, and only one when it alone has
// kBatchTokens or more: enough rows to be worth converting a matrix for, few enough for the cache. Threads
// then take batches of their own, unless there are fewer batches than threads or their scratch would take
// more than kBatchMemory: then batches have up to batch_size samples of any length, one is at work at a time,
// and threads share each operator. Both give the same bits.
struct CalibrationBatches {
  static constexpr int64_t kBatchTokens = 1024;
  static constexpr int64_t kBatchMemory = int64_t{512} << 20;

  std::vector<CalibrationBatch> batches;
  bool on_own_threads = false;
  int64_t most_tokens_at_once = 0;
  int64_t scratch_bytes = 0;  // of all batches at work
  int64_t round_tokens = 0;   // at most so many rows are made before they enter X^T X: each thread a batch

  CalibrationBatches(const Model& model, std::span<const std::vector<int32_t>> sequences, int64_t batch_size,
                     int threads);
};

class CalibrationStates {
 public:
  // A carry (the output of attention, or of the activation) is kept for all tokens when it takes at most the
  // bytes of the hidden states or `carry_budget`; otherwise its stage is run again where it is needed. Both
  // give the same bits.
  static constexpr size_t kCarryBudget = size_t{448} << 20;

  static bool keeps_carry(const Stage& stage, int64_t tokens, int64_t hidden_size,
                          size_t carry_budget = kCarryBudget);

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
  using Batch = CalibrationBatch;
  using Body = std::function<void(const StepInput& step, const Batch& batch)>;
  // Writes the rows of a batch.
  using Fill = std::function<void(const StepInput& step, const Batch& batch, float* rows)>;

  void run(const OpContext& ops, const Batch& batch, const Body& body) const;
  void for_each_batch(size_t first, size_t last, const Body& body);
  Hessian collect_rows(int64_t width, const Fill& fill);
  bool keeps_carry(const Stage& stage) const { return keeps_carry(stage, tokens_, width_, carry_budget_); }
  float* hidden(const Batch& batch) { return hidden_.mutable_data<float>() + batch.row * width_; }
  float* kept_carry(const Stage& maker, const Batch& batch) {
    return carry_.mutable_data<float>() + batch.row * maker.carry_width;
  }
  Scratch take(const Batch& batch, int64_t width) const;

  const Model& model_;
  const OpContext& ops_;
  std::span<const std::vector<int32_t>> sequences_;
  MemoryMeter& meter_;
  size_t carry_budget_;
  int64_t tokens_ = 0, width_;
  CalibrationBatches plan_;
  Tensor hidden_;  // F32 [tokens, hidden_size]
  Tensor carry_;   // F32, of the widest carry that was kept so far
  RopeTable rope_;
  std::vector<int32_t> positions_;
};

}  // namespace lowbit
