#include "runtime/language_model.h"

#include "base/fail.h"
#include "base/gpu.h"
#include "ops/cuda/libraries.h"
#include "runtime/options.h"
#include "runtime/resident.h"

#include <algorithm>
#include <utility>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

// Ids that no token has (some files say -1 for none) can never be sampled and are left out.
std::vector<int32_t> token_ids(const Json* value) {
  std::vector<int32_t> ids;
  auto add = [&](const Json& id) {
    if (id.is_integer() && id.as_integer() >= 0 && std::in_range<int32_t>(id.as_integer()))
      ids.push_back(static_cast<int32_t>(id.as_integer()));
  };
  if (value && value->is_array()) {
    for (const Json& id : value->as_array()) add(id);
  } else if (value) {
    add(*value);
  }
  return ids;
}

void read_generation_config(LanguageModel::State& state) {
  Json config = Json::object();
  const fs::path file = state.folder / "generation_config.json";
  if (fs::exists(file)) config = parse_json(read_file(file, 1 << 20), file.string());
  auto number = [&](const char* key, double otherwise) {
    const Json* value = config.find(key);
    return value && value->is_number() ? value->as_number() : otherwise;
  };
  GenerateOptions& sampling = state.sampling_defaults;
  const Json* do_sample = config.find("do_sample");
  const bool samples = do_sample && do_sample->is_bool() && do_sample->as_bool();
  sampling.temperature = samples ? static_cast<float>(number("temperature", 1)) : 0;
  sampling.top_k = static_cast<int64_t>(std::clamp(number("top_k", samples ? 50 : 0), -1.0, 0x1p40));
  sampling.top_p = static_cast<float>(number("top_p", 1));
  sampling.repetition_penalty = static_cast<float>(number("repetition_penalty", 1));
  try {
    validate(sampling);
  } catch (const Error& error) {
    fail(ErrorCode::kCorruptFile, "{}: {}", file.string(), error.what());
  }

  state.eos_ids = token_ids(config.find("eos_token_id"));
  if (state.eos_ids.empty()) state.eos_ids = token_ids(state.checkpoint.config.find("eos_token_id"));
  if (state.tokenizer && state.tokenizer->eos_id()) state.eos_ids.push_back(*state.tokenizer->eos_id());
}

std::string cpu_only(const RuntimeOptions& options) {
  if (!options.kernel.empty()) return fmt::format("kernel \"{}\"", options.kernel);
  if (options.kv_cache_dtype != "bfloat16")
    return fmt::format("kv_cache_dtype \"{}\"", options.kv_cache_dtype);
  return "";
}

}  // namespace

LanguageModel LanguageModel::load(const fs::path& folder, const RuntimeOptions& options, const Log& log) {
  LanguageModel model;
  model.state_ = std::make_unique<State>(choose_device(options.device, cpu_only(options), log));
  State& state = *model.state_;
  state.folder = folder;
  state.kernels = parse_kernel_choice(options.kernel);
  state.cache_dtype = parse_cache_dtype(options.kv_cache_dtype);
  if (options.threads < 0 || options.threads > 1024) {
    fail(ErrorCode::kInvalidArgument, "threads is {}, expected 0 to 1024", options.threads);
  }
  state.checkpoint = read_checkpoint(folder);
  for (const std::string& note : state.checkpoint.notes) log.info(note);
  state.threads = std::make_unique<ThreadPool>(options.threads);
  if (state.device != kHost) {
    state.gpu = std::make_unique<GpuQueue>(state.device);
    if constexpr (kHasCuda) state.libraries = std::make_shared<GpuLibraries>(*state.gpu);
    move_to_gpu(state.checkpoint.weights, state.ops());
  } else if (!options.map_weights && !move_to_memory(state.checkpoint.weights, *state.threads)) {
    log.info("the weights stay in the mapped file: copies would take more than a quarter of the free memory");
  }
  state.model = Model::create(state.checkpoint.config, state.checkpoint.weights);
  try {
    state.tokenizer = Tokenizer::load(folder);
    if (state.tokenizer->vocab_size() > state.model.config().vocab_size) {
      log.warning(fmt::format("the tokenizer knows {} tokens, the model {}: ids beyond are refused",
                              state.tokenizer->vocab_size(), state.model.config().vocab_size));
    }
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kNotFound) throw;
    state.tokenizer_error = error.what();
  }
  try {
    state.chat_template = ChatTemplate::load(folder);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kNotFound) throw;
    state.chat_template_error = error.what();
  }
  read_generation_config(state);
  return model;
}

LanguageModel::~LanguageModel() = default;
LanguageModel::LanguageModel(LanguageModel&&) noexcept = default;
LanguageModel& LanguageModel::operator=(LanguageModel&&) noexcept = default;

const Tokenizer& LanguageModel::tokenizer() const {
  if (!state_->tokenizer) throw Error(ErrorCode::kNotFound, state_->tokenizer_error);
  return *state_->tokenizer;
}

const ChatTemplate& LanguageModel::chat_template() const {
  if (!state_->chat_template) throw Error(ErrorCode::kNotFound, state_->chat_template_error);
  return *state_->chat_template;
}

GenerateOptions LanguageModel::sampling_defaults() const { return state_->sampling_defaults; }
int64_t LanguageModel::context_length() const { return state_->model.config().max_positions; }
int64_t LanguageModel::vocab_size() const { return state_->model.config().vocab_size; }

}  // namespace lowbit
