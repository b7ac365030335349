#include "runtime/language_model.h"

#include "base/cpu.h"
#include "base/fail.h"
#include "base/gpu.h"
#include "ops/cuda/libraries.h"
#include "runtime/forward.h"
#include "runtime/gpu_placement.h"
#include "runtime/gpu_warm_up.h"
#include "runtime/load_quantized.h"
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

// All, but powers with more codes than a table in registers has.
bool runs_on_gpu(const QuantizedTensor& weight) { return weight.format != Format::kLog2 || weight.bits <= 4; }
// The format of a weight for which there are no kernels on a GPU, or "".
std::string_view cpu_only_format(const NamedWeights& weights) {
  for (const auto& [name, weight] : weights) {
    const auto* quantized = std::get_if<QuantizedTensor>(&weight);
    if (quantized && !runs_on_gpu(*quantized)) return format_name(quantized->format);
  }
  return "";
}

// On this machine, tensor by tensor. Rounding scales to 8 bits takes those of a whole matrix.
bool is_quantized_here(const RuntimeOptions& options) { return options.bnb_4bit_use_double_quant; }

bool has_codes(const NamedWeights& weights) {
  return std::ranges::any_of(
      weights, [](const auto& weight) { return std::holds_alternative<QuantizedTensor>(weight.second); });
}

bool has_int8_inputs(const NamedWeights& weights) {
  return std::any_of(weights.begin(), weights.end(), [](const auto& weight) {
    const auto* quantized = std::get_if<QuantizedTensor>(&weight.second);
    return quantized && quantized->activations != ActivationFormat::kNone;
  });
}

constexpr int64_t kCacheTokens = 2048;  // the default of kv_cache_tokens
// What other programs and the driver's own needs may take while a model is loaded.
constexpr uint64_t kSpareBytes = uint64_t{256} << 20;

// Moves the model to the GPU. False: device is "auto", and the CPU is the better place; the log says why.
bool load_on_gpu(LanguageModel::State& state, int device, const RuntimeOptions& options, const Log& log) {
  const bool may_refuse = parse_device(options.device) == kAnyDevice;
  if (const std::string_view format = cpu_only_format(state.checkpoint.weights); !format.empty()) {
    if (!may_refuse) {
      fail(ErrorCode::kUnsupported,
           "the model's weights are {} with more than 4 bits, for which lowbit has no GPU kernels: use "
           "--device cpu",
           format);
    }
    log.info(fmt::format(
        "weights in {} with more than 4 bits run on the CPU only: that is where the model runs", format));
    return false;
  }
  try {
    state.gpu = std::make_unique<GpuQueue>(device, options.max_gpu_memory.count);
  } catch (const Error& error) {
    if (!may_refuse || error.code() != ErrorCode::kOutOfMemory) throw;
    log.info(fmt::format("{}: the model runs on the CPU", error.what()));
    return false;
  }
  if (is_quantized_here(options)) {
    Workspace workspace;
    OpContext here = state.ops();
    here.workspace = &workspace;
    here.gpu = nullptr;
    state.checkpoint.weights.merge(quantized_on_load(state.checkpoint, options, here, log));
  }
  if (options.load_in_8bit || has_int8_inputs(state.checkpoint.weights))
    log.info("on a GPU the inputs of int8 weights are rounded in prompts; decoding keeps them in BF16");
  Model model = Model::create(state.checkpoint.config, state.checkpoint.weights);
  std::optional<GpuEncoding> encoding;
  if ((options.load_in_4bit || options.load_in_8bit) && !is_quantized_here(options))
    encoding = encoding_on_load(model, state.checkpoint, options, log);
  GpuEncoding* const encoded = encoding ? &*encoding : nullptr;
  const int64_t tokens = options.kv_cache_tokens > 0 ? options.kv_cache_tokens
                                                     : std::min(kCacheTokens, model.config().max_positions);
  const GpuSizes sizes = gpu_sizes(model, state.cache_dtype, tokens, encoded);
  const GpuMemory& memory = state.gpu->memory();
  const uint64_t free = memory.free_bytes(),
                 available = std::min(memory.available(), free - std::min(free, kSpareBytes));
  const GpuPlan plan = plan_layers(sizes, available);
  if (!plan.fits && !may_refuse)
    fail(ErrorCode::kOutOfMemory, "{}", shortage_text(sizes, available, memory.limit()));
  // A layer that is streamed is read no faster than the CPU could read it.
  if (may_refuse && (!plan.fits || 2 * plan.streamed.size() > sizes.layers.size())) {
    const std::string why =
        !plan.fits
            ? shortage_text(sizes, available, memory.limit())
            : fmt::format(
                  "only {} of its {} layers fit into {} of GPU memory (--device cuda streams the others)",
                  sizes.layers.size() - plan.streamed.size(), sizes.layers.size(), bytes_text(available));
    log.info("the model runs on the CPU: " + why);
    state.gpu.reset();
    return false;
  }
  if constexpr (kHasCuda) state.libraries = std::make_shared<GpuLibraries>(*state.gpu);
  state.workspace = std::make_unique<Workspace>(*state.gpu);
  state.gpu->memory().set_reclaim([workspace = state.workspace.get()] { workspace->release(); });
  // Who wants room for more than usual will send long prompts. But what is taken for them must not be missing
  // while weights come.
  const bool has_room = plan.needed_bytes + sizes.work <= available;
  state.warm_up =
      std::make_shared<GpuWarmUp>(*state.gpu, state.libraries, model,
                                  tokens > kCacheTokens && has_room ? std::min(tokens, kGpuPrefillRows) : 0);
  try {
    state.streamed_bytes = place_on_gpu(model, state.ops(), sizes, plan, log, encoded);
  } catch (const Error& error) {  // someone else has taken what was free
    if (!may_refuse || error.code() != ErrorCode::kOutOfMemory) throw;
    log.info(fmt::format("the model runs on the CPU: {}", error.what()));
    state.warm_up.reset();
    model = Model();
    state.workspace.reset();
    state.libraries.reset();
    state.gpu.reset();
    return false;
  }
  state.model = std::move(model);
  state.checkpoint.weights.clear();
  return true;
}

