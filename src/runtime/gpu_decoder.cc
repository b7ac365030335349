#include "runtime/gpu_decoder.h"

#include "base/fail.h"
#include "ops/fused.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

namespace lowbit {
namespace {

constexpr int64_t kInFlight = 2;  // steps: while the host looks at one's tokens, the next one runs

OpContext with_workspace(OpContext ops, Workspace& workspace) {
  ops.workspace = &workspace;
  return ops;
}

// Some token for each sequence, until begin() says which.
std::vector<SequenceTokens> any_tokens(std::span<const size_t> sequences) {
  static constexpr int32_t kAny = 0;
  std::vector<SequenceTokens> batch;
  for (const size_t i : sequences) batch.push_back({static_cast<int64_t>(i), {&kAny, 1}});
  return batch;
}

}  // namespace

GpuDecoder::GpuDecoder(const Model& model, const OpContext& ops, const RopeTables& rope,
                       std::span<const size_t> sequences, KvCache& cache, const SamplingRule& rule,
                       int64_t steps)
    : model_(model),
      ops_(ops),
      graph_workspace_(*ops.workspace),
      rope_(rope),
      cache_(cache),
      data_(ops_, any_tokens(sequences), cache),
      rows_(data_.tokens()),
      any_ids_(static_cast<size_t>(rows_)),
      hidden_(ops_.workspace->take(static_cast<size_t>(rows_ * model.config().hidden_size) * sizeof(float))),
      logits_(ops_.workspace->take(static_cast<size_t>(rows_ * model.config().vocab_size) * sizeof(float))),
      steps_(ops_.workspace->take(static_cast<size_t>(rows_) * sizeof(int64_t))),
      sampling_(ops_, rule, logits_.as<float>(), model.config().vocab_size, rows_),
      history_(*ops_.gpu, kInFlight * rows_),
      tokens_(static_cast<size_t>(rows_)) {
  // A step that waits for layers to be copied takes longer than queueing its kernels.
  if (steps >= kLeastRecorded && model.has_fixed_weights())
    recording_ = std::async(std::launch::async, [this, data = data_.view()] { return record(data); });
}

// Steps that nobody took still write to what ends here. What failed in them is told to whoever waits next.
GpuDecoder::~GpuDecoder() {
  if (recording_.valid()) recording_.wait();
  try {
    ops_.gpu->wait("decoding");
  } catch (const Error&) {
  }
}

void GpuDecoder::begin(std::span<const SequenceTokens> batch, std::span<const SamplingRow> rows) {
  LOWBIT_ASSERT(static_cast<int64_t>(batch.size()) == rows_);
  data_.set(ops_, batch, cache_);
  sampling_.begin(ops_, rows);
  ops_.gpu->clear(steps_.as<void>(), static_cast<size_t>(rows_) * sizeof(int64_t));
  embed_first();
}

void GpuDecoder::embed_first() {
  if (model_.has_plain_embedding()) model_.embed(ops_, data_.ids(), data_.positions(), hidden_.as<float>());
}

void GpuDecoder::queue_step(const OpContext& ops, const StepData& data) const {
  if constexpr (kHasCuda) {
    const bool is_plain = model_.has_plain_embedding();
    if (!is_plain) model_.embed(ops, {any_ids_, data.ids().on_gpu}, data.positions(), hidden_.as<float>());
    KeptRows kept(ops, rows_, model_.config().hidden_size);
    run_blocks(model_, ops, rope_, data, MatmulMode::kDecode, cache_, hidden_.as<float>(), &kept);
    model_.logits(ops, hidden_.as<float>(), rows_, MatmulMode::kDecode, logits_.as<float>(), &kept);
    gpu_sample(sampling_.args(),
               {.ids = const_cast<int32_t*>(data.ids().on_gpu),
                .positions = const_cast<int32_t*>(data.positions()),
                .sequences = const_cast<AttentionSequence*>(data.sequences().on_gpu),
                .history = history_.data(),
                .steps = steps_.as<int64_t>(),
                .history_steps = kInFlight,
                .table = gpu_embedding_table(model_.embedding_table()),
                .hidden = is_plain ? hidden_.as<float>() : nullptr},
               ops.gpu->stream());
  }
}

// By a thread of its own, beside one that queues other work and begins a batch: it must not read data_.
// Nothing where there is not enough memory.
std::unique_ptr<GpuGraph> GpuDecoder::record(const StepData& data) {
  GpuQueue recorder(*ops_.gpu, GpuQueue::Beside::kIt);
  OpContext ops = with_workspace(ops_, graph_workspace_);
  ops.gpu = &recorder;
  std::unique_ptr<GpuGraph> graph;
  try {
    graph = std::make_unique<GpuGraph>(recorder, *ops_.gpu, [&] { queue_step(ops, data); });
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kOutOfMemory) throw;
    graph_workspace_.release();
  }
  recorder.wait("recording a decoding step");
  return graph;
}

void GpuDecoder::launch() {
  if (recording_.valid() && recording_.wait_for(std::chrono::seconds(0)) == std::future_status::ready)
    graph_ = recording_.get();
  if (!graph_) {
    try {
      queue_step(ops_, data_);
    } catch (const Error& error) {
      // What is being recorded may hold the memory. What was queued of the step is computed again, from the
      // embedding on; sampling, which moves on to the next one, was not: it comes last and takes no memory.
      // Where the embedding is more than a row of a table, the step begins with it.
      if (error.code() != ErrorCode::kOutOfMemory || !recording_.valid()) throw;
      graph_ = recording_.get();
      embed_first();
      if (!graph_) queue_step(ops_, data_);
    }
  }
  if (graph_) graph_->launch();
  ++launched_;
}

std::span<const int32_t> GpuDecoder::next(int64_t wanted) {
  while (queued() < std::min(wanted, kInFlight)) launch();
  uint64_t* const words = history_.data() + taken_ % kInFlight * rows_;
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
