// A language model: embedding, blocks, final norm, head. Built from a config and named weights; checks all of
// them first. Knows no files and no quantization.
#pragma once

#include "model/block.h"
#include "model/config.h"

#include <memory>

namespace lowbit {

struct Architecture;

class Model {
 public:
  // Errors: kUnsupported (model_type not known; lists those that are), kCorruptFile (config and tensors
  // disagree).
  static Model create(const Json& config, const NamedWeights& weights);

  const ModelConfig& config() const { return config_; }
  int64_t layer_count() const { return static_cast<int64_t>(blocks_.size()); }
  Block& block(int64_t layer) { return *blocks_[static_cast<size_t>(layer)]; }
  const Block& block(int64_t layer) const { return *blocks_[static_cast<size_t>(layer)]; }

  // The norm that reads hidden behind a layer; null where it does not stay in one place.
  const Tensor* norm_behind(int64_t layer) const {
    return layer + 1 < layer_count() ? block(layer + 1).first_norm() : &norm_;
  }
  void set_block(int64_t layer, std::unique_ptr<Block> block) {
    blocks_[static_cast<size_t>(layer)] = std::move(block);
  }
  bool has_fixed_weights() const;  // of all blocks, see there

  const Weight& embedding_table() const { return embedding_; }
  Linear& head() { return head_; }  // shares the embedding's storage when tied
  const Linear& head() const { return head_; }
  bool is_tied() const { return is_tied_; }

  // hidden: [ids.size(), hidden_size]. Ids outside the vocabulary throw kInvalidArgument.
  void embed(const OpContext& ops, const TokenIds& tokens, float* hidden) const;
  // normed: [rows, hidden_size], what the head reads; may be hidden.
  void final_norm(const OpContext& ops, const float* hidden, int64_t rows, Activations normed) const;
  // logits: [rows, vocab_size]; final norm and head. kept: perhaps the same rows.
  void logits(const OpContext& ops, const float* hidden, int64_t rows, MatmulMode mode, float* logits,
              const KeptRows* kept = nullptr) const;

  // What stands around the blocks (embedding, final norm, head) goes elsewhere; tied matrices stay one.
  void move_frame(const MoveWeight& move);
  // The final norm alone: what collecting the inputs of the head needs.
  void move_final_norm(const MoveWeight& move);

  RopeTable rope_table(const OpContext& ops, int64_t positions) const;  // where the operators compute

 private:
  ModelConfig config_;
  std::vector<std::unique_ptr<Block>> blocks_;
  Weight embedding_;
  Tensor norm_;
  Linear head_;
  bool is_tied_ = false;
};

// One row per architecture (registry.cc).
struct Architecture {
  std::string_view model_type;  // of config.json
  ModelConfig (*read_config)(const Json& config);
  std::unique_ptr<Block> (*make_block)(const ModelConfig& config, const NamedWeights& weights, int64_t layer);
  const char* embedding;  // tensor names
  const char* final_norm;
  const char* head;  // module name; used when not tied
};
std::span<const Architecture> architectures();
const Architecture& find_architecture(
    const Json& config);  // by its model_type; kUnsupported names those there are

}  // namespace lowbit
