// A language model or encoder: embedding, blocks, last norm, head. Built from a config and named weights;
// checks all of them first. Knows no files and no quantization.
#pragma once

#include "model/block.h"
#include "model/config.h"
#include "model/weight_reader.h"

#include <memory>
#include <optional>

namespace lowbit {

struct Architecture;

// A linear layer and what its output goes through, on the way to a head.
struct HeadTransform {
  Linear linear;  // [hidden_size, hidden_size]
  Activation activation = Activation::kGelu;
};

// What stands around the blocks, but for the head.
struct Frame {
  Weight embedding;  // [vocab, embedding_width]
  float embedding_scale = 1;
  std::optional<Weight> project_in;  // [hidden_size, embedding_width]
  Tensor positions;  // learned ones that are added, [positions + position_offset, hidden_size], or empty
  int64_t position_offset = 0;  // row of position 0
  Tensor token_types;           // learned ones that are added, [token_types, hidden_size], or empty
  Norm embedding_norm;          // mostly none
  std::optional<HeadTransform> transform;  // before the final norm
  Norm final_norm;
  std::optional<Weight> project_out;  // [embedding_width, hidden_size]
};

class Model {
 public:
  // Errors: kUnsupported (model_type not known; lists those that are), kCorruptFile (config and tensors
  // disagree).
  static Model create(const Json& config, const NamedWeights& weights);

  const ModelConfig& config() const { return config_; }
  int64_t layer_count() const { return static_cast<int64_t>(blocks_.size()); }
  Block& block(int64_t layer) { return *blocks_[static_cast<size_t>(layer)]; }
  const Block& block(int64_t layer) const { return *blocks_[static_cast<size_t>(layer)]; }

  // The RMS norm that reads hidden behind a layer; null where there is none, or not in one place.
  const Tensor* norm_behind(int64_t layer) const {
    if (layer + 1 < layer_count()) return block(layer + 1).first_norm();
    return has_plain_head_input() ? &frame_.final_norm.weight : nullptr;
  }
  void set_block(int64_t layer, std::unique_ptr<Block> block) {
    blocks_[static_cast<size_t>(layer)] = std::move(block);
  }
  bool has_fixed_weights() const;  // of all blocks, see there

  const Weight& embedding_table() const { return frame_.embedding; }
  bool has_plain_embedding() const;  // hidden begins as a row of the table
  Linear& head() { return head_; }   // shares the embedding's storage when tied
  const Linear& head() const { return head_; }
  bool has_head() const { return config_.head_kind != HeadKind::kNone; }
  int64_t head_outputs() const { return has_head() ? out_features(head_.weight) : 0; }  // ids or classes
  // Modules around the blocks that are linear layers, and stay dense: those before the head, and the head.
  std::vector<std::string> frame_linears() const;
  bool is_tied() const { return config_.tie_word_embeddings; }
  int64_t head_width() const { return config_.embedding_width; }

  // hidden: [tokens, hidden_size], the first block's input. positions: of the tokens, where the operators
  // compute. types: [tokens] of a model that has them, in this machine's memory, null: all 0. Ids outside the
  // vocabulary, and positions and types that were not learned, throw kInvalidArgument.
  void embed(const OpContext& ops, const TokenIds& tokens, const int32_t* positions, float* hidden,
             const int32_t* types = nullptr) const;
  // input: [rows, head_width], what the head reads; without a head, of a sequence's first row, what such
  // models call its pooled output.
  void head_input(const OpContext& ops, const float* hidden, int64_t rows, Activations input) const;
  // logits: [rows, head_outputs]; head_input and head. kept: perhaps the same rows.
  void logits(const OpContext& ops, const float* hidden, int64_t rows, MatmulMode mode, float* logits,
              const KeptRows* kept = nullptr) const;

  // What stands around the blocks goes elsewhere; tied matrices stay one.
  void move_frame(const MoveWeight& move);
  // Those parts alone that stand between the blocks and the head's product.
  void move_head_input(const MoveWeight& move);

  RopeTables rope_tables(const OpContext& ops, int64_t positions) const;  // where the operators compute

 private:
  bool has_plain_head_input() const;  // an RMS norm, and nothing else
  void add_token_types(const OpContext& ops, const int32_t* types, int64_t count, float* hidden) const;

  ModelConfig config_;
  std::vector<std::unique_ptr<Block>> blocks_;
  Frame frame_;
  Linear head_;
};

// One row per architecture (registry.cc). Names of tensors are behind `base`, but for the head's; files of
// the model without its head leave `base` out.
struct Architecture {
  std::string_view model_type;  // of config.json
  ModelConfig (*read_config)(const Json& config);
  Frame (*make_frame)(const ModelConfig& config, const WeightReader& weights);
  std::unique_ptr<Block> (*make_block)(const ModelConfig& config, const WeightReader& weights, int64_t layer);
  std::string_view base;       // "model."
  std::string_view embedding;  // "embed_tokens.weight"
  const char* head;            // module name; used when not tied
  bool has_conv1d = false;     // its blocks have no other linears than Conv1D
  // A head that is not simply `head`, or is the embedding; it may be none.
  Linear (*make_head)(const ModelConfig& config, const WeightReader& weights, const Frame& frame) = nullptr;
};
std::span<const Architecture> architectures();
// By its model_type; kUnsupported names those there are.
const Architecture& find_architecture(const Json& config);
// Whether the dense weight of a linear stands as [in, out] in files of such a model.
bool is_conv1d(const Json& config, std::string_view module);

// The frame of Llama and its relatives.
Frame make_decoder_frame(const ModelConfig& config, const WeightReader& weights);

}  // namespace lowbit
