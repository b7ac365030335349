#include "runtime/layer_stream.h"

#include "base/fail.h"

#include <algorithm>
#include <chrono>

namespace lowbit {

LayerStream::LayerStream(GpuQueue& queue, uint64_t buffer_bytes)
    : queue_(queue),
      copies_(queue, GpuQueue::Beside::kIt),
      turns_{{Turn(queue, copies_), Turn(queue, copies_)}} {
  for (Tensor& buffer : buffers_)
    buffer = Tensor::allocate_on(&queue, DType::kU8, {static_cast<int64_t>(buffer_bytes)});
}

void LayerStream::keep(size_t bytes) {
  Kept kept{.bytes = bytes};
  try {
    if (is_pinned_) kept.pinned = std::make_unique<PinnedMemory>(bytes);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kOutOfMemory) throw;
    is_pinned_ = false;
  }
  if (!kept.pinned) kept.pageable = Tensor::allocate(DType::kU8, {static_cast<int64_t>(bytes)});
  void* const to = kept.pinned ? kept.pinned->as<void>() : kept.pageable.mutable_bytes();
  queue_.queue_copy_out(to, buffer(kept_.size()).bytes(), bytes);
  kept_.push_back(std::move(kept));
}

double LayerStream::begin() {
  queue_.wait("packing the weights");
  const auto start = std::chrono::steady_clock::now();
  const size_t count = std::min(kept_.size(), buffers_.size());
  size_t bytes = 0;
  for (size_t layer = 0; layer < count; ++layer) {
    bring(layer);
    bytes += kept_[layer].bytes;
  }
  copies_.wait("copying layers to the GPU");
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return static_cast<double>(bytes) / std::max(seconds, 1e-9);
}

// A buffer has every second layer; behind the last comes its first again.
size_t LayerStream::next_in_buffer(size_t layer) const {
  return layer + 2 < kept_.size() ? layer + 2 : layer % 2;
}

uint64_t LayerStream::bytes_per_pass() const {
  uint64_t bytes = 0;
  for (size_t layer = 0; layer < kept_.size(); ++layer) {
    if (next_in_buffer(layer) != layer) bytes += kept_[layer].bytes;
  }
  return bytes;
}

void LayerStream::bring(size_t layer) {
  Turn& turn = turns_[layer % 2];
  Kept& kept = kept_[layer];
  turn.left.hold(copies_);
  const void* const from = kept.pinned ? kept.pinned->as<void>() : kept.pageable.bytes();
  copies_.queue_copy_in(buffers_[layer % 2].mutable_bytes(), from, kept.bytes);
  turn.arrived.record();
  turn.holds = layer;
}

void LayerStream::arrive(size_t layer) {
  Turn& turn = turns_[layer % 2];
  if (turn.holds != layer) bring(layer);  // a pass that was broken off left another one
  turn.arrived.hold(queue_);
}

void LayerStream::leave(size_t layer) {
  turns_[layer % 2].left.record();
  const size_t next = next_in_buffer(layer);
  if (next != layer) bring(next);
}

StreamedBlock::StreamedBlock(std::unique_ptr<Block> block, std::shared_ptr<LayerStream> stream, size_t layer)
    : block_(std::move(block)), stream_(std::move(stream)), layer_(layer) {
  stages_ = block_->stages();
  linears_ = block_->linears();
}

void StreamedBlock::run(const StepInput& step, float* hidden) const {
  stream_->arrive(layer_);
  block_->run(step, hidden);
  stream_->leave(layer_);
}

std::unique_ptr<Block> StreamedBlock::moved(const MoveWeight&) const {
  fail(ErrorCode::kInternal, "a streamed layer cannot be moved");
}

void StreamedBlock::prepare(int, const StepInput&, const float*, Activations) const {
  fail(ErrorCode::kInternal, "a streamed layer runs as a whole");
}

void StreamedBlock::finish(int, const StepInput&, ConstActivations, float*, Activations) const {
  fail(ErrorCode::kInternal, "a streamed layer runs as a whole");
}

}  // namespace lowbit
