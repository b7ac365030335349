#include "model/config.h"

#include "base/fail.h"
#include "model/config_reader.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace lowbit {
namespace {

constexpr int64_t kMostWidth = int64_t{1} << 20;

std::vector<int64_t> read_windows(const ConfigReader& reader, const ModelConfig& model) {
  const bool is_usual = model.model_type == "mistral" || model.model_type == "phi3";
  std::vector<int64_t> windows(static_cast<size_t>(model.layers), 0);
  const int64_t window = reader.integer_or("sliding_window", 1, int64_t{1} << 40, 0);
  if (window == 0 || !reader.flag_or("use_sliding_window", is_usual)) return windows;
  if (reader.has("layer_types")) return read_layer_windows(reader, model.layers, window);
  const int64_t first = is_usual ? 0 : reader.integer_or("max_window_layers", 0, 1 << 20, 28);
  for (int64_t layer = first; layer < model.layers; ++layer) windows[static_cast<size_t>(layer)] = window;
  return windows;
}

double yarn_scale(double factor, double mscale) {
  return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1;
}

}  // namespace

ModelConfig read_sizes(const ConfigReader& reader, const SizeKeys& keys) {
  ModelConfig model;
  model.model_type = reader.string_or("model_type", "");
  if (reader.has("architectures")) {
    const Json& names = reader.json().get("architectures");
    if (names.is_array() && names.size() > 0 && names.as_array()[0].is_string())
      model.architecture = names.as_array()[0].as_string();
  }
  model.vocab_size = reader.integer("vocab_size", 1, int64_t{1} << 24);
  model.hidden_size = model.embedding_width = reader.integer(keys.hidden, 1, kMostWidth);
  model.intermediate_size = keys.intermediate.empty()
                                ? 4 * model.hidden_size
                                : reader.integer_or(keys.intermediate, 1, kMostWidth, 4 * model.hidden_size);
  model.layers = reader.integer(keys.layers, 1, 1024);
  model.heads = reader.integer(keys.heads, 1, 1 << 14);
  model.kv_heads = model.heads;
  if (!reader.has("head_dim") && model.hidden_size % model.heads != 0) {
    fail(ErrorCode::kCorruptFile, "config.json: {} {} is no multiple of {} {}", keys.hidden,
         model.hidden_size, keys.heads, model.heads);
  }
  model.head_dim = model.hidden_size / model.heads;
  model.windows.assign(static_cast<size_t>(model.layers), 0);
  return model;
}

int64_t rotary_dim(int64_t head_dim, double share) {
  const int64_t dim = static_cast<int64_t>(static_cast<double>(head_dim) * share);
  if (dim % 2 != 0) {
    fail(ErrorCode::kCorruptFile,
         "config.json: {} of the {} elements of a head are rotated, expected an even number", dim, head_dim);
  }
  return dim;
}

std::vector<int64_t> read_layer_windows(const ConfigReader& reader, int64_t layers, int64_t window) {
  const Json::Array types = reader.array("layer_types");
  if (static_cast<int64_t>(types.size()) != layers) {
    fail(ErrorCode::kCorruptFile, "config.json: layer_types has {} entries, expected {}", types.size(),
         layers);
  }
  std::vector<int64_t> windows;
  for (const Json& type : types) {
    const std::string name = type.is_string() ? type.as_string() : type.dump();
    if (name != "sliding_attention" && name != "full_attention") {
      fail(ErrorCode::kUnsupported,
           "config.json: layer_types has \"{}\"; sliding_attention and full_attention are supported", name);
    }
    windows.push_back(name == "sliding_attention" ? window : 0);
  }
  return windows;
}

Json rope_parameters(const ConfigReader& reader) {
  Json parameters = Json::object();
  for (std::string_view key : {"rope_scaling", "rope_parameters"}) {
    if (reader.has(key)) parameters = reader.json().get(key);
  }
  if (!parameters.is_object()) {
    fail(ErrorCode::kCorruptFile, "config.json: the RoPE parameters are {}, expected an object",
         parameters.type_name());
  }
  return parameters;
}

