#include "lowbit/bench.h"

#include "command.h"
#include "lowbit/error.h"
#include "lowbit/fields.h"
#include "lowbit/report.h"
#include "options.h"
#include "paths.h"
#include "terminal.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fmt/format.h>
#include <memory>

namespace lowbit::cli {
namespace {

struct Arguments {
  std::vector<std::string> models;
  RuntimeOptions runtime;
  BenchOptions bench;
  Common common;
};

// Sets the options that stand behind a model, "load-in-4bit,bnb-4bit-quant-type=fp4", as the command line
// would.
void set_options(const std::string& model, const std::string& text, RuntimeOptions& options) {
  CLI::App parser;
  parser.set_help_flag();
  add_fields(parser, option_fields(options), "Runtime", {"threads"});
  std::vector<std::string> words, names;
  for (const CLI::Option* option : parser.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back(name);
  }
  const auto refuse = [&](const std::string& why) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{}: behind the colon stand options of lowbit generate without --, as in "
                            "qwen2:load-in-4bit,bnb-4bit-quant-type=fp4; {}",
                            model, why));
  };
  for (const std::string& part : CLI::detail::split(text, ',')) {
    const std::string name = part.substr(0, part.find('=')), near = nearest(name, names);
    if (std::find(names.begin(), names.end(), name) == names.end()) {
      refuse(fmt::format("there is no option \"{}\"{}", name,
                         near.empty() ? "" : fmt::format(", did you mean {}?", near)));
    }
    words.insert(words.begin(), fmt::format("--{}", part));
  }
  try {
    parser.parse(words);
  } catch (const CLI::ParseError& error) {
    refuse(error.what());
  }
}

// FOLDER or FOLDER:OPTION,...
BenchModel read_model(const std::string& text, const RuntimeOptions& options) {
  BenchModel model{.name = name_of(text), .folder = text, .runtime = options};
  const size_t colon = text.rfind(':');
  if (colon != text.npos && !std::filesystem::exists(text)) {
    model.folder = text.substr(0, colon);
    model.name = name_of(model.folder) + text.substr(colon);
    set_options(text, text.substr(colon + 1), model.runtime);
  }
  require_model(model.folder);
  return model;
}

int run_bench(Arguments& arguments) {
  arguments.runtime.threads = arguments.common.threads;
  std::vector<BenchModel> models;
  for (const std::string& text : arguments.models) {
    BenchModel model = read_model(text, arguments.runtime);
    const bool is_taken = std::any_of(models.begin(), models.end(),
                                      [&](const BenchModel& other) { return other.name == model.name; });
    if (is_taken) model.name = text;
    models.push_back(std::move(model));
  }
  set_on_interrupt(OnInterrupt::kFlag);
  const BenchResult result = bench(models, arguments.bench, progress_log());
  print_line(arguments.common.json ? to_json(result) : bench_text(result));
  return kOk;
}

}  // namespace

void add_bench(CLI::App& app, Run& run) {
  CLI::App& command = add_command(
      app, "bench", "How fast models load, read and write, in turn, beside what the machine can do at most",
      "  lowbit bench qwen2 qwen2:load-in-4bit qwen2-int4 --batch-size 1,8\n"
      "  prints one column per model: the folder qwen2 as it stands, rounded to\n"
      "  nf4 while it is loaded, and a quantized copy. Behind a colon stand options\n"
      "  for that model alone; those given as usual hold for all. What is slower\n"
      "  than the first model is marked.");
  const auto arguments = std::make_shared<Arguments>();
  command
      .add_option("MODELS", arguments->models, "folders, each perhaps with options: FOLDER:OPTION=VALUE,...")
      ->required();
  add_fields(command, option_fields(arguments->bench), "Bench");
  add_fields(command, option_fields(arguments->runtime), "Runtime", {"threads"});
  add_common(command, arguments->common);
  command.callback([arguments, &run] { run = [arguments] { return run_bench(*arguments); }; });
}

}  // namespace lowbit::cli
