// Decoding on a GPU without the host in the way: a step, sampling with it, takes its tokens from the step
// before, and the host reads them while the next one runs. It is a recorded graph, unless few are wanted, or
// layers are streamed.
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
  // For these sequences of the cache, and about so many steps. Model, rope and cache must outlive it; what
  // the cache holds behind its lengths is written on. The step is recorded by a thread of its own, from now
  // on: best while prompts are being computed.
  GpuDecoder(const Model& model, const OpContext& ops, const RopeTables& rope,
             std::span<const size_t> sequences, KvCache& cache, const SamplingRule& rule, int64_t steps);
  ~GpuDecoder();

  // batch: one token for each sequence, the one that comes after what is in the cache. rows: of the same
  // sequences; their random streams are read here, and those who own them move them on by the tokens that
  // they take.
  void begin(std::span<const SequenceTokens> batch, std::span<const SamplingRow> rows);

  // Behind begin(). Waits for the next step and returns the token that it chose for each sequence of the
  // batch; -1 where no logit was finite. Sequences that reach the end of the cache stay there. wanted: the
  // most steps that are still to be taken, with this one; more are never queued, and if all are wanted the
  // GPU does not wait for the host.
  std::span<const int32_t> next(int64_t wanted);

  int64_t queued() const { return launched_ - taken_; }  // steps that nobody has taken yet

  // Recorded, a step is an eighth faster than queued kernel by kernel. Several steps in one graph are no
  // faster than as many graphs. But recording costs the host as much as some steps take: what is to end early
  // does without.
  static constexpr int64_t kLeastRecorded = 24;

 private:
  void launch();
  void embed_first();  // hidden of the first step, where it is no more than rows of a table
  void queue_step(const OpContext& ops,
                  const StepData& data) const;  // to the next ids, and their embedding where that is plain
  std::unique_ptr<GpuGraph> record(const StepData& data);

  const Model& model_;
  OpContext ops_;
  Workspace graph_workspace_;  // nobody else may get, or free, what the graph's kernels write to
  const RopeTables& rope_;
  KvCache& cache_;
  StepData data_;
  int64_t rows_;
  std::vector<int32_t> any_ids_;  // what a step is given here, for those on the GPU
  Scratch hidden_, logits_, steps_;
  GpuSampling sampling_;
  HostWords history_;  // words of gpu_sample, of the steps in flight
  std::vector<int32_t> tokens_;
  int64_t launched_ = 0, taken_ = 0;  // steps
  std::unique_ptr<GpuGraph> graph_;
  std::future<std::unique_ptr<GpuGraph>> recording_;
};

}  // namespace lowbit
