// The pre-norm decoder block that Llama, Mistral, Qwen2 and Qwen3 share: grouped-query attention with RoPE
// and a SwiGLU MLP. What differs (biases, norms of q and k, windows) is in ModelConfig.
#pragma once

#include "model/block.h"
#include "model/config.h"

namespace lowbit {

// Takes tensors from named weights and checks them against the config.
class WeightReader {
 public:
  explicit WeightReader(const NamedWeights& weights) : weights_(weights) {}

  // Each throws kCorruptFile naming the tensor, the shape found and the shape expected from config.json.
  Weight matrix(const std::string& name, int64_t out_features, int64_t in_features) const;
  Tensor vector(const std::string& name, int64_t length) const;  // as F32, which holds the others exactly
  bool has(std::string_view name) const { return weights_.find(name) != weights_.end(); }

  // "<module>.weight" and, where the file has one, "<module>.bias". A bias that is required but absent is an
  // error.
  Linear linear(const std::string& module, int64_t out_features, int64_t in_features, bool needs_bias) const;

 private:
  const NamedWeights& weights_;
};

class DecoderBlock : public Block {
 public:
  // prefix: "model.layers.0."
  DecoderBlock(const ModelConfig& config, const WeightReader& weights, int64_t layer,
               const std::string& prefix);

  std::unique_ptr<Block> moved(const MoveWeight& move) const override;
  const Tensor* first_norm() const override { return &input_norm_; }
  void prepare(int stage, const StepInput& step, const float* hidden, Activations input) const override;
  void finish(int stage, const StepInput& step, ConstActivations input, float* hidden,
              Activations carry) const override;
  // Decoding on a GPU: the same in fewer kernels.
  void run(const StepInput& step, float* hidden) const override;

 private:
  void attend_products(const StepInput& step, Activations q, Activations k, Activations v,
                       Activations out) const;
  void run_fused(const StepInput& step, float* hidden) const;
  void attend(const StepInput& step, ConstActivations input, Activations out) const;
  void add_product(const StepInput& step, const Linear& linear, ConstActivations input, float* hidden) const;

  int64_t hidden_size_, intermediate_size_;
  AttentionShape attention_;
  float epsilon_;
  Tensor input_norm_, post_attention_norm_;
  Tensor q_norm_, k_norm_;  // [head_dim], or empty
};

// For the architectures whose tensors are named "model.layers.N.": what their rows in the registry point to.
std::unique_ptr<Block> make_decoder_block(const ModelConfig& config, const NamedWeights& weights,
                                          int64_t layer);

}  // namespace lowbit
