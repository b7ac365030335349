#include "lowbit/inspect.h"

#include "command.h"
#include "lowbit/error.h"
#include "lowbit/fields.h"
#include "lowbit/memory.h"
#include "lowbit/report.h"
#include "options.h"
#include "paths.h"
#include "terminal.h"

#include <CLI/CLI.hpp>
#include <memory>

namespace lowbit::cli {
namespace {

struct Arguments {
  std::string path, tensor;
  MemoryEstimateOptions memory;
  Common common;
};

int run_inspect(const Arguments& arguments) {
  std::error_code ignored;
  if (!std::filesystem::exists(arguments.path, ignored)) {
    throw Error(ErrorCode::kNotFound, "there is no file or folder " + arguments.path);
  }
  if (!arguments.tensor.empty()) {
    const std::string json = inspect_tensor_json(arguments.path, arguments.tensor);
    print_line(arguments.common.json ? json : tensor_text(json));
    return kOk;
  }
  const std::string json = inspect_with_memory_json(arguments.path, arguments.memory);
  print_line(arguments.common.json ? json : inspection_text(json));
  return kOk;
}

}  // namespace

void add_inspect(CLI::App& app, Run& run) {
  CLI::App& command =
      add_command(app, "inspect", "What a model or a safetensors file is, every byte accounted for",
                  "  lowbit inspect qwen2-int4\n"
                  "  prints architecture, bytes by component, bits per weight, format version and\n"
                  "  which engines run it, and estimates the memory to run and to train it.\n"
                  "  With --tensor NAME: dtype, shape and statistics of one.");
  const auto arguments = std::make_shared<Arguments>();
  command.add_option("PATH", arguments->path, "a model's folder, or a .safetensors file")->required();
  CLI::Option* tensor =
      command.add_option("--tensor", arguments->tensor, "only this tensor, with statistics of its values")
          ->type_name("NAME");
  const Fields fields = option_fields(arguments->memory);
  add_fields(command, fields, "Memory to run");
  for (const Field& field : fields) tensor->excludes(command.get_option(option_name(field.name)));
  add_common(command, arguments->common);
  command.callback([arguments, &run] { run = [arguments] { return run_inspect(*arguments); }; });
}

}  // namespace lowbit::cli