void load_on_cpu(LanguageModel::State& state, const RuntimeOptions& options, const Log& log) {
  state.workspace = std::make_unique<Workspace>();
  NamedWeights quantized;
  // Before, where a GPU had no room for the model.
  const bool is_done = is_quantized_here(options) && has_codes(state.checkpoint.weights);
  if ((options.load_in_4bit || options.load_in_8bit) && !is_done)
    quantized = quantized_on_load(state.checkpoint, options, state.ops(), log);
  if (!options.map_weights &&
      !move_to_memory(state.checkpoint.weights, *state.threads, state.checkpoint.files)) {
    log.info("the weights stay in the mapped file: copies would take more than a quarter of the free memory");
  }
  state.checkpoint.weights.merge(quantized);
  for (const auto& [name, weight] : state.checkpoint.weights) state.weight_bytes += weight_bytes(weight);
  state.model = Model::create(state.checkpoint.config, state.checkpoint.weights);
  state.checkpoint.weights.clear();  // those of which the model has made copies of its own go
}

}  // namespace

LanguageModel LanguageModel::load(const fs::path& folder, const RuntimeOptions& options, const Log& log) {
  validate(options);
  int device = choose_device(options.device, cpu_only(options), log);
  LanguageModel model;
  model.state_ = std::make_unique<State>();
  State& state = *model.state_;
  if constexpr (kHasCuda) {
    if (device != kHost) state.reading_library = std::async(std::launch::async, GpuLibraries::read_early);
  }
  state.folder = folder;
  state.kernels = kernel_choice(options);
  state.cache_dtype = parse_cache_dtype(options.kv_cache_dtype);
  state.checkpoint = read_checkpoint(folder);
  for (const std::string& note : state.checkpoint.notes) log.info(note);
  if (device == kHost && options.max_gpu_memory.count > 0)
    log.info("max_gpu_memory has no effect: the model runs on the CPU");
  state.threads = std::make_unique<ThreadPool>(options.threads);
  if (device == kHost || !load_on_gpu(state, device, options, log)) load_on_cpu(state, options, log);
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
  require_text_generation(*state_);
  if (!state_->chat_template) throw Error(ErrorCode::kNotFound, state_->chat_template_error);
  return *state_->chat_template;
}

GenerateOptions LanguageModel::sampling_defaults() const { return state_->sampling_defaults; }
std::string to_json(const MemoryUse& use) {
  Json json = Json::object();
  if (use.gpu_peak_bytes > 0) {
    json.set("gpu_weight_bytes", use.gpu_weight_bytes);
    json.set("gpu_kv_cache_bytes", use.gpu_kv_cache_bytes);
    json.set("gpu_workspace_bytes", use.gpu_workspace_bytes);
    json.set("gpu_peak_bytes", use.gpu_peak_bytes);
    json.set("streamed_bytes", use.streamed_bytes);
  } else {
    json.set("weight_bytes", use.weight_bytes);
  }
  json.set("peak_rss_bytes", use.peak_rss_bytes);
  return json.dump();
}

std::string LanguageModel::device() const { return device_name(state_->gpu ? state_->gpu->gpu() : kHost); }

MemoryUse LanguageModel::memory() const {
  MemoryUse use{.weight_bytes = state_->weight_bytes,
                .streamed_bytes = state_->streamed_bytes,
                .peak_rss_bytes = process_memory().peak_rss_bytes};
  if (!state_->gpu) return use;
  const GpuMemoryFigures figures = state_->gpu->memory().figures();
  use.gpu_weight_bytes = figures.weights;
  use.gpu_kv_cache_bytes = figures.cache;
  use.gpu_workspace_bytes = figures.work;
  use.gpu_peak_bytes = figures.peak;
  return use;
}

std::string LanguageModel::task() const {
  switch (state_->model.config().head_kind) {
    case HeadKind::kNextToken:
      return "text-generation";
    case HeadKind::kTokens:
      return "fill-mask";
    case HeadKind::kClasses:
      return "text-classification";
    case HeadKind::kNone:
      return "feature-extraction";
  }
  fail(ErrorCode::kInternal, "a head of unknown kind");
}

void require_text_generation(const LanguageModel::State& state) {
  const ModelConfig& config = state.model.config();
  if (config.is_causal) return;
  fail(ErrorCode::kInvalidArgument,
       "{} is an encoder ({}) and writes no text; lowbit eval embeddings compares its embeddings with its "
       "source's{}",
       state.folder.string(), config.architecture.empty() ? config.model_type : config.architecture,
       config.head_kind == HeadKind::kClasses ? ", lowbit eval classify runs it on examples" : "");
}

void require_encoder(const LanguageModel::State& state) {
  const ModelConfig& config = state.model.config();
  if (!config.is_causal) return;
  fail(ErrorCode::kInvalidArgument,
       "{} is a model of type {}, which writes text; this takes an encoder, as a BERT", state.folder.string(),
       config.model_type);
}

int64_t LanguageModel::context_length() const { return state_->model.config().max_positions; }
int64_t LanguageModel::vocab_size() const { return state_->model.config().vocab_size; }

}  // namespace lowbit
