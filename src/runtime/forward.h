// Runs ragged batches of tokens through a model, with or without a KV cache that lasts.
#pragma once

#include "model/model.h"

#include <functional>
#include <optional>
#include <span>
#include <vector>

namespace lowbit {

// Keys and values of `sequences` sequences for all layers: per layer and sequence [kv_heads, capacity,
// head_dim].
class KvCache {
 public:
  // Where nothing is read again once all layers have run, one layer's memory serves all of them.
  enum class Layers { kApart, kShared };
  // gpu: in whose memory; null: this machine's.
  KvCache(const ModelConfig& config, int64_t sequences, int64_t capacity, DType dtype,
          GpuQueue* gpu = nullptr, Layers layers = Layers::kApart);

  static uint64_t bytes_per_token(const ModelConfig& config, DType dtype);  // of all layers

  int64_t capacity() const { return capacity_; }
  int64_t kv_heads() const { return kv_heads_; }
  DType dtype() const { return dtype_; }
  int64_t length(int64_t sequence) const { return lengths_[static_cast<size_t>(sequence)]; }
  void set_length(int64_t sequence, int64_t length) { lengths_[static_cast<size_t>(sequence)] = length; }
  size_t byte_count() const { return storage_.byte_count(); }
  // Of a sequence's first layer; the next layer's stand layer_bytes() behind.
  void* keys(int64_t sequence);
  void* values(int64_t sequence);
  int64_t layer_bytes() const { return layers_ == Layers::kShared ? 0 : sequences_ * 2 * part_bytes_; }

 private:
  Tensor storage_;
  int64_t sequences_, capacity_, kv_heads_, part_bytes_;  // part: keys or values of one layer and sequence
  DType dtype_;
  Layers layers_;
  std::vector<int64_t> lengths_;
};

// New tokens of one sequence of the cache.
struct SequenceTokens {
  int64_t sequence = 0;
  std::span<const int32_t> ids;
  std::span<const int32_t> types = {};  // of encoders, see Model::embed; of all sequences of a step or none
};

// Rows of prompts that are computed at once: enough to keep the matrix units busy, few enough for the
// activations to stay small.
constexpr int64_t kPrefillRows = 2048;
// The same on a GPU, which has many units to keep busy.
constexpr int64_t kGpuPrefillRows = 16384;

// What a step's operators read beside weights, in one piece of memory for one copy to where they compute.
class StepData {
 public:
  // New tokens of sequences of the cache, in its next positions.
  StepData(const OpContext& ops, std::span<const SequenceTokens> batch, KvCache& cache);
  // Others, as many of as many sequences, in the same memory.
  void set(const OpContext& ops, std::span<const SequenceTokens> batch, KvCache& cache);
  // What it is now, with the same memory on the GPU, which it must not outlive: for another thread, while
  // this one is set.
  StepData view() const;

  int64_t tokens() const { return static_cast<int64_t>(ids_.size()); }
  TokenIds ids() const { return {ids_, ids_there_}; }
  const int32_t* positions() const {
    return positions_there_ ? positions_there_ : positions_.data();
  }  // where they compute
  const int32_t* types() const { return types_.empty() ? nullptr : types_.data(); }
  AttentionBatch sequences() const { return {sequences_, sequences_there_, arrivals_there_}; }

 private:
  StepData() = default;

  std::vector<AttentionSequence> sequences_;
  std::vector<int32_t> ids_, positions_, types_;
  std::optional<Scratch> there_;
  const AttentionSequence* sequences_there_ = nullptr;
  const int32_t *ids_there_ = nullptr, *positions_there_ = nullptr;
  int32_t* arrivals_there_ = nullptr;
};

// What a GPU's memory is taken for by whoever runs so many tokens.
GpuPurpose forward_purpose(int64_t tokens);

// All blocks; hidden: [tokens, hidden_size], the tokens' embeddings before. kept: where they leave their rows
// to each other, and the last one to the head, or null. The cache's lengths are not changed.
void run_blocks(const Model& model, const OpContext& ops, const RopeTables& rope, const StepData& data,
                MatmulMode mode, const KvCache& cache, float* hidden, KeptRows* kept = nullptr);

// Appends the tokens to the cache and leaves the last block's output in `hidden` [sum of ids, hidden_size],
// rows in the order of `batch`. The rope tables must cover all positions.
void forward(const Model& model, const OpContext& ops, const RopeTables& rope,
             std::span<const SequenceTokens> batch, MatmulMode mode, KvCache& cache, float* hidden);

// Batches of whole token windows without history, as evaluation needs them: calls `rows` for each window with
// its last hidden states [window size, hidden_size]. Windows are taken `batch_size` at a time. types: of
// their tokens, or none.
void forward_windows(const Model& model, const OpContext& ops, std::span<const std::vector<int32_t>> windows,
                     int64_t batch_size, DType cache_dtype,
                     const std::function<void(size_t window, const float* hidden)>& rows,
                     std::span<const std::vector<int32_t>> types = {});

}  // namespace lowbit
