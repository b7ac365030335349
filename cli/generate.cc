#include "lowbit/generate.h"

#include "command.h"
#include "json_object.h"
#include "lowbit/error.h"
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
  std::string model, prompt, system;
  bool is_chat = false, has_special_tokens = false, adds_special_tokens = true;
  RuntimeOptions runtime;
  GenerateOptions generate;
  Common common;
};

std::vector<int32_t> prompt_ids(const Arguments& arguments, const LanguageModel& model) {
  const std::string text = arguments.prompt == "-" ? read_stdin() : arguments.prompt;
  if (arguments.is_chat) {
    std::vector<Message> messages;
    if (!arguments.system.empty()) messages.push_back({"system", arguments.system});
    messages.push_back({"user", text});
    return encode_chat(model.tokenizer(), model.chat_template(), messages);
  }
  return model.tokenizer().encode(text, {.add_special_tokens = arguments.adds_special_tokens,
                                         .parse_special_tokens = arguments.has_special_tokens});
}

double per_second(int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

int run_generate(Arguments& arguments) {
  require_model(arguments.model);
  if (!arguments.system.empty() && !arguments.is_chat) {
    throw Error(ErrorCode::kInvalidArgument,
                "--system needs --chat: without a chat template there is no system message");
  }
  arguments.runtime.threads = arguments.common.threads;
  const LanguageModel model = LanguageModel::load(arguments.model, arguments.runtime, progress_log());
  const std::vector<int32_t> ids = prompt_ids(arguments, model);
  if (ids.empty())
    throw Error(ErrorCode::kInvalidArgument, "--prompt is empty; there is nothing to continue");

  set_on_interrupt(OnInterrupt::kFlag);
  GenerateSpeed speed;
  const bool is_streamed = !arguments.common.json;
  const StreamSink sink = [&](size_t, std::string_view piece) {
    if (is_streamed) print(piece);
    return !is_interrupted();
  };
  const GenerateResult result = model.generate({ids}, arguments.generate, sink, &speed).at(0);
  const double decode = per_second(speed.decode_tokens, speed.decode_seconds);
  const double prefill = per_second(speed.prefill_tokens, speed.prefill_seconds);
  if (arguments.common.json) {
    print_line(JsonObject()
                   .add("text", result.text)
                   .add("token_ids", std::span<const int32_t>(result.token_ids))
                   .add("prompt_tokens", result.prompt_tokens)
                   .add("finish_reason", result.finish_reason)
                   .add("tokens_per_second", decode)
                   .add("prefill_tokens_per_second", prefill)
                   .add("device", model.device())
                   .add_raw("memory", to_json(model.memory()))
                   .text());
  } else {
    print("\n");
    const uint64_t gpu_bytes = model.memory().gpu_peak_bytes;
    note(fmt::format(
        "{} prompt tokens at {:.1f} per second, {} new tokens at {:.1f} per second, ended by {}{}",
        result.prompt_tokens, prefill, result.token_ids.size(), decode, result.finish_reason,
        gpu_bytes > 0 ? fmt::format("; {} of GPU memory at most", bytes_text(gpu_bytes)) : ""));
  }
  return is_interrupted() ? kInterrupted : kOk;
}

}  // namespace

void add_generate(CLI::App& app, Run& run) {
  CLI::App& command = add_command(app, "generate", "Continue a prompt, greedy unless told otherwise",
                                  "  lowbit generate qwen2-int4 --chat --prompt \"Is this a fraud? ...\"\n"
                                  "  puts the prompt into the model's chat template and streams the answer.");
  const auto arguments = std::make_shared<Arguments>();
  command.add_option("MODEL", arguments->model, "the model's folder, quantized or not")->required();
  command.add_option("--prompt", arguments->prompt, "the text to continue; - reads it from stdin")
      ->required()
      ->type_name("TEXT");
  command.add_flag("--chat", arguments->is_chat,
                   "put the prompt into the model's chat template, as a user's message");
  command.add_option("--system", arguments->system, "with --chat: the system message")->type_name("TEXT");
  add_fields(
      command,
      {{"special_tokens", &arguments->adds_special_tokens,
        "without --chat: put the tokens before the prompt that the tokenizer adds by itself (BOS)"},
       {"parse_special_tokens", &arguments->has_special_tokens,
        "without --chat: special tokens that the prompt spells become such; otherwise they stay text"}},
      "Prompt");
  add_fields(command, option_fields(arguments->generate), "Generation");
  add_fields(command, option_fields(arguments->runtime), "Runtime", {"threads"});
  add_common(command, arguments->common);
  command.callback([arguments, &run] { run = [arguments] { return run_generate(*arguments); }; });
}

}  // namespace lowbit::cli
