#include "lowbit/quantize.h"

#include "command.h"
#include "lowbit/error.h"
#include "lowbit/fields.h"
#include "lowbit/report.h"
#include "options.h"
#include "paths.h"
#include "terminal.h"

#include <CLI/CLI.hpp>
#include <memory>

namespace lowbit::cli {
namespace {

struct Arguments {
  std::string model, out;
  std::string calibration;
  QuantizeOptions options;
  bool is_plan = false;
  Common common;
};

int run_quantize(Arguments& arguments) {
  QuantizeOptions& options = arguments.options;
  options.threads = arguments.common.threads;
  options.calibration.data = arguments.calibration;
  require_model(arguments.model);
  require_parent(arguments.out, "-o");
  if (!arguments.calibration.empty()) require_file(arguments.calibration, "--calibration");

  if (arguments.is_plan) {
    const std::string plan = plan_json(arguments.model, arguments.out, options);
    print_line(arguments.common.json ? plan : plan_text(plan));
    return plan_is_feasible(plan) ? kOk : kInfeasible;
  }
  set_on_interrupt(OnInterrupt::kFlag);
  const QuantizeResult result = quantize(arguments.model, arguments.out, options, progress_log());
  print_line(arguments.common.json ? result.report_json : quantize_text(result));
  if (result.checked && !result.passed) {
    note("lowbit: error: " + arguments.out + " was saved, but it failed its check");
    return kCheckFailed;
  }
  return kOk;
}

}  // namespace

void add_quantize(CLI::App& app, Run& run) {
  CLI::App& command = add_command(
      app, "quantize",
      "Make a model small: choose codes with GPTQ or rounding, save a checkpoint, reload and check it",
      "  lowbit quantize qwen2 -o qwen2-int4 --bits 4 --calibration train.jsonl\n"
      "  quantizes to 4 bits with GPTQ, calibrated on the dialogues of train.jsonl.\n"
      "  With --plan it only says what it would do: what is quantized and what not and\n"
      "  why, bytes, memory, disk and time.");
  const auto arguments = std::make_shared<Arguments>();
  command.add_option("MODEL", arguments->model, "the model's folder, in the Hugging Face layout")->required();
  command.add_option("-o,--output", arguments->out, "folder to write the checkpoint to")
      ->required()
      ->type_name("OUT");
  command
      .add_option("--calibration", arguments->calibration,
                  "examples to calibrate on: chat or text JSONL, or a plain text, cut into windows of "
                  "max-length tokens")
      ->type_name("FILE");
  command.add_flag("--plan", arguments->is_plan,
                   "only say what would be done; exit code 4 when it cannot finish");
  add_fields(command, option_fields(arguments->options), "Quantization", {"threads"});
  add_fields(command, option_fields(arguments->options.affine), "Format affine");
  add_fields(command, option_fields(arguments->options.inputs), "Inputs in int8");
  add_fields(command, option_fields(arguments->options.gptq), "Method gptq");
  add_fields(command, option_fields(arguments->options.calibration), "Calibration");
  add_common(command, arguments->common);
  command.callback([arguments, &run] { run = [arguments] { return run_quantize(*arguments); }; });
}

}  // namespace lowbit::cli
