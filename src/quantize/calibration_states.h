// The hidden states of all calibration tokens on their way through the model: one block at a time, stage by
// stage, so that each operator runs once per layer and each Hessian is seen before its weights are replaced.
#pragma once

#include "model/model.h"
#include "quantize/hessian.h"
#include "quantize/memory_meter.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
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
// and threads share each operator. Both give the same bits. On a GPU, where the cut decides the order of
// sums, it is the same for every batch_size: kGpuBatchTokens.
struct CalibrationBatches {
  static constexpr int64_t kBatchTokens = 1024;
  static constexpr int64_t kGpuBatchTokens = 8192;
  static constexpr int64_t kBatchMemory = int64_t{512} << 20;

  std::vector<CalibrationBatch> batches;
  bool on_own_threads = false;
  int64_t most_tokens_at_once = 0;
  int64_t scratch_bytes = 0;  // of all batches at work
  int64_t round_tokens = 0;   // at most so many rows are made before they enter X^T X: each thread a batch

  CalibrationBatches(const Model& model, std::span<const std::vector<int32_t>> sequences, int64_t batch_size,
                     int threads);
  // For a GPU.
  CalibrationBatches(const Model& model, std::span<const std::vector<int32_t>> sequences);
};

class CalibrationStates {
 public:
  // A carry (the output of attention, or of the activation) is kept for all tokens when it takes at most the
  // bytes of the hidden states or `carry_budget` (counted in F32); otherwise its stage is run again where it
  // is needed. Both give the same bits.
  static constexpr size_t kCarryBudget = size_t{448} << 20;

  static bool keeps_carry(const Stage& stage, int64_t tokens, int64_t hidden_size,
                          size_t carry_budget = kCarryBudget);

  // Embeds the samples. `sequences` must outlive this. keeps_hidden_here: on a GPU, hidden states stay in
  // this machine's memory and come to the GPU batch by batch.
  struct Options {
    int64_t batch_size = 8;
    size_t carry_budget = kCarryBudget;
    bool keeps_hidden_here = false;
  };
  CalibrationStates(const Model& model, const OpContext& ops, std::span<const std::vector<int32_t>> sequences,
                    const Options& options, MemoryMeter& meter);

  int64_t tokens() const { return tokens_; }

  // X^T X of a stage's input, as the stages before it have left things.
  Hessian collect(const Block& block, int stage);
  // Of all stages at once, with the block as it is and without changing any state (true_sequential off).
  std::vector<Hessian> collect_all(const Block& block);
  // Of what the head reads.
  Hessian collect_head();
  // The rows of a stage's input, as the stages before it have left things: one sample after the other, in
  // their order. On the CPU.
  using VisitSample = std::function<void(const float* rows, int64_t tokens)>;
  void visit_input(const Block& block, int stage, const VisitSample& visit);
  // F32 [tokens, hidden_size], sample by sample. On the CPU; of all layers that have been passed.
  const Tensor& hidden_states() const { return hidden_; }
  // Runs the stage's linears and what follows them.
  void advance(const Block& block, int stage);
  void advance_all(const Block& block);

 private:
  using Batch = CalibrationBatch;
  using Body = std::function<void(const StepInput& step, const Batch& batch)>;
  // Writes the rows of a batch.
  using Fill = std::function<void(const StepInput& step, const Batch& batch, Activations rows)>;

  enum class Hidden { kRead, kChanged };  // by the body
  void run(const OpContext& ops, const Batch& batch, Hidden use, const Body& body);
  void for_each_batch(size_t first, size_t last, Hidden use, const Body& body);
  // Takes rows of some samples, the first of which is given.
  using Take = std::function<void(ConstActivations rows, int64_t tokens, size_t first_sequence)>;
  void make_rows(int64_t width, const Fill& fill, const Take& take);
  void make_input(const Block& block, int stage, const Take& take);
  // On a GPU all are kept, or with a budget of 0 none.
  bool keeps_carry(const Stage& stage) const {
    return ops_.gpu ? carry_budget_ > 0 : keeps_carry(stage, tokens_, width_, carry_budget_);
  }
  float* hidden(const Batch& batch) {
    return moving_ ? moving_ : hidden_.mutable_data<float>() + batch.row * width_;
  }
  static Activations rows_of(Tensor& carry, const Stage& maker, const Batch& batch) {
    return Activations(carry.mutable_bytes(), carry.dtype()).from(batch.row * maker.carry_width);
  }
  Activations kept_carry(const Stage& maker, const Batch& batch) { return rows_of(carry_, maker, batch); }
  ActivationScratch take(const Batch& batch, int64_t width) const {
    return {ops_, batch.tokens * std::max<int64_t>(1, width)};
  }
  // Keys and values of a batch's sequences, behind each other in `cache`.
  std::vector<AttentionSequence> attention_sequences(const Batch& batch, Activations cache) const;
  void embed();
  void place_on_gpu();
  void release_scratch() const;

  const Model& model_;
  const OpContext& ops_;
  std::span<const std::vector<int32_t>> sequences_;
  MemoryMeter& meter_;
  size_t carry_budget_;
  int64_t tokens_ = 0, width_;
  CalibrationBatches plan_;
  Tensor hidden_;  // F32 [tokens, hidden_size]; empty where hidden_here_ is
  std::optional<PinnedMemory> hidden_here_;
  float* moving_ = nullptr;  // of the batch at work, where hidden_here_ is
  Tensor carry_;             // of the widest carry that was kept so far
  RopeTables rope_;
  std::vector<int32_t> positions_;
  // On a GPU: what all batches read, made once, since each copy waits for the GPU.
  Tensor cache_;            // of one batch
  Tensor positions_there_;  // I32 [tokens]
  Tensor sequences_there_;  // of AttentionSequence, of all batches
};

}  // namespace lowbit
