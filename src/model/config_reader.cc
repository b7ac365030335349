#include "model/config_reader.h"

#include "base/fail.h"

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

// Names as transformers has them (ACT2FN); several of them mean one function.
constexpr std::pair<std::string_view, Activation> kActivations[] = {
    {"silu", Activation::kSilu},          {"swish", Activation::kSilu},
    {"gelu", Activation::kGelu},          {"gelu_new", Activation::kGeluTanh},
    {"gelu_fast", Activation::kGeluTanh}, {"gelu_pytorch_tanh", Activation::kGeluTanh},
    {"relu", Activation::kRelu}};

}  // namespace

ConfigReader::ConfigReader(const Json& config) : config_(config) {
  if (!config.is_object())
    fail(ErrorCode::kCorruptFile, "config.json: expected an object, found {}", config.type_name());
}

bool ConfigReader::has(std::string_view key) const {
  const Json* value = config_.find(key);
  return value && !value->is_null();
}

int64_t ConfigReader::integer(std::string_view key, int64_t least, int64_t most) const {
  const int64_t value = read_key(config_, key, [](const Json& json) { return json.as_integer(); });
  if (value < least || value > most) {
    fail(ErrorCode::kCorruptFile, "config.json: {} is {}, expected {} to {}", key, value, least, most);
  }
  return value;
}

int64_t ConfigReader::integer_or(std::string_view key, int64_t least, int64_t most, int64_t otherwise) const {
  return has(key) ? integer(key, least, most) : otherwise;
}

double ConfigReader::number_or(std::string_view key, double least, double most, double otherwise) const {
  if (!has(key)) return otherwise;
  const double value = read_key(config_, key, [](const Json& json) { return json.as_number(); });
  if (!(value >= least && value <= most)) {
    fail(ErrorCode::kCorruptFile, "config.json: {} is {}, expected {} to {}", key, value, least, most);
  }
  return value;
}

bool ConfigReader::flag_or(std::string_view key, bool otherwise) const {
  return has(key) ? read_key(config_, key, [](const Json& json) { return json.as_bool(); }) : otherwise;
}

std::string ConfigReader::string_or(std::string_view key, const std::string& otherwise) const {
  return has(key) ? read_key(config_, key, [](const Json& json) { return json.as_string(); }) : otherwise;
}

Json::Array ConfigReader::array(std::string_view key) const {
  return read_key(config_, key, [](const Json& json) { return json.as_array(); });
}

Activation ConfigReader::activation_or(std::string_view key, const char* otherwise) const {
  const std::string wanted = string_or(key, otherwise);
  std::string known;
  for (const auto& [name, activation] : kActivations) {
    if (name == wanted) return activation;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", name);
  }
  fail(ErrorCode::kUnsupported, "config.json: {} is \"{}\"; lowbit knows {}", key, wanted, known);
}

void ConfigReader::require(std::string_view key, bool expected) const {
  if (flag_or(key, expected) == expected) return;
  fail(ErrorCode::kUnsupported, "config.json: {} is {}; only {} is supported for {}", key, !expected,
       expected, model_type());
}

void ConfigReader::refuse(std::string_view key) const {
  if (!has(key)) return;
  fail(ErrorCode::kUnsupported, "config.json: {} is {}; only models without it are supported for {}", key,
       config_.get(key).dump(), model_type());
}

}  // namespace lowbit
