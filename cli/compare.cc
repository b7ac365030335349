#include "command.h"
#include "lowbit/bench.h"
#include "lowbit/error.h"
#include "lowbit/evaluate.h"
#include "lowbit/fields.h"
#include "lowbit/report.h"
#include "options.h"
#include "paths.h"
#include "terminal.h"

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <memory>

namespace lowbit::cli {
namespace {

struct Arguments {
  std::vector<std::string> models;
  std::string data, text;
  int64_t context = 512;
  int64_t windows = 0;
  bool measures_speed = true;
  RuntimeOptions runtime;
  ClassifyOptions classify;
  Common common;
};

ComparisonRow measure(const Arguments& arguments, const std::string& folder, const LanguageModel& model,
                      const LanguageModel* source, const ComparisonRow* source_row, const Log& log) {
  ComparisonRow row;
  row.name = name_of(folder);
  row.bytes = safetensors_bytes(folder);
  if (arguments.measures_speed) {
    // A small model's context may be shorter than what is measured by default.
    SpeedOptions speed;
    if (model.context_length() < speed.prompt_tokens + speed.new_tokens) {
      speed.prompt_tokens = std::max<int64_t>(model.context_length() / 2, 1);
      speed.new_tokens = std::max<int64_t>(model.context_length() / 4, 2);
    }
    const SpeedResult result = measure_speed(model, speed, log);
    row.decode_tokens_per_second = result.decode_tokens_per_second;
    row.speed_protocol = result.protocol;
  }
  if (!arguments.data.empty()) {
    row.classification = classify(model, arguments.data, arguments.classify, log);
    if (source)
      row.paired = compare_answers(source_row->classification, row.classification, arguments.classify);
  }
  if (arguments.text.empty()) return row;
  if (source) {  // both models run over the text once: the source's perplexity comes with it
    row.divergence = divergence(model, *source, arguments.text,
                                {.context = arguments.context, .limit = arguments.windows}, log);
    row.perplexity = row.divergence.perplexity;
  } else if (arguments.models.size() == 1) {
    row.perplexity =
        perplexity(model, arguments.text, {.context = arguments.context, .limit = arguments.windows}, log);
  }
  return row;
}

int run_compare(Arguments& arguments) {
  for (const std::string& model : arguments.models) require_model(model);
  if (arguments.data.empty() && arguments.text.empty() && !arguments.measures_speed) {
    throw Error(ErrorCode::kInvalidArgument, "there is nothing to compare: give --data, --text or both");
  }
  if (!arguments.data.empty()) require_file(arguments.data, "--data");
  if (!arguments.text.empty()) require_file(arguments.text, "--text");
  arguments.runtime.threads = arguments.common.threads;
  if (arguments.runtime.kv_cache_tokens == 0) {
    arguments.runtime.kv_cache_tokens =
        std::max(cache_tokens(arguments.classify.batch_size, kUsualPrompt),
                 cache_tokens(DivergenceOptions().batch_size, arguments.context));
  }
  set_on_interrupt(OnInterrupt::kFlag);
  const Log log = progress_log();

  const LanguageModel source = LanguageModel::load(arguments.models[0], arguments.runtime, log);
  std::vector<ComparisonRow> rows = {measure(arguments, arguments.models[0], source, nullptr, nullptr, log)};
  for (size_t i = 1; i < arguments.models.size(); ++i) {
    const LanguageModel model = LanguageModel::load(arguments.models[i], arguments.runtime, log);
    rows.push_back(measure(arguments, arguments.models[i], model, &source, &rows[0], log));
  }
  if (rows.size() > 1) rows[0].perplexity = rows[1].divergence.reference_perplexity;
  print_line(arguments.common.json ? comparison_json(rows) : comparison_text(rows));
  return kOk;
}

}  // namespace

void add_compare(CLI::App& app, Run& run) {
  CLI::App& command = add_command(
      app, "compare",
      "A model beside its quantized forms in one table: bytes, speed, your task, perplexity, divergence",
      "  lowbit compare qwen2 qwen2-int4 --data test.jsonl --text wiki.test.raw\n"
      "  prints one column per model; the first folder is the source that the others\n"
      "  are compared with, answer by answer.");
  const auto arguments = std::make_shared<Arguments>();
  command
      .add_option("MODELS", arguments->models, "the source's folder, then those of the models made from it")
      ->required();
  command.add_option("--data", arguments->data, "dialogues with labels, as JSONL, for the classification")
      ->type_name("FILE");
  command.add_option("--text", arguments->text, "a text for perplexity and divergence")->type_name("FILE");
  add_fields(command,
             {{"context", &arguments->context, "ids per window of the text"},
              {"windows", &arguments->windows, "at most this many windows of the text; 0: all"},
              {"speed", &arguments->measures_speed, "measure tokens per second"}},
             "Comparison");
  add_fields(command, option_fields(arguments->classify), "Classification", {"max_length", "truncate"});
  add_fields(command, option_fields(arguments->runtime), "Runtime", {"threads"});
  add_common(command, arguments->common);
  command.callback([arguments, &run] { run = [arguments] { return run_compare(*arguments); }; });
}

}  // namespace lowbit::cli
