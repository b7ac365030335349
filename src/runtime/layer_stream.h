// Layers of a model that do not fit into a GPU's memory: their weights, packed as its operators read them,
// stay in this machine's memory and come through two buffers on a queue of their own, each while the layers
// before it compute.
#pragma once

#include "base/gpu_queue.h"
#include "model/block.h"

#include <array>
#include <memory>
#include <vector>

namespace lowbit {

class LayerStream {
 public:
  LayerStream(GpuQueue& queue, uint64_t buffer_bytes);  // the queue that computes; outlives this

  // While loading, for each streamed layer in order: what the queue leaves in its buffer becomes its weights.
  // Takes this machine's memory, pinned where that is to be had.
  const Tensor& buffer(size_t layer) const { return buffers_[layer % 2]; }
  void keep(size_t bytes);
  // Then once: brings the first layers. Returns bytes per second; waits for the queue.
  double begin();

  // Around what is queued for a layer. Layers are run in order, any number of times.
  void arrive(size_t layer);
  void leave(size_t layer);

  uint64_t bytes_per_pass() const;  // that are copied for each run of all layers
  bool is_pinned() const { return is_pinned_; }

 private:
  struct Kept {
    std::unique_ptr<PinnedMemory> pinned;
    Tensor pageable;  // where there is no pinned one
    size_t bytes = 0;
  };
  size_t next_in_buffer(size_t layer) const;
  void bring(size_t layer);

  GpuQueue& queue_;
  std::vector<Kept> kept_;
  std::array<Tensor, 2> buffers_;
  bool is_pinned_ = true;
  GpuQueue copies_;  // behind what it reads and writes: it ends first
  struct Turn {
    explicit Turn(GpuQueue& queue, GpuQueue& copies) : arrived(copies), left(queue) {}
    GpuEvent arrived, left;  // of the layer that the buffer holds, or did last
    size_t holds = SIZE_MAX;
  };
  std::array<Turn, 2> turns_;
};

// A block whose weights come and go.
class StreamedBlock : public Block {
 public:
  // block: its weights lie in the stream's buffer of this layer.
  StreamedBlock(std::unique_ptr<Block> block, std::shared_ptr<LayerStream> stream, size_t layer);

  void run(const StepInput& step, float* hidden) const override;
  bool has_fixed_weights() const override { return false; }

  // Weights that are there only while the block runs can be neither moved nor looked at: kInternal.
  std::unique_ptr<Block> moved(const MoveWeight& move) const override;
  void prepare(int stage, const StepInput& step, const float* hidden, Activations input) const override;
  void finish(int stage, const StepInput& step, ConstActivations input, float* hidden,
              Activations carry) const override;

 private:
  std::unique_ptr<Block> block_;
  std::shared_ptr<LayerStream> stream_;
  size_t layer_;  // among the streamed ones
};

}  // namespace lowbit
