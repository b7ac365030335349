#include "model/config.h"

#include "base/fail.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace lowbit {
namespace {

template <class Read>
auto read_key(const Json& config, std::string_view key, Read read) {
  const Json* value = config.find(key);
  if (!value) fail(ErrorCode::kCorruptFile, "config.json: the key \"{}\" is missing", key);
  try {
    return read(*value);
  } catch (const Error& error) {
    fail(ErrorCode::kCorruptFile, "config.json: {}: {}", key, error.what());
  }
}

int64_t integer(const Json& config, std::string_view key, int64_t least, int64_t most) {
  const int64_t value = read_key(config, key, [](const Json& json) { return json.as_integer(); });
  if (value < least || value > most) {
    fail(ErrorCode::kCorruptFile, "config.json: {} is {}, expected {} to {}", key, value, least, most);
  }
  return value;
}

bool has(const Json& config, std::string_view key) {
  const Json* value = config.find(key);
  return value && !value->is_null();
}

int64_t integer_or(const Json& config, std::string_view key, int64_t least, int64_t most, int64_t otherwise) {
  return has(config, key) ? integer(config, key, least, most) : otherwise;
}

double number_or(const Json& config, std::string_view key, double least, double most, double otherwise) {
  if (!has(config, key)) return otherwise;
  const double value = read_key(config, key, [](const Json& json) { return json.as_number(); });
  if (!(value >= least && value <= most)) {
    fail(ErrorCode::kCorruptFile, "config.json: {} is {}, expected {} to {}", key, value, least, most);
  }
  return value;
}

bool flag_or(const Json& config, std::string_view key, bool otherwise) {
  return has(config, key) ? read_key(config, key, [](const Json& json) { return json.as_bool(); })
                          : otherwise;
}

std::string string_or(const Json& config, std::string_view key, const char* otherwise) {
  return has(config, key) ? read_key(config, key, [](const Json& json) { return json.as_string(); })
                          : otherwise;
}

// transformers 5 writes one object `rope_parameters`; earlier versions rope_theta and rope_scaling.
RopeConfig read_rope(const Json& config, int64_t max_positions) {
  RopeConfig rope;
  static const Json kEmpty = Json::object();
  const Json* parameters = &kEmpty;
  for (std::string_view key : {"rope_scaling", "rope_parameters"}) {
    if (has(config, key)) parameters = &config.get(key);
  }
  if (!parameters->is_object()) {
    fail(ErrorCode::kCorruptFile, "config.json: the RoPE parameters are {}, expected an object",
         parameters->type_name());
  }
  rope.theta =
      number_or(*parameters, "rope_theta", 1e-3, 1e15, number_or(config, "rope_theta", 1e-3, 1e15, 10000));
  const std::string type =
      string_or(*parameters, "rope_type", string_or(*parameters, "type", "default").c_str());
  if (type == "default") return rope;
  if (type == "linear") {
    rope.type = RopeType::kLinear;
  } else if (type == "llama3") {
    rope.type = RopeType::kLlama3;
  } else if (type == "yarn") {
    rope.type = RopeType::kYarn;
  } else {
    fail(ErrorCode::kUnsupported,
         "config.json: RoPE scaling of type \"{}\" is not supported (default, linear, llama3, yarn are)",
         type);
  }
  rope.original_max_positions = number_or(
      *parameters, "original_max_position_embeddings", 1, 1e9,
      number_or(config, "original_max_position_embeddings", 1, 1e9, static_cast<double>(max_positions)));
  rope.factor = number_or(*parameters, "factor", 1e-3, 1e6,
                          static_cast<double>(max_positions) / rope.original_max_positions);
  rope.low_freq_factor = number_or(*parameters, "low_freq_factor", 1e-3, 1e6, 1);
  rope.high_freq_factor = number_or(*parameters, "high_freq_factor", 1e-3, 1e6, 4);
  if (rope.type == RopeType::kLlama3 && !(rope.high_freq_factor > rope.low_freq_factor)) {
    fail(ErrorCode::kCorruptFile,
         "config.json: high_freq_factor is {}, expected more than low_freq_factor {}", rope.high_freq_factor,
         rope.low_freq_factor);
  }
  rope.beta_fast = number_or(*parameters, "beta_fast", 1e-6, 1e6, 32);
  rope.beta_slow = number_or(*parameters, "beta_slow", 1e-6, 1e6, 1);
  rope.attention_factor = number_or(*parameters, "attention_factor", 0, 1e3, 0);
  rope.mscale = number_or(*parameters, "mscale", 0, 1e3, 0);
  rope.mscale_all_dim = number_or(*parameters, "mscale_all_dim", 0, 1e3, 0);
  rope.truncate = flag_or(*parameters, "truncate", true);
  return rope;
}

std::vector<int64_t> read_windows(const Json& config, const ModelConfig& model) {
  std::vector<int64_t> windows(static_cast<size_t>(model.layers), 0);
  const int64_t window = integer_or(config, "sliding_window", 1, int64_t{1} << 40, 0);
  if (window == 0 || !flag_or(config, "use_sliding_window", model.model_type == "mistral")) return windows;
  if (has(config, "layer_types")) {
    const auto types = read_key(config, "layer_types", [](const Json& json) { return json.as_array(); });
    if (types.size() != windows.size()) {
      fail(ErrorCode::kCorruptFile, "config.json: layer_types has {} entries, expected {}", types.size(),
           windows.size());
    }
    for (size_t layer = 0; layer < types.size(); ++layer) {
      if (types[layer].is_string() && types[layer].as_string() == "sliding_attention")
        windows[layer] = window;
    }
    return windows;
  }
  const int64_t first =
      model.model_type == "mistral" ? 0 : integer_or(config, "max_window_layers", 0, 1 << 20, 28);
  for (int64_t layer = first; layer < model.layers; ++layer) windows[static_cast<size_t>(layer)] = window;
  return windows;
}

double yarn_scale(double factor, double mscale) {
  return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1;
}

}  // namespace

