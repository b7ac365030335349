#include "command.h"
#include "json_object.h"
#include "lowbit/chat.h"
#include "lowbit/fields.h"
#include "lowbit/tokenizer.h"
#include "options.h"
#include "paths.h"
#include "terminal.h"

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <memory>

namespace lowbit::cli {
namespace {

struct Arguments {
  std::string model, messages;
  ChatOptions options;
  Common common;
};

// Says which special tokens the messages themselves spell: the model gets them as text, which the rendered
// text alone does not show.
void note_spelled_tokens(const std::string& model, const RenderedChat& chat) {
  if (!std::filesystem::exists(std::filesystem::path(model) / "tokenizer.json")) return;
  const Tokenizer tokenizer = Tokenizer::load(model);
  for (const TextRange& range : chat.literal) {
    const std::string_view content = std::string_view(chat.text).substr(range.begin, range.end - range.begin);
    for (int32_t id : tokenizer.encode(content, {.parse_special_tokens = true})) {
      if (!tokenizer.is_special(id)) continue;
      note(fmt::format(
          "note: in bytes {} to {} a message spells {}; the model gets it as text, not as the special token",
          range.begin, range.end, json_string(tokenizer.token(id))));
    }
  }
}

// stdout holds exactly the text that the template makes; "literal" of the JSON says which bytes of it came
// from messages.
int run_render(const Arguments& arguments) {
  const std::string messages = read_text(arguments.messages, "--messages");
  const RenderedChat chat = ChatTemplate::load(arguments.model).render_json(messages, arguments.options);
  if (!arguments.common.json) {
    print_line(chat.text);
    note_spelled_tokens(arguments.model, chat);
    return kOk;
  }
  std::string literal;
  for (const TextRange& range : chat.literal) {
    literal +=
        fmt::format("{}{{\"begin\": {}, \"end\": {}}}", literal.empty() ? "" : ", ", range.begin, range.end);
  }
  print_line(JsonObject().add("text", chat.text).add_raw("literal", "[" + literal + "]").text());
  return kOk;
}

}  // namespace

void add_render(CLI::App& app, Run& run) {
  CLI::App& command =
      add_command(app, "render", "The model's chat template applied to messages, special tokens visible",
                  "  echo '[{\"role\": \"user\", \"content\": \"Hi\"}]' | lowbit render qwen2 --messages -\n"
                  "  prints the text that the model would see.");
  const auto arguments = std::make_shared<Arguments>();
  command.add_option("MODEL", arguments->model, "a folder with chat_template.jinja or tokenizer_config.json")
      ->required();
  command
      .add_option("--messages", arguments->messages,
                  "a JSON array of messages with \"role\" and \"content\"; - is stdin")
      ->required()
      ->type_name("FILE");
  command.add_option("--extra", arguments->options.extra_json, "a JSON object of further template variables")
      ->type_name("JSON");
  add_fields(command,
             {{"generation_prompt", &arguments->options.add_generation_prompt,
               "end with the opening of the assistant's turn"}},
             "Template");
  add_common(command, arguments->common);
  command.callback([arguments, &run] { run = [arguments] { return run_render(*arguments); }; });
}

}  // namespace lowbit::cli
