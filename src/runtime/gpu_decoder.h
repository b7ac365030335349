// Decoding on a GPU without the host in the way: a step, sampling with it, takes its tokens from the step
// before, and the host reads them while the next one runs. It is a recorded graph, unless few are
// wanted, or layers are streamed.
#pragma once

#include "ops/sampling.h"
#include "runtime/forward.h"

#include <future>
#include <memory>
#include <span>
#include <vector>

namespace lowbit {

class GpuDecoder {
 public:
  // batch: one token for each sequence, the one that comes after what is in the cache. Model, rope and cache
  // must outlive it; what the cache holds behind its lengths is written on. rows: of the same sequences;
  // their random streams are read here, and those who own them move them on by the tokens that they take.
  GpuDecoder(const Model& model, const OpContext& ops, const RopeTables& rope,
             std::span<const SequenceTokens> batch, KvCache& cache, const SamplingRule& rule,
             std::span<const SamplingRow> rows);
  ~GpuDecoder();

  // Waits for the next step and returns the token that it chose for each sequence of the batch; -1 where no
  // logit was finite. Sequences that reach the end of the cache stay there. wanted: the most steps that are
  // still to be taken, with this one; more are never queued, and if all are wanted the GPU does not wait for
  // the host.
  std::span<const int32_t> next(int64_t wanted);

  int64_t queued() const { return launched_ - taken_; }  // steps that nobody has taken yet

 private:
  void launch(int64_t wanted);
  void embed_ids() const;
  void queue_step(const OpContext& ops) const;  // from the ids' embedding to that of the next ones
  void begin_to_record();
  std::unique_ptr<GpuGraph> record();

  const Model& model_;
  OpContext ops_;
  Workspace graph_workspace_;  // nobody else may get, or free, what the graph's kernels write to
  const RopeTables& rope_;
  KvCache& cache_;
  StepData data_;
  int64_t rows_;
  Scratch hidden_, logits_, steps_;
  GpuSampling sampling_;
  PinnedMemory history_;  // words of gpu_sample, of the steps in flight
  std::vector<int32_t> tokens_;
  int64_t launched_ = 0, taken_ = 0;  // steps
  bool may_record_;
  std::unique_ptr<GpuGraph> graph_;
  std::future<std::unique_ptr<GpuGraph>> recording_;
};

}  // namespace lowbit
