#include "model/decoder_block.h"

#include "base/fail.h"
#include "ops/fused.h"

#include <algorithm>
#include <cmath>

namespace lowbit {
namespace {

enum LinearIndex { kQ, kK, kV, kO, kGate, kUp, kDown };
enum StageIndex { kQkvStage, kOStage, kGateUpStage, kDownStage };

const Tensor* bias_of(const Linear& linear) { return linear.bias.empty() ? nullptr : &linear.bias; }

}  // namespace

Weight WeightReader::matrix(const std::string& name, int64_t out, int64_t in) const {
  const auto found = weights_.find(name);
  if (found == weights_.end()) {
    fail(ErrorCode::kCorruptFile, "the tensor {} is missing, config.json asks for [{}, {}]", name, out, in);
  }
  if (const Tensor* dense = std::get_if<Tensor>(&found->second)) {
    if (!is_floating(dense->dtype())) {
      fail(ErrorCode::kCorruptFile, "{} is {}, expected a floating type", name, dtype_name(dense->dtype()));
    }
    if (dense->shape() != Shape{out, in}) {
      fail(ErrorCode::kCorruptFile, "{} has shape {}, config.json asks for [{}, {}]", name,
           shape_text(dense->shape()), out, in);
    }
  } else if (out_features(found->second) != out || in_features(found->second) != in) {
    fail(ErrorCode::kCorruptFile, "{} is [{}, {}], config.json asks for [{}, {}]", name,
         out_features(found->second), in_features(found->second), out, in);
  }
  return found->second;
}

Tensor WeightReader::vector(const std::string& name, int64_t length) const {
  const auto found = weights_.find(name);
  const Tensor* tensor = found == weights_.end() ? nullptr : std::get_if<Tensor>(&found->second);
  if (!tensor)
    fail(ErrorCode::kCorruptFile, "the tensor {} is missing, config.json asks for [{}]", name, length);
  if (!is_floating(tensor->dtype()) || tensor->shape() != Shape{length}) {
    fail(ErrorCode::kCorruptFile, "{} is {} {}, config.json asks for a floating [{}]", name,
         dtype_name(tensor->dtype()), shape_text(tensor->shape()), length);
  }
  return converted(*tensor, DType::kF32);
}

Linear WeightReader::linear(const std::string& module, int64_t out, int64_t in, bool needs_bias) const {
  Linear linear{module, matrix(module + ".weight", out, in), {}};
  if (needs_bias || has(module + ".bias")) linear.bias = vector(module + ".bias", out);
  return linear;
}

DecoderBlock::DecoderBlock(const ModelConfig& config, const WeightReader& weights, int64_t layer,
                           const std::string& prefix)
    : hidden_size_(config.hidden_size),
      intermediate_size_(config.intermediate_size),
      epsilon_(config.rms_norm_eps) {
  attention_ = {.heads = config.heads,
                .kv_heads = config.kv_heads,
                .head_dim = config.head_dim,
                .scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim)),
                .window = config.windows[static_cast<size_t>(layer)]};
  const int64_t q_width = config.heads * config.head_dim, kv_width = config.kv_heads * config.head_dim;
  const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
  linears_ = {weights.linear(attention + "q_proj", q_width, hidden_size_, config.qkv_bias),
              weights.linear(attention + "k_proj", kv_width, hidden_size_, config.qkv_bias),
              weights.linear(attention + "v_proj", kv_width, hidden_size_, config.qkv_bias),
              weights.linear(attention + "o_proj", hidden_size_, q_width, config.o_bias),
              weights.linear(mlp + "gate_proj", intermediate_size_, hidden_size_, config.mlp_bias),
              weights.linear(mlp + "up_proj", intermediate_size_, hidden_size_, config.mlp_bias),
              weights.linear(mlp + "down_proj", hidden_size_, intermediate_size_, config.mlp_bias)};
  input_norm_ = weights.vector(prefix + "input_layernorm.weight", hidden_size_);
  post_attention_norm_ = weights.vector(prefix + "post_attention_layernorm.weight", hidden_size_);
  if (config.qk_norm) {
    q_norm_ = weights.vector(attention + "q_norm.weight", config.head_dim);
    k_norm_ = weights.vector(attention + "k_norm.weight", config.head_dim);
  }
  stages_ = {{"qkv", {kQ, kK, kV}, hidden_size_, true, q_width},
             {"o", {kO}, q_width, false, 0},
             {"gate_up", {kGate, kUp}, hidden_size_, true, intermediate_size_},
             {"down", {kDown}, intermediate_size_, false, 0}};
}

std::unique_ptr<Block> DecoderBlock::moved(const MoveWeight& move) const {
  auto there = std::make_unique<DecoderBlock>(*this);
  for (Linear& linear : there->linears_)
    linear = {linear.module, move(linear.weight), lowbit::moved(linear.bias, move)};
  for (Tensor* vector : {&there->input_norm_, &there->post_attention_norm_, &there->q_norm_, &there->k_norm_})
    *vector = lowbit::moved(*vector, move);
  return there;
}

void DecoderBlock::prepare(int stage, const StepInput& step, const float* hidden, Activations input) const {
  const Tensor& norm = stage == kQkvStage ? input_norm_ : post_attention_norm_;
  rms_norm(*step.ops, hidden, step.tokens, norm, epsilon_, input);
}

