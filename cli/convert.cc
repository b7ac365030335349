#include "lowbit/convert.h"

#include "command.h"
#include "json_object.h"
#include "lowbit/fields.h"
#include "options.h"
#include "paths.h"
#include "terminal.h"

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <memory>

namespace lowbit::cli {
namespace {

struct Arguments {
  std::string model, out;
  ConvertOptions options;
  Common common;
};

int run_convert(const Arguments& arguments) {
  require_model(arguments.model);
  require_parent(arguments.out, "-o");
  set_on_interrupt(OnInterrupt::kFlag);
  const ConvertResult result = convert(arguments.model, arguments.out, arguments.options, progress_log());
  if (arguments.common.json) {
    print_line(result.report_json);
    return kOk;
  }
  print(fmt::format("{} -> {}: {:.1f} MB from {:.1f} MB, {}\n", result.from, result.to,
                    static_cast<double>(result.bytes) / 1e6, static_cast<double>(result.source_bytes) / 1e6,
                    result.largest_error > 0
                        ? fmt::format("weights moved by at most {:.3g}", result.largest_error)
                        : "every weight has the same value"));
  return kOk;
}

}  // namespace

void add_convert(CLI::App& app, Run& run) {
  CLI::App& command =
      add_command(app, "convert", "Write a checkpoint another way: dense, another GPTQ version, other shards",
                  "  lowbit convert qwen2-int4 -o qwen2-dense --to bfloat16\n"
                  "  writes the dequantized weights as a plain model.");
  const auto arguments = std::make_shared<Arguments>();
  command.add_option("MODEL", arguments->model, "the model's folder")->required();
  command.add_option("-o,--output", arguments->out, "folder to write to")->required()->type_name("OUT");
  ConvertOptions& options = arguments->options;
  add_fields(
      command,
      {{"to", &options.to,
        "bfloat16, float16 or float32 (dense), gptq or gptq_v2; without it the format stays"},
       {"sequential_groups", &options.sequential_groups,
        "turn the groups of an act-order checkpoint into groups in column order; costs some error"},
       {"max_shard_size", &options.max_shard_size, "largest file, such as 4GB or 500MB; without it one file"},
       {"overwrite", &options.overwrite, "replace OUT when it exists"}},
      "Conversion");
  add_common(command, arguments->common);
  command.callback([arguments, &run] { run = [arguments] { return run_convert(*arguments); }; });
}

}  // namespace lowbit::cli
