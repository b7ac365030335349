#include "lowbit/embed.h"

#include "base/fail.h"
#include "base/files.h"
#include "runtime/encoder_run.h"
#include "runtime/options.h"

#include <cmath>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

// What a sentence-transformers folder says beside the model itself.
struct SentenceConfig {
  std::string pooling = "mean";
  bool is_normalized = false;
  int64_t max_length = 0;  // 0: not said
};

std::optional<Json> read_optional(const fs::path& file) {
  if (!fs::exists(file)) return std::nullopt;
  return parse_json(read_file(file, 1 << 20), file.string());
}

// "pooling_mode_mean_tokens": true and the like; newer files say "pooling_mode": "mean".
std::string pooling_of(const Json& config, const std::string& where) {
  std::string found;
  auto add = [&](const std::string& mode) { found += (found.empty() ? "" : ", ") + mode; };
  if (const Json* mode = config.find("pooling_mode"); mode && mode->is_string()) {
    add(mode->as_string());
  } else {
    for (const auto& [key, value] : config.as_object()) {
      constexpr std::string_view kPrefix = "pooling_mode_";
      if (key.starts_with(kPrefix) && value.is_bool() && value.as_bool()) add(key.substr(kPrefix.size()));
    }
  }
  if (found == "mean_tokens" || found == "mean") return "mean";
  if (found == "cls_token" || found == "cls") return "cls";
  fail(ErrorCode::kUnsupported, "{}: the pooling is \"{}\"; lowbit knows mean and cls: name one of them",
       where, found);
}

SentenceConfig read_sentence_config(const fs::path& folder, const EmbedOptions& options) {
  SentenceConfig result;
  if (const auto bert = read_optional(folder / "sentence_bert_config.json")) {
    if (const Json* most = bert->find("max_seq_length"); most && most->is_integer())
      result.max_length = most->as_integer();
    if (const Json* lower = bert->find("do_lower_case"); lower && lower->is_bool() && lower->as_bool()) {
      fail(ErrorCode::kUnsupported, "{}: do_lower_case is true; lowbit lowers what tokenizer.json says alone",
           (folder / "sentence_bert_config.json").string());
    }
  }
  const fs::path pooling = folder / "1_Pooling" / "config.json";
  if (options.pooling != "auto") {
    result.pooling = options.pooling;
  } else if (const auto config = read_optional(pooling)) {
    result.pooling = pooling_of(*config, pooling.string());
  }
  if (const auto modules = read_optional(folder / "modules.json")) {
    for (const Json& module : modules->as_array()) {
      const std::string& type = module.get("type").as_string();
      const std::string name = type.substr(type.rfind('.') + 1);
      if (name == "Normalize") {
        result.is_normalized = true;
      } else if (name != "Transformer" && name != "Pooling") {
        fail(ErrorCode::kUnsupported,
             "{}: the module {} is not supported; Transformer, Pooling and Normalize are",
             (folder / "modules.json").string(), type);
      }
    }
  }
  return result;
}

void pool(const float* hidden, int64_t tokens, int64_t width, bool is_mean, float* out) {
  if (!is_mean) {
    std::copy(hidden, hidden + width, out);
    return;
  }
  std::vector<double> sums(static_cast<size_t>(width));
  for (int64_t token = 0; token < tokens; ++token) {
    for (int64_t i = 0; i < width; ++i) sums[static_cast<size_t>(i)] += double{hidden[token * width + i]};
  }
  for (int64_t i = 0; i < width; ++i)
    out[i] = static_cast<float>(sums[static_cast<size_t>(i)] / static_cast<double>(tokens));
}

void normalize(float* row, int64_t width) {
  double squares = 0;
  for (int64_t i = 0; i < width; ++i) squares += double{row[i]} * double{row[i]};
  if (squares == 0) return;
  const auto inverse = static_cast<float>(1 / std::sqrt(squares));
  for (int64_t i = 0; i < width; ++i) row[i] *= inverse;
}

}  // namespace

Fields option_fields(EmbedOptions& options) {
  return {
      {"pooling", &options.pooling,
       "mean of the tokens' last states, cls (the first token's), or auto: as 1_Pooling/config.json of the "
       "model says, mean without one"},
      {"max_length", &options.max_length,
       "tokens of a text, special ones included; 0: as the model's files say, at most its "
       "max_position_embeddings"},
      {"truncate", &options.truncate, "cut texts that are longer; otherwise they are an error"},
      {"batch_size", &options.batch_size, "texts per batch; does not change the vectors"}};
}

void validate(const EmbedOptions& options) {
  if (options.pooling != "auto" && options.pooling != "mean" && options.pooling != "cls") {
    fail(ErrorCode::kInvalidArgument, "pooling is \"{}\", expected \"auto\", \"mean\" or \"cls\"",
         options.pooling);
  }
  if (options.max_length < 0)
    fail(ErrorCode::kInvalidArgument, "max_length is {}, expected 1 or more, or 0", options.max_length);
  if (options.batch_size < 1)
    fail(ErrorCode::kInvalidArgument, "batch_size is {}, expected at least 1", options.batch_size);
}

Embeddings embed(const LanguageModel& model, std::span<const std::string> texts, const EmbedOptions& options,
                 const Log& log) {
  validate(options);
  const LanguageModel::State& state = model.state();
  require_encoder(state);
  const SentenceConfig config = read_sentence_config(state.folder, options);
  std::vector<EncoderText> list;
  for (const std::string& text : texts) list.push_back({text});
  Embeddings result;
  result.max_length = options.max_length > 0 ? options.max_length
                      : config.max_length > 0
                          ? std::min(config.max_length, state.model.config().max_positions)
                          : state.model.config().max_positions;
  const EncoderInputs inputs =
      encode_inputs(state, model.tokenizer(), list, {result.max_length, options.truncate});
  result.count = static_cast<int64_t>(texts.size());
  result.width = state.model.config().hidden_size;
  result.values.resize(texts.size() * static_cast<size_t>(result.width));
  result.pooling = config.pooling;
  result.is_normalized = config.is_normalized;
  result.tokens = inputs.tokens;
  result.truncated = inputs.truncated;
  run_encoder(state, inputs.inputs, options.batch_size, "embed", log, [&](size_t i, const float* hidden) {
    float* row = result.values.data() + static_cast<int64_t>(i) * result.width;
    pool(hidden, static_cast<int64_t>(inputs.inputs[i].ids.size()), result.width, config.pooling == "mean",
         row);
    if (config.is_normalized) normalize(row, result.width);
  });
  return result;
}

}  // namespace lowbit
