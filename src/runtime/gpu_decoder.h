// Decoding on a GPU without the host in the way: a step, sampling with it, is one recorded graph (but where
// layers are streamed) that takes its tokens from the step before, and the host reads them while the next
// step runs.
#pragma once

#include "ops/sampling.h"
#include "runtime/forward.h"

#include <memory>
#include <span>
#include <vector>

namespace lowbit {

class GpuDecoder {
 public:
  // batch: one token for each sequence, the one that comes after what is in the cache. Model, rope and cache
  // must outlive it; what the cache holds behind its lengths is written on. rows: of the same sequences;
  // their random streams are read here, and those who own them move them on by the tokens that they take.
  GpuDecoder(const Model& model, const OpContext& ops, const RopeTable& rope,
             std::span<const SequenceTokens> batch, KvCache& cache, const SamplingRule& rule,
             std::span<const SamplingRow> rows);
  ~GpuDecoder();

  // Runs the next step and returns the token that it chose for each sequence of the batch; -1 where no logit
  // was finite. Sequences that reach the end of the cache stay there.
  std::span<const int32_t> next();

 private:
  void queue_step();
  void launch();

  const Model& model_;
  Workspace workspace_;
  OpContext ops_;
  const RopeTable& rope_;
  KvCache& cache_;
  StepData data_;
  int64_t rows_;
  Scratch hidden_, logits_, step_;
  GpuSampling sampling_;
  PinnedMemory history_;
  std::vector<std::unique_ptr<GpuEvent>> done_;  // of the steps in flight
  std::unique_ptr<GpuGraph> graph_;
  int64_t launched_ = 0, taken_ = 0;
};

}  // namespace lowbit