ModelConfig read_decoder_config(const Json& config) {
  const ConfigReader reader(config);
  ModelConfig model = read_sizes(reader, {});
  if (reader.activation_or("hidden_act", "silu") != Activation::kSilu) {
    fail(ErrorCode::kUnsupported, "config.json: hidden_act is \"{}\"; only \"silu\" is known for {}",
         reader.string_or("hidden_act", ""), model.model_type);
  }
  model.intermediate_size = reader.integer("intermediate_size", 1, kMostWidth);
  read_grouped_heads(reader, model);
  model.max_positions = reader.integer_or("max_position_embeddings", 1, int64_t{1} << 31, 2048);
  model.norm_eps = static_cast<float>(reader.number_or("rms_norm_eps", 0, 1, 1e-6));
  model.tie_word_embeddings = reader.flag_or("tie_word_embeddings", false);
  const Json parameters = rope_parameters(reader);
  const double share =
      ConfigReader(parameters)
          .number_or("partial_rotary_factor", 0, 1, reader.number_or("partial_rotary_factor", 0, 1, 1));
  model.rotary_dim = rotary_dim(model.head_dim, share);
  model.rope = read_rope(reader, parameters, model.max_positions);
  model.windows = read_windows(reader, model);
  return model;
}

void read_grouped_heads(const ConfigReader& reader, ModelConfig& model) {
  model.kv_heads = reader.integer_or("num_key_value_heads", 1, 1 << 14, model.heads);
  if (model.heads % model.kv_heads != 0) {
    fail(ErrorCode::kCorruptFile,
         "config.json: num_attention_heads {} is no multiple of num_key_value_heads {}", model.heads,
         model.kv_heads);
  }
  model.head_dim = reader.integer_or("head_dim", 2, 1 << 14, model.head_dim);
}

RopeConfig read_rope(const ConfigReader& config, const Json& of, int64_t max_positions) {
  const ConfigReader parameters(of);
  RopeConfig rope;
  rope.theta =
      parameters.number_or("rope_theta", 1e-3, 1e15, config.number_or("rope_theta", 1e-3, 1e15, 10000));
  const std::string type = parameters.string_or("rope_type", parameters.string_or("type", "default"));
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
  rope.original_max_positions = parameters.number_or(
      "original_max_position_embeddings", 1, 1e9,
      config.number_or("original_max_position_embeddings", 1, 1e9, static_cast<double>(max_positions)));
  rope.factor = parameters.number_or("factor", 1e-3, 1e6,
                                     static_cast<double>(max_positions) / rope.original_max_positions);
  rope.low_freq_factor = parameters.number_or("low_freq_factor", 1e-3, 1e6, 1);
  rope.high_freq_factor = parameters.number_or("high_freq_factor", 1e-3, 1e6, 4);
  if (rope.type == RopeType::kLlama3 && !(rope.high_freq_factor > rope.low_freq_factor)) {
    fail(ErrorCode::kCorruptFile,
         "config.json: high_freq_factor is {}, expected more than low_freq_factor {}", rope.high_freq_factor,
         rope.low_freq_factor);
  }
  rope.beta_fast = parameters.number_or("beta_fast", 1e-6, 1e6, 32);
  rope.beta_slow = parameters.number_or("beta_slow", 1e-6, 1e6, 1);
  rope.attention_factor = parameters.number_or("attention_factor", 0, 1e3, 0);
  rope.mscale = parameters.number_or("mscale", 0, 1e3, 0);
  rope.mscale_all_dim = parameters.number_or("mscale_all_dim", 0, 1e3, 0);
  rope.truncate = parameters.flag_or("truncate", true);
  return rope;
}

RopeFrequencies rope_frequencies(const ModelConfig& config, const RopeConfig& rope) {
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
