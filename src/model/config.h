// What config.json says of a model, checked for sense before anything is built from it.
#pragma once

#include "base/json.h"
#include "ops/elementwise_args.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lowbit {

enum class RopeType { kDefault, kLinear, kLlama3, kYarn };

// Rotary embedding and its extension to longer contexts. Sources: Su et al., arXiv 2104.09864; linear: Chen
// et al., arXiv 2306.15595; YaRN: Peng et al., arXiv 2309.00071; llama3: the Llama 3.1 model card's frequency
// bands.
struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 10000;
  double factor = 1;
  double original_max_positions = 0;                 // llama3, yarn
  double low_freq_factor = 1, high_freq_factor = 4;  // llama3
  double beta_fast = 32, beta_slow = 1;              // yarn
  double attention_factor = 0;                       // yarn; 0: from factor
  double mscale = 0, mscale_all_dim = 0;             // yarn
  bool truncate = true;                              // yarn
};

class ConfigReader;

// What a model's head says.
enum class HeadKind {
  kNextToken,  // of each token, which one follows
  kTokens,     // of each token, which one stands there: a masked language model
  kClasses,    // of a sequence, by its first token
  kNone,       // there is none: what counts are the hidden states
};

struct ModelConfig {
  std::string model_type;    // "qwen2"
  std::string architecture;  // "Qwen2ForCausalLM"
  int64_t vocab_size = 0, hidden_size = 0, intermediate_size = 0;
  int64_t layers = 0, heads = 0, kv_heads = 0, head_dim = 0, rotary_dim = 0;
  int64_t embedding_width = 0;  // of the embedding's rows and of what the head reads; mostly hidden_size
  int64_t max_positions = 0;
  float norm_eps = 1e-6f;
  float attention_scale = 0;  // of the scores; 0: 1 / sqrt(head_dim)
  Activation activation = Activation::kSilu;
  bool tie_word_embeddings = false;
  bool qkv_bias = false, o_bias = false, mlp_bias = false, qk_norm = false;
  bool has_parallel_residual = false;  // attention and MLP read the same hidden state
  bool has_norm_first = true;          // norms stand before attention and MLP; otherwise behind them
  bool has_final_norm = true;
  bool is_causal = true;  // a token sees those before it; otherwise all: an encoder, which writes nothing
  HeadKind head_kind = HeadKind::kNextToken;
  std::vector<std::string> labels;        // kClasses: their names
  int64_t token_types = 0;                // of encoders: kinds of segments, 0 without embeddings of them
  RopeConfig rope;                        // unused where rotary_dim is 0
  std::optional<RopeConfig> window_rope;  // of the layers with a window, where that is another
  std::vector<int64_t> windows;           // per layer; 0: full attention
};

// Reads what Llama and its relatives share; an architecture adds its own. Errors (kCorruptFile, kUnsupported)
// name the key, what was found and what was expected.
ModelConfig read_decoder_config(const Json& config);

// The parts of it, for architectures that have other keys. read_sizes: also model_type, vocab_size, heads; as
// many KV heads, no windows. intermediate "": four times the hidden size, as where the key is absent.
struct SizeKeys {
  std::string_view hidden = "hidden_size", intermediate = "intermediate_size", layers = "num_hidden_layers",
                   heads = "num_attention_heads";
};
ModelConfig read_sizes(const ConfigReader& reader, const SizeKeys& keys);
void read_grouped_heads(const ConfigReader& reader, ModelConfig& model);
int64_t rotary_dim(int64_t head_dim, double share);
std::vector<int64_t> read_layer_windows(const ConfigReader& reader, int64_t layers, int64_t window);
// transformers 5 writes one object `rope_parameters`; earlier versions rope_theta and rope_scaling. Of such
// an object, or of `config` itself where a key is not in there.
Json rope_parameters(const ConfigReader& reader);
RopeConfig read_rope(const ConfigReader& config, const Json& parameters, int64_t max_positions);

// Angles of positions 0 ... positions-1 follow from these: F64 inverse frequencies [rotary_dim / 2] and the
// factor that multiplies cosines and sines.
struct RopeFrequencies {
  std::vector<double> inverse;
  double attention_factor = 1;
};
RopeFrequencies rope_frequencies(const ModelConfig& config, const RopeConfig& rope);

}  // namespace lowbit
