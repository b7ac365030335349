#include "base/fail.h"
#include "checkpoint/inspect_summary.h"
#include "lowbit/inspect.h"
#include "lowbit/memory.h"
#include "runtime/forward.h"
#include "runtime/options.h"

#include <algorithm>

namespace lowbit {
namespace {

// bitsandbytes' 8-bit Adam: a byte for each of two moments, with an F32 maximum per block of each; tensors of
// fewer than kAdamLeast parameters keep moments of 32 bits (docs of bitsandbytes 0.50: block 256,
// min_8bit_size 4096).
constexpr int64_t kAdamBlock = 256, kAdamLeast = 4096;

uint64_t adam_8bit_bytes(int64_t parameters) {
  const int64_t blocks = (parameters + kAdamBlock - 1) / kAdamBlock;
  return static_cast<uint64_t>(parameters < kAdamLeast ? 8 * parameters : 2 * (parameters + 4 * blocks));
}

TrainMemory train_memory(const Summary& summary, DType dtype, std::string_view name) {
  TrainMemory train{.dtype = name};
  train.weight_bytes = train.gradient_bytes = static_cast<uint64_t>(summary.parameters) * dtype_size(dtype);
  train.adam_bytes = static_cast<uint64_t>(summary.parameters) * 8;
  for (const int64_t size : summary.weight_sizes) train.adam_8bit_bytes += adam_8bit_bytes(size);
  const uint64_t both = train.weight_bytes + train.gradient_bytes;
  train.total_bytes = both + train.adam_bytes;
  train.total_8bit_bytes = both + train.adam_8bit_bytes;
  return train;
}

// What a decoder block (model/decoder_block.cc) holds for one token, in F32: hidden, the normed input of a
// stage and what it carries to the next one, and beside them q, k and v, or up, or a product of hidden_size.
int64_t activations_per_token(const ModelConfig& config) {
  const int64_t q = config.heads * config.head_dim, kv = config.kv_heads * config.head_dim;
  return 2 * config.hidden_size + std::max(q, config.intermediate_size) +
         std::max({q + 2 * kv, config.intermediate_size, config.hidden_size});
}

RunMemory run_memory(const ModelConfig& config, const MemoryEstimateOptions& options, uint64_t weight_bytes) {
  RunMemory run;
  run.context = options.context > 0 ? options.context : config.max_positions;
  run.batch_size = options.batch_size;
  run.kv_cache_bytes_per_token = KvCache::bytes_per_token(config, parse_cache_dtype(options.kv_cache_dtype));
  const int64_t tokens = run.context * run.batch_size;
  if (!config.is_causal) {  // keys and values of one layer at a time, and of all tokens at once
    const int64_t each = activations_per_token(config) + 2 * config.kv_heads * config.head_dim;
    run.kv_cache_bytes_per_token = 0;
    run.activation_bytes = static_cast<uint64_t>(tokens * each) * sizeof(float);
    run.total_bytes = weight_bytes + run.activation_bytes;
    return run;
  }
  run.kv_cache_bytes = run.kv_cache_bytes_per_token * static_cast<uint64_t>(tokens);
  const int64_t floats = std::min(tokens, kPrefillRows) * activations_per_token(config) +
                         run.context * config.rotary_dim + run.batch_size * config.vocab_size;
  run.activation_bytes = static_cast<uint64_t>(floats) * sizeof(float);
  run.total_bytes = weight_bytes + run.kv_cache_bytes + run.activation_bytes;
  return run;
}

void validate(const MemoryEstimateOptions& options) {
  constexpr int64_t kMostTokens = int64_t{1} << 31, kMostSequences = int64_t{1} << 20;
  if (options.context < 0 || options.context > kMostTokens) {
    fail(ErrorCode::kInvalidArgument,
         "context is {}, expected 1 to {}, or 0 for the model's max_position_embeddings", options.context,
         kMostTokens);
  }
  if (options.batch_size < 1 || options.batch_size > kMostSequences) {
    fail(ErrorCode::kInvalidArgument, "batch_size is {}, expected 1 to {}", options.batch_size,
         kMostSequences);
  }
  parse_cache_dtype(options.kv_cache_dtype);
}

// What transformers 5 keeps beside a file's tensors: two F32 copies of the rotary frequencies of each kind of
// layer, and BERT's numbers of positions and kinds of segments. (Not Gemma's one scale of embeddings.)
uint64_t buffer_bytes(const ModelConfig& config) {
  const int64_t frequencies = config.rotary_dim / 2 * (config.window_rope ? 2 : 1);
  const int64_t positions = config.token_types > 0 ? 2 * config.max_positions : 0;
  return static_cast<uint64_t>(frequencies) * 2 * sizeof(float) +
         static_cast<uint64_t>(positions) * sizeof(int64_t);
}

void estimate_run(const InspectSource& source, const MemoryEstimateOptions& options,
                  MemoryEstimate& estimate) {
  if (source.config.is_null()) {
    estimate.run_unknown = "a single file has no config.json: name the model's folder";
    return;
  }
  ModelConfig config;
  try {
    config = find_architecture(source.config).read_config(source.config);
  } catch (const Error& error) {
    estimate.run_unknown = error.what();
    return;
  }
  estimate.buffer_bytes = buffer_bytes(config);
  estimate.run = run_memory(config, options, estimate.weight_bytes);
  if (estimate.run.context > config.max_positions) {
    estimate.notes.push_back(fmt::format("context is {}, the model was made for {} (max_position_embeddings)",
                                         estimate.run.context, config.max_positions));
  }
}

Json json_of(const MemoryEstimate& estimate) {
  Json json = Json::object();
  json.set("parameters", estimate.parameters);
  json.set("weight_bytes", estimate.weight_bytes);
  json.set("buffer_bytes", estimate.buffer_bytes);
  json.set("footprint_bytes", estimate.footprint_bytes);
  const RunMemory& run = estimate.run;
  json.set("run", estimate.run_unknown.empty()
                      ? Json(Json::Object{{"context", run.context},
                                          {"batch_size", run.batch_size},
                                          {"kv_cache_bytes_per_token", run.kv_cache_bytes_per_token},
                                          {"kv_cache_bytes", run.kv_cache_bytes},
                                          {"activation_bytes", run.activation_bytes},
                                          {"total_bytes", run.total_bytes}})
                      : Json());
  json.set("run_unknown", estimate.run_unknown.empty() ? Json() : Json(estimate.run_unknown));
  Json list = Json::array();
  for (const TrainMemory& train : estimate.train) {
    list.push_back(Json::Object{{"dtype", train.dtype},
                                {"weight_bytes", train.weight_bytes},
                                {"gradient_bytes", train.gradient_bytes},
                                {"adam_bytes", train.adam_bytes},
                                {"adam_8bit_bytes", train.adam_8bit_bytes},
                                {"total_bytes", train.total_bytes},
                                {"total_8bit_bytes", train.total_8bit_bytes}});
  }
  json.set("train", std::move(list));
  json.set("train_unknown", estimate.train_unknown.empty() ? Json() : Json(estimate.train_unknown));
  Json notes = Json::array();
  for (const std::string& note : estimate.notes) notes.push_back(note);
  json.set("notes", std::move(notes));
  return json;
}

}  // namespace

Fields option_fields(MemoryEstimateOptions& options) {
  return {{"context", &options.context,
           "tokens of each sequence, prompt and answer, for which memory is estimated; 0: the model's "
           "max_position_embeddings"},
          {"batch_size", &options.batch_size, "sequences at once, for the same estimate"},
          {"kv_cache_dtype", &options.kv_cache_dtype, "keys and values are kept as bfloat16 or float32"}};
}

MemoryEstimate estimate_memory(const std::filesystem::path& path, const MemoryEstimateOptions& options) {
  validate(options);
  const InspectSource source = open_inspect_source(path);
  const Summary summary = summarize(source);
  MemoryEstimate estimate;
  estimate.parameters = summary.parameters;
  estimate.weight_bytes = summary.kept_bytes();
  estimate_run(source, options, estimate);
  estimate.footprint_bytes = estimate.weight_bytes + estimate.buffer_bytes;
  if (source.dialect == "bitsandbytes") {
    for (const auto& [name, component] : summary.components) {
      for (const auto& [kind, bytes] : component.bytes)
        if (kind == "scales" || kind == "codebook") estimate.footprint_bytes -= bytes;
    }
    estimate.notes.push_back(
        "footprint: transformers counts no scales and codebooks of bitsandbytes, which are memory all the "
        "same");
  }
  if (summary.knows_all_parameters) {
    estimate.train = {train_memory(summary, DType::kBF16, "bfloat16"),
                      train_memory(summary, DType::kF32, "float32")};
    estimate.notes.push_back(
        "training: all parameters as dense weights, with Adam; activations are left out");
  } else {
    estimate.train_unknown = "lowbit does not know how many parameters the packed tensors stand for";
  }
  return estimate;
}

std::string to_json(const MemoryEstimate& estimate) { return json_of(estimate).dump(2); }

std::string inspect_with_memory_json(const std::filesystem::path& path,
                                     const MemoryEstimateOptions& options) {
  validate(options);
  Json json = parse_json(inspect_json(path), "inspection");
  json.set("memory", json_of(estimate_memory(path, options)));
  return json.dump(2);
}

}  // namespace lowbit