ModelConfig read_decoder_config(const Json& config) {
  if (!config.is_object())
    fail(ErrorCode::kCorruptFile, "config.json: expected an object, found {}", config.type_name());
  ModelConfig model;
  model.model_type = string_or(config, "model_type", "");
  if (const Json* names = config.find("architectures"); names && names->is_array() && names->size() > 0) {
    if (names->as_array()[0].is_string()) model.architecture = names->as_array()[0].as_string();
  }
  if (const std::string act = string_or(config, "hidden_act", "silu"); act != "silu") {
    fail(ErrorCode::kUnsupported, "config.json: hidden_act is \"{}\"; only \"silu\" is known for {}", act,
         model.model_type);
  }
  constexpr int64_t kMostWidth = int64_t{1} << 20;
  model.vocab_size = integer(config, "vocab_size", 1, int64_t{1} << 24);
  model.hidden_size = integer(config, "hidden_size", 1, kMostWidth);
  model.intermediate_size = integer(config, "intermediate_size", 1, kMostWidth);
  model.layers = integer(config, "num_hidden_layers", 1, 1024);
  model.heads = integer(config, "num_attention_heads", 1, 1 << 14);
  model.kv_heads = integer_or(config, "num_key_value_heads", 1, 1 << 14, model.heads);
  if (model.heads % model.kv_heads != 0) {
    fail(ErrorCode::kCorruptFile,
         "config.json: num_attention_heads {} is no multiple of num_key_value_heads {}", model.heads,
         model.kv_heads);
  }
  if (!has(config, "head_dim") && model.hidden_size % model.heads != 0) {
    fail(ErrorCode::kCorruptFile, "config.json: hidden_size {} is no multiple of num_attention_heads {}",
         model.hidden_size, model.heads);
  }
  model.head_dim = integer_or(config, "head_dim", 2, 1 << 14, model.hidden_size / model.heads);
  const double rotary = number_or(config, "partial_rotary_factor", 0, 1, 1);
  model.rotary_dim = static_cast<int64_t>(static_cast<double>(model.head_dim) * rotary);
  if (model.rotary_dim % 2 != 0) {
    fail(ErrorCode::kCorruptFile, "config.json: head_dim {} must be even for rotary embeddings",
         model.head_dim);
  }
  model.max_positions = integer_or(config, "max_position_embeddings", 1, int64_t{1} << 31, 2048);
  model.rms_norm_eps = static_cast<float>(number_or(config, "rms_norm_eps", 0, 1, 1e-6));
  model.tie_word_embeddings = flag_or(config, "tie_word_embeddings", false);
  model.rope = read_rope(config, model.max_positions);
  model.windows = read_windows(config, model);
  return model;
}

RopeFrequencies rope_frequencies(const ModelConfig& config) {
  const RopeConfig& rope = config.rope;
  const double dim = static_cast<double>(config.rotary_dim), pi2 = 2 * std::numbers::pi;
  const int64_t pairs = config.rotary_dim / 2;
  RopeFrequencies result;
  for (int64_t i = 0; i < pairs; ++i)
    result.inverse.push_back(std::pow(rope.theta, -2.0 * static_cast<double>(i) / dim));
  switch (rope.type) {
    case RopeType::kDefault:
      break;
    case RopeType::kLinear:
      for (double& value : result.inverse) value /= rope.factor;
      break;
    case RopeType::kLlama3:
      // Long waves are interpolated, short ones kept, those between are blended.
      for (double& value : result.inverse) {
        const double turns = rope.original_max_positions * value / pi2;
        const double keep = std::clamp(
            (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0, 1.0);
        value = (1 - keep) * value / rope.factor + keep * value;
      }
      break;
    case RopeType::kYarn: {
      auto correction = [&](double rotations) {
        return dim * std::log(rope.original_max_positions / (rotations * pi2)) / (2 * std::log(rope.theta));
      };
      double low = correction(rope.beta_fast), high = correction(rope.beta_slow);
      if (rope.truncate) {
        low = std::floor(low);
        high = std::ceil(high);
      }
      low = std::max(low, 0.0);
      high = std::min(high, dim - 1);
      if (low == high) high += 0.001;
      for (int64_t i = 0; i < pairs; ++i) {
        const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
        double& value = result.inverse[static_cast<size_t>(i)];
        value = value / rope.factor * ramp + value * (1 - ramp);
      }
      if (rope.attention_factor > 0) {
        result.attention_factor = rope.attention_factor;
      } else if (rope.mscale > 0 && rope.mscale_all_dim > 0) {
        result.attention_factor =
            yarn_scale(rope.factor, rope.mscale) / yarn_scale(rope.factor, rope.mscale_all_dim);
      } else {
        result.attention_factor = yarn_scale(rope.factor, 1);
      }
      break;
    }
  }
  return result;
}

}  // namespace lowbit
