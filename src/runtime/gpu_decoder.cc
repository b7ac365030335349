#include "runtime/gpu_decoder.h"

#include "base/fail.h"
#include "ops/fused.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

namespace lowbit {
namespace {

constexpr int64_t kInFlight = 2;  // steps: while the host looks at one's tokens, the next one runs
// Recorded, a step is an eighth faster than queued kernel by kernel. Several steps in one graph are no faster
// than as many graphs. But recording costs the host as much as some steps take: what is to end early does
// without.
constexpr int64_t kLeastRecorded = 24;

OpContext with_workspace(OpContext ops, Workspace& workspace) {
  ops.workspace = &workspace;
  return ops;
}

}  // namespace

GpuDecoder::GpuDecoder(const Model& model, const OpContext& ops, const RopeTables& rope,
                       std::span<const SequenceTokens> batch, KvCache& cache, const SamplingRule& rule,
                       std::span<const SamplingRow> rows)
    : model_(model),
      ops_(ops),
      graph_workspace_(*ops.gpu),
      rope_(rope),
      cache_(cache),
      data_(ops_, batch, cache),
      rows_(data_.tokens()),
      hidden_(ops_.workspace->take(static_cast<size_t>(rows_ * model.config().hidden_size) * sizeof(float))),
      logits_(ops_.workspace->take(static_cast<size_t>(rows_ * model.config().vocab_size) * sizeof(float))),
      steps_(ops_.workspace->take(static_cast<size_t>(rows_) * sizeof(int64_t))),
      sampling_(ops_, rule, logits_.as<float>(), model.config().vocab_size, rows),
      history_(static_cast<size_t>(kInFlight * rows_) * sizeof(uint64_t)),
      tokens_(static_cast<size_t>(rows_)),
      // A step that waits for layers to be copied takes longer than queueing its kernels.
      may_record_(model.has_fixed_weights()) {
  ops_.gpu->clear(steps_.as<void>(), static_cast<size_t>(rows_) * sizeof(int64_t));
  std::memset(history_.as<void>(), 0, static_cast<size_t>(kInFlight * rows_) * sizeof(uint64_t));
  embed_ids();
}

// Steps that nobody took still write to what ends here. What failed in them is told to whoever waits next.
GpuDecoder::~GpuDecoder() {
  if (recording_.valid()) recording_.wait();
  try {
    ops_.gpu->wait("decoding");
  } catch (const Error&) {
  }
}

void GpuDecoder::embed_ids() const {
  model_.embed(ops_, data_.ids(), data_.positions(), hidden_.as<float>());
}

void GpuDecoder::queue_step(const OpContext& ops) const {
  if constexpr (kHasCuda) {
    KeptRows kept(ops, rows_, model_.config().hidden_size);
    run_blocks(model_, ops, rope_, data_, MatmulMode::kDecode, cache_, hidden_.as<float>(), &kept);
    model_.logits(ops, hidden_.as<float>(), rows_, MatmulMode::kDecode, logits_.as<float>(), &kept);
    gpu_sample(sampling_.args(),
               {.ids = const_cast<int32_t*>(data_.ids().on_gpu),
                .positions = const_cast<int32_t*>(data_.positions()),
                .sequences = const_cast<AttentionSequence*>(data_.sequences().on_gpu),
                .history = history_.as<uint64_t>(),
                .steps = steps_.as<int64_t>(),
                .history_steps = kInFlight,
                .table = gpu_embedding_table(model_.embedding_table()),
                .hidden = hidden_.as<float>()},
               ops.gpu->stream());
  }
}

// By a thread of its own, beside one that queues steps. Nothing where the step before did not leave enough
// memory: some of it may have been given back on the way, for buffers of other sizes.
std::unique_ptr<GpuGraph> GpuDecoder::record() {
  GpuQueue recorder(*ops_.gpu, GpuQueue::Beside::kIt);
  OpContext ops = with_workspace(ops_, graph_workspace_);
  ops.gpu = &recorder;
  std::unique_ptr<GpuGraph> graph;
  graph_workspace_.close();
  try {
    graph = std::make_unique<GpuGraph>(recorder, *ops_.gpu, [&] { queue_step(ops); });
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kOutOfMemory) throw;
  }
  recorder.wait("recording a decoding step");
  return graph;
}

// While a graph is recorded no memory may be taken: a step takes it before. Where there is none, steps stay
// as they are; what was queued of that one is computed again, from the embedding on. Sampling, which moves on
// to the next step, was not: it comes last and takes no memory.
void GpuDecoder::begin_to_record() {
  may_record_ = false;  // again
  try {
    queue_step(with_workspace(ops_, graph_workspace_));
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kOutOfMemory) throw;
    embed_ids();
    return queue_step(ops_);
  }
  recording_ = std::async(std::launch::async, [this] { return record(); });
}

void GpuDecoder::launch(int64_t wanted) {
  if (recording_.valid() && recording_.wait_for(std::chrono::seconds(0)) == std::future_status::ready)
    graph_ = recording_.get();
  if (graph_) {
    graph_->launch();
  } else if (may_record_ && wanted >= kLeastRecorded) {
    begin_to_record();
  } else {
    queue_step(ops_);
  }
  ++launched_;
}

std::span<const int32_t> GpuDecoder::next(int64_t wanted) {
  while (queued() < std::min(wanted, kInFlight)) launch(wanted - queued());
  uint64_t* const words = history_.as<uint64_t>() + taken_ % kInFlight * rows_;
  const auto has_come = [&] {
    for (int64_t row = 0; row < rows_; ++row) {
      const uint64_t word = std::atomic_ref(words[row]).load(std::memory_order_relaxed);
      if (!is_of_step(word, taken_)) return false;
      tokens_[static_cast<size_t>(row)] = token_of(word);
    }
    return true;
  };
  // A queue that is idle has done all steps; one that has failed says so.
  constexpr int kReadsPerQuestion = 4096;
  for (int reads = 1; !has_come(); ++reads) {
    if (reads % kReadsPerQuestion != 0) continue;
    if (ops_.gpu->is_idle("decoding") && !has_come())
      fail(ErrorCode::kInternal, "decoding: step {} ended without a token", taken_);
    std::this_thread::yield();
  }
  ++taken_;
  return tokens_;
}

}  // namespace lowbit
