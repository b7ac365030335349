#include "lowbit/bench.h"

#include "base/cpu.h"
#include "base/fail.h"
#include "base/files.h"
#include "base/json.h"
#include "lowbit/fields.h"
#include "ops/cuda/libraries.h"
#include "ops/cuda/limits.h"
#include "ops/machine_limits.h"
#include "runtime/encoder_run.h"
#include "runtime/forward.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

namespace lowbit {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Texts that an encoder reads in one run, at least: one alone is over too soon to be timed.
constexpr int64_t kLeastTexts = 32;
// What the bandwidth is measured over: no less than this, so that passes last, and no more than this.
constexpr uint64_t kLeastBytes = uint64_t{16} << 20, kMostBytes = uint64_t{1} << 30;

// Which ids does not matter for speed; a stride through the vocabulary avoids one hot embedding row.
std::vector<std::vector<int32_t>> made_up_prompts(const LanguageModel& model, int64_t count, int64_t tokens) {
  std::vector<std::vector<int32_t>> prompts(static_cast<size_t>(count));
  for (int64_t i = 0; i < count * tokens; ++i)
    prompts[static_cast<size_t>(i / tokens)].push_back(static_cast<int32_t>(i * 7919 % model.vocab_size()));
  return prompts;
}

GenerateSpeed generate_once(const LanguageModel& model, int64_t batch_size, int64_t prompt_tokens,
                            int64_t new_tokens) {
  GenerateSpeed speed;
  model.generate(made_up_prompts(model, batch_size, prompt_tokens),
                 {.max_new_tokens = new_tokens, .ignore_eos = true}, {}, &speed);
  return speed;
}

double per_second(int64_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

double texts_per_second(const LanguageModel& model, int64_t batch_size, int64_t tokens) {
  const int64_t count = (std::max(kLeastTexts, batch_size) + batch_size - 1) / batch_size * batch_size;
  std::vector<EncoderInput> inputs;
  for (std::vector<int32_t>& ids : made_up_prompts(model, count, tokens))
    inputs.push_back({.ids = std::move(ids),
                      .types = std::vector<int32_t>(static_cast<size_t>(tokens)),
                      .full_length = tokens});
  const Clock::time_point start = Clock::now();
  run_encoder(model.state(), inputs, batch_size, "", {}, [](size_t, const float*) {});
  return per_second(count, seconds_since(start));
}

// The most anonymous memory between its beginning and stop(). Linux keeps no such mark, so a thread looks.
class PeakMemory {
 public:
  PeakMemory() : at_first_(process_memory().anonymous_bytes), peak_(at_first_) {
    thread_ = std::jthread([this](const std::stop_token& stop) {
      std::unique_lock lock(mutex_);
      while (!wakes_.wait_for(lock, stop, std::chrono::milliseconds(period_.load()),
                              [&] { return stop.stop_requested(); }))
        peak_ = std::max(peak_, process_memory().anonymous_bytes);
    });
  }
  // While speed is measured: looking takes a few percent of a processor.
  void look_seldom() { period_ = 100; }
  uint64_t stop() {
    thread_.request_stop();
    thread_.join();
    return std::max(peak_, process_memory().anonymous_bytes) - at_first_;
  }

 private:
  uint64_t at_first_, peak_;
  std::atomic<int> period_ = 5;  // ms
  std::mutex mutex_;
  std::condition_variable_any wakes_;
  std::jthread thread_;
};

// Figures of each round.
struct Rounds {
  std::vector<double> values;
  void add(double value) {
    if (value > 0) values.push_back(value);
  }
  BenchFigure figure() {
    std::sort(values.begin(), values.end());
    if (values.empty()) return {};
    return {.median = values[values.size() / 2], .lowest = values.front(), .highest = values.back()};
  }
};

struct SpeedRounds {
  Rounds prefill, decode, texts;
};

struct ModelRounds {
  BenchRow row;
  Rounds load, first_token, read_gbps;
  std::vector<SpeedRounds> speeds;
  uint64_t cache_bytes_per_token = 0;
  bool has_int8_inputs = false;
  int gpu = kHost;
};

// Weights that a step reads, and what a token costs.
void count_work(const LanguageModel& model, ModelRounds& rounds) {
  const LanguageModel::State& state = model.state();
  int64_t products = 0;
  for (int64_t layer = 0; layer < state.model.layer_count(); ++layer) {
    for (const Linear& linear : state.model.block(layer).linears()) {
      rounds.row.step_bytes += weight_bytes(linear.weight);
      products += out_features(linear.weight) * in_features(linear.weight);
      const auto* quantized = std::get_if<QuantizedTensor>(&linear.weight);
      rounds.has_int8_inputs |= quantized && quantized->activations != ActivationFormat::kNone;
    }
  }
  rounds.row.operations_per_token = 2.0 * static_cast<double>(products);
  if (!state.model.config().is_causal) return;
  rounds.row.step_bytes += weight_bytes(state.model.head().weight);
  rounds.cache_bytes_per_token = KvCache::bytes_per_token(state.model.config(), state.cache_dtype);
}

struct GpuRates {
  double read_gbps = 0, matrix_gops = 0;
};

// Loads a model, measures it, and lets it go.
void run_round(const BenchModel& named, const BenchOptions& options, const Log& log, ModelRounds& rounds) {
  PeakMemory peak;
  const Clock::time_point start = Clock::now();
  const LanguageModel model = LanguageModel::load(named.folder, named.runtime, log);
  const double load_seconds = seconds_since(start);
  rounds.load.add(load_seconds);
  peak.look_seldom();
  if (rounds.row.device.empty()) {
    rounds.row.device = model.device();
    if (model.state().gpu) rounds.gpu = model.state().gpu->gpu();
    count_work(model, rounds);
  }
  for (size_t i = 0; i < options.batch_size.size(); ++i) {
    const int64_t batch = options.batch_size[i];
    SpeedRounds& speeds = rounds.speeds[i];
    if (!model.state().model.config().is_causal) {
      texts_per_second(model, batch, options.prompt_tokens);  // to warm up
      speeds.texts.add(texts_per_second(model, batch, options.prompt_tokens));
      continue;
    }
    const GenerateSpeed first = generate_once(model, batch, options.prompt_tokens, 2);
    if (i == 0) rounds.first_token.add(load_seconds + first.prefill_seconds);
    const GenerateSpeed speed = generate_once(model, batch, options.prompt_tokens, options.new_tokens);
    speeds.prefill.add(per_second(speed.prefill_tokens, speed.prefill_seconds));
    speeds.decode.add(per_second(speed.decode_tokens, speed.decode_seconds));
  }
  rounds.row.memory = model.memory();
  rounds.row.peak_anonymous_bytes = std::max(rounds.row.peak_anonymous_bytes, peak.stop());
  if (model.state().gpu) return;
  const ThreadPool& threads = *model.state().threads;
  const uint64_t bytes = std::clamp(rounds.row.step_bytes, kLeastBytes, kMostBytes);
  rounds.read_gbps.add(measure_read_bandwidth(threads, bytes).gb_per_s);
  if (rounds.row.matrix_gops > 0) return;
  const MachineLimits limits = measure_machine_limits(threads, kLeastBytes);
  rounds.row.matrix_gops =
      rounds.has_int8_inputs ? limits.amx_int8.all : std::max(limits.fp32.all, limits.amx_bf16.all);
}

// Of the GPU that a model ran on; by now it has left it.
void measure_gpu(ModelRounds& rounds, std::map<int, GpuRates>& known) {
  if constexpr (kHasCuda) {
    if (rounds.gpu < 0) return;
    const auto [found, is_new] = known.try_emplace(rounds.gpu);
    GpuRates& rates = found->second;
    if (is_new) {
      GpuQueue queue(rounds.gpu);
      GpuLibraries libraries(queue);
      rates.read_gbps = measure_gpu_limits(rounds.gpu).read_gb_per_s;
      if (libraries.gemm_problem().empty()) rates.matrix_gops = measure_matrix_rate(queue, libraries) * 1e3;
    }
    rounds.read_gbps.add(rates.read_gbps);
    rounds.row.matrix_gops = rates.matrix_gops;
  }
}

void set_shares(const ModelRounds& rounds, const BenchOptions& options, BenchSpeed& speed) {
  const BenchRow& row = rounds.row;
  if (row.matrix_gops > 0) {
    const double tokens_per_second = row.matrix_gops * 1e9 / row.operations_per_token;
    speed.prefill_tokens_per_second.share_of_limit =
        speed.prefill_tokens_per_second.median / tokens_per_second;
    speed.texts_per_second.share_of_limit =
        speed.texts_per_second.median * static_cast<double>(options.prompt_tokens) / tokens_per_second;
  }
  if (row.read_gbps.median == 0) return;
  // In the middle of the answer.
  const auto cached =
      static_cast<uint64_t>(speed.batch_size * (options.prompt_tokens + options.new_tokens / 2));
  const auto bytes = static_cast<double>(row.step_bytes + cached * rounds.cache_bytes_per_token);
  speed.decode_tokens_per_second.share_of_limit = speed.decode_tokens_per_second.median /
                                                  static_cast<double>(speed.batch_size) * bytes /
                                                  (row.read_gbps.median * 1e9);
}

BenchRow row_of(ModelRounds& rounds, const BenchOptions& options) {
  BenchRow& row = rounds.row;
  row.load_seconds = rounds.load.figure();
  row.first_token_seconds = rounds.first_token.figure();
  row.read_gbps = rounds.read_gbps.figure();
  for (size_t i = 0; i < options.batch_size.size(); ++i) {
    SpeedRounds& speeds = rounds.speeds[i];
    BenchSpeed& speed =
        row.speeds.emplace_back(BenchSpeed{.batch_size = options.batch_size[i],
                                           .prefill_tokens_per_second = speeds.prefill.figure(),
                                           .decode_tokens_per_second = speeds.decode.figure(),
                                           .texts_per_second = speeds.texts.figure()});
    set_shares(rounds, options, speed);
  }
  return std::move(row);
}

void set_ratios(const std::vector<BenchSpeed>& first, std::vector<BenchSpeed>& speeds) {
  for (size_t i = 0; i < first.size(); ++i) {
    for (BenchFigure BenchSpeed::*figure :
         {&BenchSpeed::prefill_tokens_per_second, &BenchSpeed::decode_tokens_per_second,
          &BenchSpeed::texts_per_second}) {
      const double reference = (first[i].*figure).median;
      if (reference > 0) (speeds[i].*figure).ratio_to_first = (speeds[i].*figure).median / reference;
    }
  }
}

void validate(const BenchOptions& options) {
  auto check = [](const char* name, int64_t value, int64_t least, int64_t most) {
    if (value < least || value > most)
      fail(ErrorCode::kInvalidArgument, "{} is {}, expected {} to {}", name, value, least, most);
  };
  if (options.batch_size.empty())
    fail(ErrorCode::kInvalidArgument, "batch_size is empty, expected 1 or more numbers");
  for (const int64_t size : options.batch_size) check("batch_size", size, 1, 1024);
  check("prompt_tokens", options.prompt_tokens, 1, 1 << 20);
  check("new_tokens", options.new_tokens, 2, 1 << 20);
  check("rounds", options.rounds, 1, 1000);
}

void check_context(std::string_view name, int64_t context, int64_t prompt_tokens, int64_t new_tokens) {
  if (prompt_tokens + new_tokens <= context) return;
  fail(ErrorCode::kInvalidArgument,
       "{} prompt tokens and {} new ones are more than the context of {}, {}: lower prompt_tokens or "
       "new_tokens",
       prompt_tokens, new_tokens, name, context);
}

// Before anything is measured. Whether they are encoders.
bool check_models(const std::vector<BenchModel>& models, const BenchOptions& options) {
  if (models.empty()) fail(ErrorCode::kInvalidArgument, "there is no model to measure");
  std::optional<bool> are_encoders;
  for (const BenchModel& model : models) {
    const std::filesystem::path file = model.folder / "config.json";
    const Json json = parse_json(read_file(file, 16 << 20), file.string());
    const ModelConfig config = find_architecture(json).read_config(json);
    if (are_encoders && *are_encoders == config.is_causal) {
      const auto kind = [](bool is_encoder) { return is_encoder ? "is an encoder" : "writes text"; };
      fail(ErrorCode::kInvalidArgument, "{} {}, {} {}: their figures cannot be compared; measure them apart",
           models[0].name, kind(*are_encoders), model.name, kind(!config.is_causal));
    }
    are_encoders = !config.is_causal;
    check_context(model.name, config.max_positions, options.prompt_tokens,
                  config.is_causal ? options.new_tokens : 0);
  }
  return *are_encoders;
}

std::string protocol_of(const BenchOptions& options, bool are_encoders) {
  const std::string rounds = options.rounds == 1 ? "one round"
                                                 : fmt::format(
                                                       "medians of {} rounds, in each of which the models "
                                                       "are loaded and measured one after the other",
                                                       options.rounds);
  if (are_encoders)
    return fmt::format("texts of {} tokens, {} or more, warm; {}", options.prompt_tokens, kLeastTexts,
                       rounds);
  return fmt::format("{} prompt tokens, {} new tokens, greedy, warm; {}", options.prompt_tokens,
                     options.new_tokens, rounds);
}

Json json_of(const BenchFigure& figure) {
  Json json = Json::Object{{"median", figure.median}, {"lowest", figure.lowest}, {"highest", figure.highest}};
  if (figure.share_of_limit > 0) json.set("share_of_limit", figure.share_of_limit);
  if (figure.ratio_to_first > 0) json.set("ratio_to_first", figure.ratio_to_first);
  return json;
}

// Left out where it was not measured.
void set_figure(Json& json, const char* name, const BenchFigure& figure) {
  if (figure.median > 0) json.set(name, json_of(figure));
}

}  // namespace

Fields option_fields(BenchOptions& options) {
  return {
      {"batch_size", &options.batch_size, "sequences at once; each of these is measured"},
      {"prompt_tokens", &options.prompt_tokens, "ids that each sequence begins with, read at once"},
      {"new_tokens", &options.new_tokens,
       "ids that each sequence is continued by, one after the other; "
       "encoders write none"},
      {"rounds", &options.rounds, "times that every model is loaded and measured, in turn; medians count"}};
}

BenchResult bench(const std::vector<BenchModel>& models, const BenchOptions& options, const Log& log) {
  validate(options);
  const bool are_encoders = check_models(models, options);
  std::vector<ModelRounds> rounds(models.size());
  std::map<int, GpuRates> gpus;
  for (int64_t round = 0; round < options.rounds; ++round) {
    for (size_t i = 0; i < models.size(); ++i) {
      BenchModel model = models[i];
      log.report({.phase = "bench",
                  .done = round * static_cast<int64_t>(models.size()) + static_cast<int64_t>(i),
                  .total = options.rounds * static_cast<int64_t>(models.size()),
                  .detail = model.name});
      if (model.runtime.kv_cache_tokens == 0) {
        model.runtime.kv_cache_tokens =
            *std::max_element(options.batch_size.begin(), options.batch_size.end()) *
            (options.prompt_tokens + options.new_tokens);
      }
      rounds[i].speeds.resize(options.batch_size.size());
      run_round(model, options, log, rounds[i]);
      measure_gpu(rounds[i], gpus);
    }
  }
  BenchResult result{.prompt_tokens = options.prompt_tokens, .protocol = protocol_of(options, are_encoders)};
  for (size_t i = 0; i < models.size(); ++i) {
    rounds[i].row.name = models[i].name;
    result.models.push_back(row_of(rounds[i], options));
    if (i > 0) set_ratios(result.models[0].speeds, result.models[i].speeds);
  }
  return result;
}

std::string to_json(const BenchResult& result) {
  Json models = Json::array();
  for (const BenchRow& row : result.models) {
    Json model = Json::Object{{"name", row.name}, {"device", row.device}};
    set_figure(model, "load_seconds", row.load_seconds);
    set_figure(model, "first_token_seconds", row.first_token_seconds);
    model.set("peak_anonymous_bytes", row.peak_anonymous_bytes);
    model.set("memory", parse_json(to_json(row.memory), "memory"));
    model.set("step_bytes", row.step_bytes);
    model.set("operations_per_token", row.operations_per_token);
    set_figure(model, "read_gbps", row.read_gbps);
    model.set("matrix_gops", row.matrix_gops > 0 ? Json(row.matrix_gops) : Json());
    Json speeds = Json::array();
    for (const BenchSpeed& speed : row.speeds) {
      Json figures = Json::Object{{"batch_size", speed.batch_size}};
      set_figure(figures, "prefill_tokens_per_second", speed.prefill_tokens_per_second);
      set_figure(figures, "decode_tokens_per_second", speed.decode_tokens_per_second);
      set_figure(figures, "texts_per_second", speed.texts_per_second);
      speeds.push_back(std::move(figures));
    }
    model.set("speeds", std::move(speeds));
    models.push_back(std::move(model));
  }
  Json json = Json::object();
  json.set("models", std::move(models));
  json.set("protocol", result.protocol);
  return json.dump(2);
}

SpeedResult measure_speed(const LanguageModel& model, const SpeedOptions& options, const Log& log) {
  require_text_generation(model.state());
  validate({.batch_size = {options.batch_size},
            .prompt_tokens = options.prompt_tokens,
            .new_tokens = options.new_tokens,
            .rounds = options.repetitions});
  check_context("the model", model.context_length(), options.prompt_tokens, options.new_tokens);
  Rounds decode, prefill;
  for (int64_t run = 0; run <= options.repetitions; ++run) {
    const GenerateSpeed speed =
        generate_once(model, options.batch_size, options.prompt_tokens, options.new_tokens);
    log.report({.phase = "speed", .done = run, .total = options.repetitions});
    if (run == 0) continue;  // to warm up
    decode.add(per_second(speed.decode_tokens, speed.decode_seconds));
    prefill.add(per_second(speed.prefill_tokens, speed.prefill_seconds));
  }
  return {
      .decode_tokens_per_second = decode.figure().median,
      .prefill_tokens_per_second = prefill.figure().median,
      .protocol = fmt::format(
          "{}, {} prompt tokens, {} new tokens, greedy, median of {} runs after one to warm up",
          options.batch_size == 1 ? "one sequence" : fmt::format("{} sequences at once", options.batch_size),
          options.prompt_tokens, options.new_tokens, options.repetitions)};
}

}  // namespace lowbit
