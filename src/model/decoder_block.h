// The block of all models here: attention and an MLP, each with its norms and residual. What differs is in
// DecoderParts, which an architecture fills in; an encoder's attention is not causal.
#pragma once

#include "model/config.h"
#include "model/norm.h"
#include "model/weight_reader.h"

namespace lowbit {

// The norms around attention or the MLP; usually the first alone.
struct SublayerNorms {
  Norm input;     // of hidden, for the linears; without one they read hidden itself
  Norm output;    // of what is added to hidden
  Norm residual;  // of hidden after that

  SublayerNorms moved(const MoveWeight& move) const {
    return {input.moved(move), output.moved(move), residual.moved(move)};
  }
};

struct DecoderParts {
  // q, k, v; or one that makes all three: first q of all heads, then k, then v, or by head, q, k, v of each
  // in turn.
  std::vector<Linear> qkv;
  bool is_qkv_by_head = false;
  Linear o;
  std::vector<Linear> up;  // gate and up; or one that makes both, gate first; or up alone, not gated
  bool is_gated = true;
  Linear down;
  Activation activation = Activation::kSilu;
  SublayerNorms attention_norms, mlp_norms;
  Norm q_norm, k_norm;  // of each head, before RoPE
  AttentionShape attention;
  Tensor slopes;  // F32 [heads]: ALiBi, see AttentionShape
  bool has_rope = true;
  bool is_parallel = false;  // attention and MLP read the same hidden state
};

class DecoderBlock : public Block {
 public:
  DecoderBlock(const ModelConfig& config, DecoderParts parts);

  std::unique_ptr<Block> moved(const MoveWeight& move) const override;
  const Tensor* first_norm() const override {
    return is_llama_like_ ? &attention_norms_.input.weight : nullptr;
  }
  Norm* input_norm(int stage) override;
  void prepare(int stage, const StepInput& step, const float* hidden, Activations input) const override;
  void finish(int stage, const StepInput& step, ConstActivations input, float* hidden,
              Activations carry) const override;
  // Decoding on a GPU what is as in Llama: the same in fewer kernels.
  void run(const StepInput& step, float* hidden) const override;

 private:
  enum class Part { kQkv, kO, kUp, kDown };

  Part part_of(int stage) const;
  std::span<const Linear> qkv() const { return {linears_.data(), o_}; }
  std::span<const Linear> up() const { return {linears_.data() + o_ + 1, down_ - o_ - 1}; }
  void attend(const StepInput& step, ConstActivations input, Activations out) const;
  void attend_products(const StepInput& step, Activations q, Activations k, Activations v,
                       Activations out) const;
  void activate_up(const StepInput& step, ConstActivations input, Activations out) const;
  void run_fused(const StepInput& step, float* hidden) const;
  void add_product(const StepInput& step, const Linear& linear, const SublayerNorms& norms,
                   ConstActivations input, float* hidden) const;

  int64_t hidden_size_, intermediate_size_;
  size_t o_, down_;  // linears_: qkv, o, up, down
  bool is_qkv_by_head_, is_gated_, has_rope_, is_parallel_;
  Activation activation_;
  SublayerNorms attention_norms_, mlp_norms_;
  Norm q_norm_, k_norm_;
  AttentionShape attention_;
  Tensor slopes_;
  // q, k, v, gate and up apart, RMS norms before attention and the MLP alone, one behind the other, SwiGLU.
  bool is_llama_like_;
};

// Heads, scale and window of a layer.
AttentionShape attention_shape(const ModelConfig& config, int64_t layer);

// q, k, v, o, gate, up and down of a layer under Llama's names, and its attention: all parts but the norms.
DecoderParts llama_parts(const ModelConfig& config, const WeightReader& layer_weights, int64_t layer);

// For the architectures that are as Llama but for what ModelConfig says: what their rows in the registry
// point to.
std::unique_ptr<Block> make_decoder_block(const ModelConfig& config, const WeightReader& weights,
                                          int64_t layer);

}  // namespace lowbit
