// What config.json says of a decoder model, checked for sense before anything is built from it.
#pragma once

#include "base/json.h"

#include <cstdint>
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

struct ModelConfig {
  std::string model_type;    // "qwen2"
  std::string architecture;  // "Qwen2ForCausalLM"
  int64_t vocab_size = 0, hidden_size = 0, intermediate_size = 0;
  int64_t layers = 0, heads = 0, kv_heads = 0, head_dim = 0, rotary_dim = 0;
  int64_t max_positions = 0;
  float rms_norm_eps = 1e-6f;
  bool tie_word_embeddings = false;
  bool qkv_bias = false, o_bias = false, mlp_bias = false, qk_norm = false;
  RopeConfig rope;
  std::vector<int64_t> windows;  // per layer; 0: full attention
};

// Reads the fields that all decoder models share; an architecture adds its own. Errors (kCorruptFile,
// kUnsupported) name the key, what was found and what was expected.
ModelConfig read_decoder_config(const Json& config);

// Angles of positions 0 ... positions-1 follow from these: F64 inverse frequencies [rotary_dim / 2] and the
// factor that multiplies cosines and sines.
struct RopeFrequencies {
  std::vector<double> inverse;
  double attention_factor = 1;
};
RopeFrequencies rope_frequencies(const ModelConfig& config);

}  // namespace lowbit