void DecoderBlock::finish(int stage, const StepInput& step, ConstActivations input, float* hidden,
                          Activations carry) const {
  switch (stage) {
    case kQkvStage:
      attend(step, input, carry);
      return;
    case kOStage:
      add_product(step, linears_[kO], input, hidden);
      return;
    case kGateUpStage: {
      const int64_t count = step.tokens * intermediate_size_;
      const ActivationScratch scratch(*step.ops, count);
      const Activations up = scratch.rows();
      const MatmulOutput outputs[] = {{&linears_[kGate].weight, bias_of(linears_[kGate]), carry},
                                      {&linears_[kUp].weight, bias_of(linears_[kUp]), up}};
      matmul(*step.ops, input, step.tokens, outputs, step.mode);
      swiglu(*step.ops, carry, up, count, carry);
      return;
    }
    case kDownStage:
      add_product(step, linears_[kDown], input, hidden);
      return;
    default:
      fail(ErrorCode::kInternal, "a decoder block has no stage {}", stage);
  }
}

void DecoderBlock::attend(const StepInput& step, ConstActivations input, Activations out) const {
  const int64_t q_width = attention_.heads * attention_.head_dim,
                kv_width = attention_.kv_heads * attention_.head_dim;
  const ActivationScratch scratch(*step.ops, step.tokens * (q_width + 2 * kv_width));
  const Activations q = scratch.rows();
  const Activations k = q.from(step.tokens * q_width), v = k.from(step.tokens * kv_width);
  const MatmulOutput outputs[] = {{&linears_[kQ].weight, bias_of(linears_[kQ]), q},
                                  {&linears_[kK].weight, bias_of(linears_[kK]), k},
                                  {&linears_[kV].weight, bias_of(linears_[kV]), v}};
  matmul(*step.ops, input, step.tokens, outputs, step.mode);
  attend_products(step, q, k, v, out);
}

void DecoderBlock::attend_products(const StepInput& step, Activations q, Activations k, Activations v,
                                   Activations out) const {
  if (!q_norm_.empty()) {
    rms_norm(*step.ops, q, step.tokens * attention_.heads, q_norm_, epsilon_, q);
    rms_norm(*step.ops, k, step.tokens * attention_.kv_heads, k_norm_, epsilon_, k);
  }
  AttentionShape shape = attention_;
  shape.cache_dtype = step.cache_dtype;
  shape.layer_offset = step.layer_offset;
  rope_attention(*step.ops, shape, step.sequences, step.positions, *step.rope, q, k, v, out,
                 step.mode == MatmulMode::kDecode ? AttentionMode::kDecode : AttentionMode::kPrefill);
}

void DecoderBlock::run(const StepInput& step, float* hidden) const {
  if (step.ops->gpu && step.mode == MatmulMode::kDecode) {
    run_fused(step, hidden);
  } else {
    Block::run(step, hidden);
  }
}

void DecoderBlock::run_fused(const StepInput& step, float* hidden) const {
  const int64_t q_width = attention_.heads * attention_.head_dim,
                kv_width = attention_.kv_heads * attention_.head_dim;
  const ActivationScratch scratch(*step.ops, step.tokens * 2 * (q_width + kv_width));
  const Activations q = scratch.rows();
  const Activations k = q.from(step.tokens * q_width), v = k.from(step.tokens * kv_width);
  const Activations attended = v.from(step.tokens * kv_width);
  const MatmulOutput outputs[] = {{&linears_[kQ].weight, bias_of(linears_[kQ]), q},
                                  {&linears_[kK].weight, bias_of(linears_[kK]), k},
                                  {&linears_[kV].weight, bias_of(linears_[kV]), v}};
  matmul_normed(*step.ops, {hidden, &input_norm_, epsilon_, step.kept}, step.tokens, outputs, step.mode);
  attend_products(step, q, k, v, attended);
  const MatmulOutput o{.weight = &linears_[kO].weight,
                       .bias = bias_of(linears_[kO]),
                       .add_to = hidden,
                       .next_norm = &post_attention_norm_,
                       .kept = step.kept};
  matmul(*step.ops, attended, step.tokens, std::span(&o, 1), step.mode);
  gated_mlp(*step.ops, {hidden, &post_attention_norm_, epsilon_, step.kept}, step.tokens,
            {.weight = &linears_[kGate].weight, .bias = bias_of(linears_[kGate])},
            {.weight = &linears_[kUp].weight, .bias = bias_of(linears_[kUp])},
            {.weight = &linears_[kDown].weight,
             .bias = bias_of(linears_[kDown]),
             .add_to = hidden,
             .next_norm = step.next_norm,
             .kept = step.kept},
            step.mode);
}

void DecoderBlock::add_product(const StepInput& step, const Linear& linear, ConstActivations input,
                               float* hidden) const {
  const ActivationScratch product(*step.ops, step.tokens * hidden_size_);
  const MatmulOutput output{&linear.weight, bias_of(linear), product.rows(), hidden};
  matmul(*step.ops, input, step.tokens, std::span(&output, 1), step.mode);
}

std::unique_ptr<Block> make_decoder_block(const ModelConfig& config, const NamedWeights& weights,
                                          int64_t layer) {
  return std::make_unique<DecoderBlock>(config, WeightReader(weights), layer,
                                        fmt::format("model.layers.{}.", layer));
}

}  // namespace lowbit
