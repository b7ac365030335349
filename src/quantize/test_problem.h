// What the tests of this room share: random matrices with correlated inputs, and a random tiny model on disk.
#pragma once

#include "io/safetensors.h"
#include "quantize/methods.h"
#include "tensor/half.h"

#include <cmath>
#include <fstream>
#include <random>
#include <vector>

namespace lowbit::testing {

struct Machine {
  explicit Machine(int threads = 2) : pool(threads) {}
  OpContext ops() { return {&pool, &workspace, &kernels}; }
  ThreadPool pool;
  Workspace workspace;
  KernelChoice kernels{"ref", {}};
};

inline Tensor random_tensor(Shape shape, uint64_t seed, float scale = 1) {
  Tensor tensor = Tensor::allocate(DType::kF32, std::move(shape));
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> normal(0, scale);
  for (int64_t i = 0; i < tensor.element_count(); ++i) tensor.mutable_data<float>()[i] = normal(engine);
  return tensor;
}

// Inputs [tokens, width] that are correlated and of very different sizes, as activations are.
inline Tensor correlated_inputs(int64_t tokens, int64_t width, uint64_t seed) {
  const int64_t factors = std::max<int64_t>(2, width / 4);
  const Tensor mix = random_tensor({factors, width}, seed + 1),
               source = random_tensor({tokens, factors}, seed + 2);
  const Tensor size = random_tensor({1, width}, seed + 3),
               noise = random_tensor({tokens, width}, seed + 4, 0.3f);
  Tensor x = Tensor::allocate(DType::kF32, {tokens, width});
  for (int64_t token = 0; token < tokens; ++token) {
    for (int64_t column = 0; column < width; ++column) {
      float sum = noise.data<float>()[token * width + column];
      for (int64_t f = 0; f < factors; ++f)
        sum += source.data<float>()[token * factors + f] * mix.data<float>()[f * width + column];
      x.mutable_data<float>()[token * width + column] = sum * std::exp(size.data<float>()[column]);
    }
  }
  return x;
}

inline Hessian hessian_of(const OpContext& ops, const Tensor& x) {
  HessianAccumulator accumulator(ops, x.size(1));
  accumulator.add(x.data<float>(), x.size(0));
  return accumulator.finish();
}

// tr(dW H dW^T), in double.
inline double output_error(const Tensor& weight, const QuantizedTensor& quantized, const Hessian& hessian) {
  const Tensor decoded = dequantized(quantized);
  const int64_t rows = weight.size(0), width = weight.size(1);
  double total = 0;
  std::vector<double> d(static_cast<size_t>(width));
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < width; ++i) {
      d[static_cast<size_t>(i)] =
          double{weight.data<float>()[row * width + i]} - decoded.data<float>()[row * width + i];
    }
    for (int64_t i = 0; i < width; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < width; ++j)
        sum += double{hessian.values.data<float>()[i * width + j]} * d[static_cast<size_t>(j)];
      total += d[static_cast<size_t>(i)] * sum;
    }
  }
  return total;
}

inline bool same_bytes(const Tensor& a, const Tensor& b) {
  if (a.empty() || b.empty()) return a.empty() == b.empty();
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         std::memcmp(a.bytes(), b.bytes(), a.byte_count()) == 0;
}

inline bool same_weight(const QuantizedTensor& a, const QuantizedTensor& b) {
  return same_bytes(a.codes, b.codes) && same_bytes(a.scales, b.scales) &&
         same_bytes(a.zero_points, b.zero_points) && same_bytes(a.column_order, b.column_order);
}

struct TinyModel {
  int64_t vocab = 96, hidden = 64, intermediate = 160, layers = 3, heads = 4, kv_heads = 2;
  bool is_tied = true;
};

// A random Llama of this shape, BF16.
inline void write_tiny_model(const std::filesystem::path& folder, const TinyModel& shape, uint64_t seed = 1) {
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "config.json") << fmt::format(
      R"({{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": {}, "hidden_size": {}, "intermediate_size": {},
"num_hidden_layers": {}, "num_attention_heads": {}, "num_key_value_heads": {}, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
"rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": {}, "torch_dtype": "bfloat16", "eos_token_id": 2}})",
      shape.vocab, shape.hidden, shape.intermediate, shape.layers, shape.heads, shape.kv_heads,
      shape.is_tied);
  std::vector<NamedTensor> tensors;
  auto add = [&](const std::string& name, Shape size, float scale, float offset) {
    Tensor values = random_tensor(std::move(size), seed += 17, scale);
    for (int64_t i = 0; i < values.element_count(); ++i) values.mutable_data<float>()[i] += offset;
    tensors.push_back({name, converted(values, DType::kBF16)});
  };
  add("model.embed_tokens.weight", {shape.vocab, shape.hidden}, 1.0f, 0);
  const int64_t kv = shape.hidden / shape.heads * shape.kv_heads;
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    const float scale = 1 / std::sqrt(static_cast<float>(shape.hidden));
    add(prefix + "input_layernorm.weight", {shape.hidden}, 0.2f, 1);
    add(prefix + "self_attn.q_proj.weight", {shape.hidden, shape.hidden}, scale, 0);
    add(prefix + "self_attn.k_proj.weight", {kv, shape.hidden}, scale, 0);
    add(prefix + "self_attn.v_proj.weight", {kv, shape.hidden}, scale, 0);
    add(prefix + "self_attn.o_proj.weight", {shape.hidden, shape.hidden}, scale, 0);
    add(prefix + "post_attention_layernorm.weight", {shape.hidden}, 0.2f, 1);
    add(prefix + "mlp.gate_proj.weight", {shape.intermediate, shape.hidden}, scale, 0);
    add(prefix + "mlp.up_proj.weight", {shape.intermediate, shape.hidden}, scale, 0);
    add(prefix + "mlp.down_proj.weight", {shape.hidden, shape.intermediate}, scale, 0);
  }
  add("model.norm.weight", {shape.hidden}, 0.2f, 1);
  if (!shape.is_tied) add("lm_head.weight", {shape.vocab, shape.hidden}, 0.3f, 0);
  write_safetensors(folder / "model.safetensors", tensors);
}

}  // namespace lowbit::testing
