#include "model/decoder_block.h"

#include "base/fail.h"
#include "ops/fused.h"

#include <cmath>

namespace lowbit {
namespace {

// Where is_llama_like_ says so.
enum LinearIndex { kQ, kK, kV, kO, kGate, kUp, kDown };

bool is_rms_before(const SublayerNorms& norms) {
  return norms.input.is_rms() && norms.output.is_none() && norms.residual.is_none();
}

const Tensor* bias_of(const Linear& linear) { return linear.bias.empty() ? nullptr : &linear.bias; }

}  // namespace

DecoderBlock::DecoderBlock(const ModelConfig& config, DecoderParts parts)
    : hidden_size_(config.hidden_size),
      intermediate_size_(config.intermediate_size),
      o_(parts.qkv.size()),
      down_(o_ + 1 + parts.up.size()),
      is_qkv_by_head_(parts.is_qkv_by_head),
      is_gated_(parts.is_gated),
      has_rope_(parts.has_rope),
      is_parallel_(parts.is_parallel),
      activation_(parts.activation),
      attention_norms_(std::move(parts.attention_norms)),
      mlp_norms_(std::move(parts.mlp_norms)),
      q_norm_(std::move(parts.q_norm)),
      k_norm_(std::move(parts.k_norm)),
      attention_(parts.attention),
      slopes_(std::move(parts.slopes)),
      is_llama_like_(parts.qkv.size() == 3 && parts.up.size() == 2 && is_gated_ && !is_parallel_ &&
                     activation_ == Activation::kSilu && is_rms_before(attention_norms_) &&
                     is_rms_before(mlp_norms_)) {
  auto append = [&](Linear& linear) {
    linears_.push_back(std::move(linear));
    return static_cast<int>(linears_.size()) - 1;
  };
  std::vector<int> qkv, up;
  for (Linear& linear : parts.qkv) qkv.push_back(append(linear));
  const int o = append(parts.o);
  for (Linear& linear : parts.up) up.push_back(append(linear));
  const int down = append(parts.down);
  const int64_t q_width = attention_.heads * attention_.head_dim;
  const char* up_name = is_gated_ ? "gate_up" : "up";
  if (is_parallel_) {
    stages_ = {{up_name, up, hidden_size_, true, intermediate_size_},
               {"down", {down}, intermediate_size_, false, hidden_size_},
               {"qkv", qkv, hidden_size_, false, q_width},
               {"o", {o}, q_width, false, 0}};
  } else {
    stages_ = {{"qkv", qkv, hidden_size_, true, q_width},
               {"o", {o}, q_width, false, 0},
               {up_name, up, hidden_size_, true, intermediate_size_},
               {"down", {down}, intermediate_size_, false, 0}};
  }
}

std::unique_ptr<Block> DecoderBlock::moved(const MoveWeight& move) const {
  auto there = std::make_unique<DecoderBlock>(*this);
  for (Linear& linear : there->linears_)
    linear = {linear.module, move(linear.weight), lowbit::moved(linear.bias, move)};
  there->attention_norms_ = attention_norms_.moved(move);
  there->mlp_norms_ = mlp_norms_.moved(move);
  there->q_norm_ = q_norm_.moved(move);
  there->k_norm_ = k_norm_.moved(move);
  there->slopes_ = lowbit::moved(slopes_, move);
  return there;
}

DecoderBlock::Part DecoderBlock::part_of(int stage) const {
  constexpr Part kOrder[] = {Part::kQkv, Part::kO, Part::kUp, Part::kDown};
  return kOrder[is_parallel_ ? (stage + 2) % 4 : stage];
}

Norm* DecoderBlock::input_norm(int stage) {
  // Attention and an MLP beside it may share a norm, and one of them gets its output as a carry.
  if (is_parallel_ || !stages_[static_cast<size_t>(stage)].reads_hidden) return nullptr;
  Norm& norm = (part_of(stage) == Part::kQkv ? attention_norms_ : mlp_norms_).input;
  return norm.is_none() ? nullptr : &norm;
}

void DecoderBlock::prepare(int stage, const StepInput& step, const float* hidden, Activations input) const {
  const SublayerNorms& norms = part_of(stage) == Part::kQkv ? attention_norms_ : mlp_norms_;
  apply_norm(*step.ops, norms.input, hidden, step.tokens, hidden_size_, input);
}

void DecoderBlock::finish(int stage, const StepInput& step, ConstActivations input, float* hidden,
                          Activations carry) const {
  switch (part_of(stage)) {
    case Part::kQkv:
      return attend(step, input, carry);
    case Part::kO:
      return add_product(step, linears_[o_], attention_norms_, input, hidden);
    case Part::kUp:
      return activate_up(step, input, carry);
    case Part::kDown:
      if (is_parallel_)
        apply_norm(*step.ops, attention_norms_.input, hidden, step.tokens, hidden_size_, carry);
      return add_product(step, linears_[down_], mlp_norms_, input, hidden);
  }
}

void DecoderBlock::attend(const StepInput& step, ConstActivations input, Activations out) const {
  const int64_t q_width = attention_.heads * attention_.head_dim,
                kv_width = attention_.kv_heads * attention_.head_dim;
  const int64_t all = step.tokens * (q_width + 2 * kv_width);
  const ActivationScratch scratch(*step.ops, all);
  const Activations q = scratch.rows();
  const Activations k = q.from(step.tokens * q_width), v = k.from(step.tokens * kv_width);
  if (qkv().size() == 1) {
    const ActivationScratch product(*step.ops, all);
    matmul(*step.ops, input, step.tokens, linears_[0].weight, bias_of(linears_[0]), product.rows(),
           step.mode);
    const int64_t repeats = is_qkv_by_head_ ? attention_.heads : 1;
    const ColumnPart parts[] = {{q_width / repeats, q}, {kv_width / repeats, k}, {kv_width / repeats, v}};
    split_columns(*step.ops, product.rows(), step.tokens, repeats, parts);
  } else {
    const MatmulOutput outputs[] = {{&linears_[kQ].weight, bias_of(linears_[kQ]), q},
                                    {&linears_[kK].weight, bias_of(linears_[kK]), k},
                                    {&linears_[kV].weight, bias_of(linears_[kV]), v}};
    matmul(*step.ops, input, step.tokens, outputs, step.mode);
  }
  attend_products(step, q, k, v, out);
}

void DecoderBlock::attend_products(const StepInput& step, Activations q, Activations k, Activations v,
                                   Activations out) const {
  if (!q_norm_.is_none()) {
    const int64_t width = attention_.head_dim;
    apply_norm(*step.ops, q_norm_, q, step.tokens * attention_.heads, width, q);
    apply_norm(*step.ops, k_norm_, k, step.tokens * attention_.kv_heads, width, k);
  }
  AttentionShape shape = attention_;
  shape.cache_dtype = step.cache_dtype;
  shape.layer_offset = step.layer_offset;
  if (!slopes_.empty()) shape.slopes = slopes_.data<float>();
  const AttentionMode mode =
      step.mode == MatmulMode::kDecode ? AttentionMode::kDecode : AttentionMode::kPrefill;
  const RopeTable* rope = nullptr;
  if (has_rope_) {
    const bool has_own = shape.window > 0 && !step.rope->windowed.cosines.empty();
    rope = has_own ? &step.rope->windowed : &step.rope->all;
  }
  rope_attention(*step.ops, shape, step.sequences, step.positions, rope, q, k, v, out, mode);
}

void DecoderBlock::activate_up(const StepInput& step, ConstActivations input, Activations out) const {
  const int64_t count = step.tokens * intermediate_size_;
  const Linear& first = up()[0];
  if (!is_gated_) {
    matmul(*step.ops, input, step.tokens, first.weight, bias_of(first), out, step.mode);
    return activate(*step.ops, activation_, out, count, out);
  }
  const bool is_one = up().size() == 1;
  MatmulOutput gate{&first.weight, bias_of(first), out}, other;
  if (!is_one) {
    other = {&up()[1].weight, bias_of(up()[1])};
    if (activation_ == Activation::kSilu &&
        matmul_gated_together(*step.ops, input, step.tokens, gate, other, out, step.mode))
      return;
  }
  const ActivationScratch scratch(*step.ops, count);
  const Activations second = scratch.rows();
  if (is_one) {
    const ActivationScratch product(*step.ops, 2 * count);
    matmul(*step.ops, input, step.tokens, first.weight, bias_of(first), product.rows(), step.mode);
    const ColumnPart parts[] = {{intermediate_size_, out}, {intermediate_size_, second}};
    split_columns(*step.ops, product.rows(), step.tokens, 1, parts);
  } else {
    other.y = second;
    const MatmulOutput outputs[] = {gate, other};
    matmul(*step.ops, input, step.tokens, outputs, step.mode);
  }
  activate_gated(*step.ops, activation_, out, second, count, out);
}

void DecoderBlock::run(const StepInput& step, float* hidden) const {
  if (step.ops->gpu && step.mode == MatmulMode::kDecode && is_llama_like_) {
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
  matmul_normed(*step.ops,
                {hidden, &attention_norms_.input.weight, attention_norms_.input.epsilon, step.kept},
                step.tokens, outputs, step.mode);
  attend_products(step, q, k, v, attended);
  const MatmulOutput o{.weight = &linears_[kO].weight,
                       .bias = bias_of(linears_[kO]),
                       .add_to = hidden,
                       .next_norm = &mlp_norms_.input.weight,
                       .kept = step.kept};
  matmul(*step.ops, attended, step.tokens, std::span(&o, 1), step.mode);
  gated_mlp(*step.ops, {hidden, &mlp_norms_.input.weight, mlp_norms_.input.epsilon, step.kept}, step.tokens,
            {.weight = &linears_[kGate].weight, .bias = bias_of(linears_[kGate])},
            {.weight = &linears_[kUp].weight, .bias = bias_of(linears_[kUp])},
            {.weight = &linears_[kDown].weight,
             .bias = bias_of(linears_[kDown]),
             .add_to = hidden,
             .next_norm = step.next_norm,
             .kept = step.kept},
            step.mode);
}

void DecoderBlock::add_product(const StepInput& step, const Linear& linear, const SublayerNorms& norms,
                               ConstActivations input, float* hidden) const {
  const int64_t count = step.tokens * hidden_size_;
  const ActivationScratch scratch(*step.ops, count);
  const Activations product = scratch.rows();
  MatmulOutput output{&linear.weight, bias_of(linear), product};
  if (norms.output.is_none()) output.add_to = hidden;
  matmul(*step.ops, input, step.tokens, std::span(&output, 1), step.mode);
  if (!norms.output.is_none()) {
    apply_norm(*step.ops, norms.output, product, step.tokens, hidden_size_, product);
    add(*step.ops, product, count, hidden);
  }
  if (!norms.residual.is_none())
    apply_norm(*step.ops, norms.residual, hidden, step.tokens, hidden_size_, hidden);
}

AttentionShape attention_shape(const ModelConfig& config, int64_t layer) {
  return {.heads = config.heads,
          .kv_heads = config.kv_heads,
          .head_dim = config.head_dim,
          .scale = config.attention_scale > 0 ? config.attention_scale
                                              : 1.0f / std::sqrt(static_cast<float>(config.head_dim)),
          .window = config.windows[static_cast<size_t>(layer)],
          .is_causal = config.is_causal};
}

DecoderParts llama_parts(const ModelConfig& config, const WeightReader& layer_weights, int64_t layer) {
  const WeightReader attention = layer_weights.inside("self_attn."), mlp = layer_weights.inside("mlp.");
  const int64_t hidden = config.hidden_size, intermediate = config.intermediate_size;
  const int64_t q_width = config.heads * config.head_dim, kv_width = config.kv_heads * config.head_dim;
  DecoderParts parts;
  parts.qkv = {attention.linear("q_proj", q_width, hidden, config.qkv_bias),
               attention.linear("k_proj", kv_width, hidden, config.qkv_bias),
               attention.linear("v_proj", kv_width, hidden, config.qkv_bias)};
  parts.o = attention.linear("o_proj", hidden, q_width, config.o_bias);
  parts.up = {mlp.linear("gate_proj", intermediate, hidden, config.mlp_bias),
              mlp.linear("up_proj", intermediate, hidden, config.mlp_bias)};
  parts.down = mlp.linear("down_proj", hidden, intermediate, config.mlp_bias);
  parts.attention = attention_shape(config, layer);
  return parts;
}

std::unique_ptr<Block> make_decoder_block(const ModelConfig& config, const WeightReader& weights,
                                          int64_t layer) {
  const WeightReader here = weights.inside(fmt::format("layers.{}.", layer));
  const WeightReader attention = here.inside("self_attn.");
  DecoderParts parts = llama_parts(config, here, layer);
  parts.attention_norms.input = here.rms_norm("input_layernorm", config.hidden_size, config.norm_eps);
  parts.mlp_norms.input = here.rms_norm("post_attention_layernorm", config.hidden_size, config.norm_eps);
  if (config.qk_norm) {
    parts.q_norm = attention.rms_norm("q_norm", config.head_dim, config.norm_eps);
    parts.k_norm = attention.rms_norm("k_norm", config.head_dim, config.norm_eps);
  }
  return std::make_unique<DecoderBlock>(config, std::move(parts));
}

}  // namespace lowbit
