#include "lowbit/chat.h"

#include "command.h"
#include "json_object.h"
#include "lowbit/error.h"
#include "lowbit/fields.h"
#include "lowbit/generate.h"
#include "options.h"
#include "paths.h"
#include "terminal.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fmt/format.h>
#include <iostream>
#include <memory>

namespace lowbit::cli {
namespace {

struct Arguments {
  std::string model, system;
  RuntimeOptions runtime;
  GenerateOptions generate;
  std::set<std::string>
      given;  // generation fields that the command line sets; the others come from the model
  Common common;
};

// The messages so far. The oldest turns leave when the context is full; the system message stays.
class Conversation {
 public:
  Conversation(const LanguageModel& model, std::string system, int64_t room_for_answer)
      : model_(model),
        system_(std::move(system)),
        room_(std::min(room_for_answer, model.context_length() / 2)) {
    reset();
  }

  void reset() {
    messages_.clear();
    if (!system_.empty()) messages_.push_back({"system", system_});
  }

  // The ids of the prompt with the user's next message. kInvalidArgument when that message alone is too long;
  // it is then forgotten.
  std::vector<int32_t> ask(const std::string& text) {
    messages_.push_back({"user", text});
    const size_t first = system_.empty() ? 0 : 1;
    size_t left = 0;
    for (;;) {
      std::vector<int32_t> ids = encode_chat(model_.tokenizer(), model_.chat_template(), messages_);
      if (static_cast<int64_t>(ids.size()) + room_ <= model_.context_length()) {
        if (left > 0) {
          note(fmt::format("(the context of {} tokens is full: the oldest {} messages have left)",
                           model_.context_length(), left));
        }
        return ids;
      }
      if (messages_.size() <= first + 1) {
        messages_.pop_back();
        throw Error(
            ErrorCode::kInvalidArgument,
            fmt::format(
                "the message has {} tokens with its template; the model's context of {} leaves {} for it",
                ids.size(), model_.context_length(), model_.context_length() - room_));
      }
      // A turn is a question and its answer; templates want them to alternate.
      const size_t turn = std::min<size_t>(2, messages_.size() - 1 - first);
      messages_.erase(messages_.begin() + static_cast<std::ptrdiff_t>(first),
                      messages_.begin() + static_cast<std::ptrdiff_t>(first + turn));
      left += turn;
    }
  }

  void answer(const std::string& text) { messages_.push_back({"assistant", text}); }

 private:
  const LanguageModel& model_;
  std::string system_;
  int64_t room_;
  std::vector<Message> messages_;
};

bool read_message(bool is_terminal, std::string& line) {
  // One Ctrl-C here was often meant for an answer that had just ended; the second one leaves.
  if (is_terminal) set_on_interrupt(OnInterrupt::kFlag);
  if (is_terminal) note("");
  if (is_terminal) std::cerr << "> " << std::flush;
  if (!std::getline(std::cin, line)) {
    if (is_terminal) note("");
    return false;
  }
  if (!line.empty() && line.back() == '\r') line.pop_back();
  return true;
}

void answer_message(const Arguments& arguments, const LanguageModel& model, const GenerateOptions& options,
                    Conversation& conversation, const std::string& line) {
  const std::vector<int32_t> ids = conversation.ask(line);
  const bool is_streamed = !arguments.common.json;
  set_on_interrupt(OnInterrupt::kFlag);
  const StreamSink sink = [&](size_t, std::string_view piece) {
    if (is_streamed) print(piece);
    return !is_interrupted();
  };
  const GenerateResult result = model.generate({ids}, options, sink).at(0);
  set_on_interrupt(OnInterrupt::kExit);
  conversation.answer(result.text);
  if (is_streamed) {
    print("\n");
    if (result.finish_reason == "length")
      note(fmt::format("(cut at {} tokens; --max-new-tokens)", options.max_new_tokens));
    if (result.finish_reason == "context") note("(cut: the context is full)");
    if (result.finish_reason == "interrupted") note("(stopped)");
  } else {
    print_line(JsonObject()
                   .add("text", result.text)
                   .add("token_ids", std::span<const int32_t>(result.token_ids))
                   .add("prompt_tokens", result.prompt_tokens)
                   .add("finish_reason", result.finish_reason)
                   .text());
  }
}

int run_chat(Arguments& arguments) {
  require_model(arguments.model);
  arguments.runtime.threads = arguments.common.threads;
  const LanguageModel model = LanguageModel::load(arguments.model, arguments.runtime, progress_log());
  model.chat_template();  // says at once when there is none

  GenerateOptions options = model.sampling_defaults();
  copy_fields(option_fields(arguments.generate), option_fields(options), arguments.given);
  Conversation conversation(model, arguments.system, options.max_new_tokens);
  const bool is_terminal = stdin_is_terminal();
  if (is_terminal) note("Ctrl-C stops an answer (twice: leaves), /reset starts anew, /exit leaves.");

  uint64_t turn = 0;
  for (std::string line; read_message(is_terminal, line);) {
    if (line == "/exit" || line == "/quit") break;
    if (line.find_first_not_of(" \t") == std::string::npos) continue;
    if (line == "/reset") {
      conversation.reset();
      note("(a new conversation)");
      continue;
    }
    GenerateOptions turn_options = options;
    turn_options.seed = options.seed + turn++;  // the same question twice may be answered differently
    try {
      answer_message(arguments, model, turn_options, conversation, line);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kInvalidArgument || !is_terminal) throw;
      note(fmt::format("lowbit: error: {}", error.what()));  // one bad message does not end a conversation
    }
  }
  return kOk;
}

}  // namespace

void add_chat(CLI::App& app, Run& run) {
  CLI::App& command =
      add_command(app, "chat", "A conversation in the terminal, streamed",
                  "  lowbit chat qwen2-int4 --system \"You are a careful assistant.\"\n"
                  "  samples as the model's generation_config.json says. Ctrl-C stops an answer,\n"
                  "  /reset forgets the conversation, /exit leaves. The oldest turns leave when the\n"
                  "  context is full.");
  const auto arguments = std::make_shared<Arguments>();
  command.add_option("MODEL", arguments->model, "the model's folder, quantized or not")->required();
  command.add_option("--system", arguments->system, "the system message")->type_name("TEXT");
  add_fields(command, option_fields(arguments->generate),
             "Generation (defaults: the model's generation_config.json)");
  add_fields(command, option_fields(arguments->runtime), "Runtime", {"threads"});
  add_common(command, arguments->common);
  command.callback([arguments, &command, &run] {
    arguments->given = given_fields(command, option_fields(arguments->generate));
    run = [arguments] { return run_chat(*arguments); };
  });
}

}  // namespace lowbit::cli
