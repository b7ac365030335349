#include "lowbit/explain.h"

#include "command.h"
#include "lowbit/error.h"
#include "lowbit/fields.h"
#include "lowbit/report.h"
#include "options.h"
#include "terminal.h"

#include <CLI/CLI.hpp>
#include <charconv>
#include <fmt/format.h>
#include <memory>
#include <vector>

namespace lowbit::cli {
namespace {

struct Arguments {
  std::string values, tensor;
  int64_t rows = 1, limit = 16;
  ExplainOptions options;
  Common common;
};

// Numbers with spaces or commas between them.
std::vector<float> parse_values(const std::string& text) {
  std::vector<float> values;
  for (size_t at = 0; (at = text.find_first_not_of(" ,\t\n", at)) != text.npos;) {
    const size_t end = std::min(text.find_first_of(" ,\t\n", at), text.size());
    float value = 0;
    const auto [stop, error] = std::from_chars(text.data() + at, text.data() + end, value);
    if (error != std::errc() || stop != text.data() + end) {
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("--values: \"{}\" is no number; expected numbers with spaces between them",
                              text.substr(at, end - at)));
    }
    values.push_back(value);
    at = end;
  }
  return values;
}

std::string explain(const Arguments& arguments) {
  if (arguments.values.empty() && arguments.tensor.empty())
    throw Error(ErrorCode::kInvalidArgument, "explain needs numbers: give --values or --tensor");
  if (arguments.tensor.empty())
    return explain_json(parse_values(arguments.values), arguments.options, arguments.limit);
  const size_t colon = arguments.tensor.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == arguments.tensor.size()) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("--tensor is \"{}\", expected FILE:NAME, a file or folder and the tensor's name",
                            arguments.tensor));
  }
  const std::string path = arguments.tensor.substr(0, colon);
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored))
    throw Error(ErrorCode::kNotFound, "there is no file or folder " + path);
  return explain_tensor_json(path, arguments.tensor.substr(colon + 1), arguments.rows, arguments.options,
                             arguments.limit);
}

int run_explain(const Arguments& arguments) {
  const std::string json = explain(arguments);
  print_line(arguments.common.json ? json : explanation_text(json));
  return kOk;
}

}  // namespace

void add_explain(CLI::App& app, Run& run) {
  CLI::App& command =
      add_command(app, "explain", "What a format does to numbers: codes, scales, errors, and a picture",
                  "  lowbit explain nf4 --values \"0.1 -1.7 0.02 0.9\"\n"
                  "  rounds the four numbers as one group and shows what is left of them.\n"
                  "  With --tensor FILE:NAME: the first rows of a tensor, in groups.");
  const auto arguments = std::make_shared<Arguments>();
  command
      .add_option("FORMAT", arguments->options.format, "affine, nf4, fp4, fp8 (E4M3), fp8_e5m2, log2 or int8")
      ->required();
  CLI::Option* values =
      command.add_option("--values", arguments->values, "numbers, with spaces between them: one row")
          ->type_name("TEXT");
  CLI::Option* tensor =
      command
          .add_option("--tensor", arguments->tensor,
                      "a tensor of a .safetensors file or of a model's folder, quantized or not")
          ->type_name("FILE:NAME")
          ->excludes(values);
  command
      .add_option("--rows", arguments->rows, "of --tensor: its first rows, each begins a group (default 1)")
      ->type_name("N")
      ->needs(tensor);
  command.add_option("--limit", arguments->limit, "values and groups that are listed (default 16)")
      ->type_name("N");
  add_fields(command, option_fields(arguments->options.affine), "Format");
  add_fields(command, option_fields(arguments->options), "Format");
  add_common(command, arguments->common);
  command.callback([arguments, &run] { run = [arguments] { return run_explain(*arguments); }; });
}

}  // namespace lowbit::cli
