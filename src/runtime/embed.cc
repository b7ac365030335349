#include "lowbit/embed.h"

#include "base/fail.h"
#include "base/files.h"
#include "base/json.h"
#include "runtime/encoder_run.h"
#include "runtime/options.h"
#include "runtime/sentence_config.h"

#include <cmath>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

std::optional<Json> read_optional(const fs::path& file) {
  if (!fs::exists(file)) return std::nullopt;
  return parse_json(read_file(file, 1 << 20), file.string());
}

SentenceConfig read_sentence_config(const fs::path& folder, const EmbedOptions& options) {
  SentenceConfig config;
  const fs::path lengths = folder / "sentence_bert_config.json",
                 pooling = folder / "1_Pooling" / "config.json", modules = folder / "modules.json";
  if (const auto json = read_optional(lengths)) read_lengths(*json, lengths.string(), config);
  if (options.pooling != "auto") {
    config.pooling = options.pooling;
  } else if (const auto json = read_optional(pooling)) {
    read_pooling(*json, pooling.string(), config);
  }
  if (const auto json = read_optional(modules)) read_modules(*json, modules.string(), config);
  return config;
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
  std::vector<float> states;
  run_encoder(state, inputs.inputs, options.batch_size, "embed", log, [&](size_t i, const float* hidden) {
    if (state.gpu) {
      states.resize(inputs.inputs[i].ids.size() * static_cast<size_t>(result.width));
      state.gpu->copy_out(states.data(), hidden, states.size() * sizeof(float));
      hidden = states.data();
    }
    float* row = result.values.data() + static_cast<int64_t>(i) * result.width;
    pool(hidden, static_cast<int64_t>(inputs.inputs[i].ids.size()), result.width, config.pooling == "mean",
         row);
    if (config.is_normalized) normalize(row, result.width);
  });
  return result;
}

}  // namespace lowbit
