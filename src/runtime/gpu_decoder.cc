#include "runtime/gpu_decoder.h"

namespace lowbit {
namespace {

constexpr int64_t kInFlight = 2;    // steps: while the host looks at one's tokens, the next one runs
constexpr int64_t kPlainSteps = 2;  // before recording pays

OpContext with_workspace(OpContext ops, Workspace& workspace) {
  ops.workspace = &workspace;
  return ops;
}

}  // namespace

GpuDecoder::GpuDecoder(const Model& model, const OpContext& ops, const RopeTable& rope,
                       std::span<const SequenceTokens> batch, KvCache& cache, const SamplingRule& rule,
                       std::span<const SamplingRow> rows)
    : model_(model),
      workspace_(*ops.gpu),
      ops_(with_workspace(ops, workspace_)),
      rope_(rope),
      cache_(cache),
      data_(ops_, batch, cache),
      rows_(data_.tokens()),
      hidden_(workspace_.take(static_cast<size_t>(rows_ * model.config().hidden_size) * sizeof(float))),
      logits_(workspace_.take(static_cast<size_t>(rows_ * model.config().vocab_size) * sizeof(float))),
      step_(workspace_.take(sizeof(int64_t))),
      sampling_(ops_, rule, logits_.as<float>(), model.config().vocab_size, rows),
      history_(static_cast<size_t>(kInFlight * rows_) * sizeof(int32_t)) {
  const int64_t zero = 0;
  ops_.gpu->copy_in(step_.as<void>(), &zero, sizeof zero);
  for (int64_t i = 0; i < kInFlight; ++i) done_.push_back(std::make_unique<GpuEvent>(*ops_.gpu));
}

GpuDecoder::~GpuDecoder() = default;

void GpuDecoder::queue_step() {
  if constexpr (kHasCuda) {
    forward_step(model_, ops_, rope_, data_, MatmulMode::kDecode, cache_, hidden_.as<float>());
    model_.logits(ops_, hidden_.as<float>(), rows_, MatmulMode::kDecode, logits_.as<float>());
    void* const stream = ops_.gpu->stream();
    gpu_sample(sampling_.args(), stream);
    gpu_advance({.best = sampling_.args().best,
                 .seen = sampling_.args().seen,
                 .vocab = sampling_.args().vocab,
                 .ids = const_cast<int32_t*>(data_.ids().on_gpu),
                 .positions = const_cast<int32_t*>(data_.positions()),
                 .sequences = const_cast<AttentionSequence*>(data_.sequences().on_gpu),
                 .history = history_.as<int32_t>(),
                 .step = step_.as<int64_t>(),
                 .count = rows_,
                 .history_steps = kInFlight},
                stream);
  }
}

void GpuDecoder::launch() {
  // A step that waits for layers to be copied takes longer than queueing its kernels: nothing to gain there.
  if (launched_ < kPlainSteps || !model_.has_fixed_weights()) {
    queue_step();
  } else {
    if (!graph_) graph_ = std::make_unique<GpuGraph>(*ops_.gpu, [this] { queue_step(); });
    graph_->launch();
  }
  done_[static_cast<size_t>(launched_++ % kInFlight)]->record();
}

std::span<const int32_t> GpuDecoder::next() {
  // The tokens that were returned last have been read: their place is free.
  while (launched_ < taken_ + kInFlight) launch();
  const int64_t place = taken_++ % kInFlight;
  done_[static_cast<size_t>(place)]->wait("decoding");
  return {history_.as<int32_t>() + place * rows_, static_cast<size_t>(rows_)};
}

}  // namespace lowbit
