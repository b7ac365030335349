#include "command.h"
#include "json_object.h"
#include "lowbit/error.h"
#include "lowbit/fields.h"
#include "lowbit/tokenizer.h"
#include "options.h"
#include "terminal.h"

#include <CLI/CLI.hpp>
#include <charconv>
#include <fmt/format.h>
#include <memory>

namespace lowbit::cli {
namespace {

struct Arguments {
  std::string model;
  bool is_decoding = false, only_ids = false, adds_special_tokens = false, has_special_tokens = false;
  Common common;
};

// Ids separated by white space or commas, in brackets or not: what --ids and the "ids" of --json print.
std::vector<int32_t> parse_ids(std::string_view text) {
  std::vector<int32_t> ids;
  const char *at = text.data(), *end = at + text.size();
  while (at < end) {
    if (std::string_view(" \t\r\n,[]").find(*at) != std::string_view::npos) {
      ++at;
      continue;
    }
    int32_t id = 0;
    const auto [stop, error] = std::from_chars(at, end, id);
    if (error != std::errc() || stop == at) {
      const std::string found(at, std::min<size_t>(20, static_cast<size_t>(end - at)));
      throw Error(
          ErrorCode::kInvalidArgument,
          fmt::format(
              "stdin: expected token ids (numbers between white space or commas), found {} behind {} ids",
              json_string(found), ids.size()));
    }
    ids.push_back(id);
    at = stop;
  }
  return ids;
}

std::vector<std::string> pieces_of(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  std::vector<std::string> pieces;
  for (int32_t id : ids) pieces.push_back(tokenizer.token(id));
  return pieces;
}

int run_tokenize(const Arguments& arguments) {
  const Tokenizer tokenizer = Tokenizer::load(arguments.model);
  if (arguments.is_decoding) {
    const std::vector<int32_t> ids = parse_ids(read_stdin());
    const std::string text = tokenizer.decode(ids);
    if (arguments.common.json) {
      const std::vector<std::string> pieces = pieces_of(tokenizer, ids);
      print_line(JsonObject()
                     .add("text", text)
                     .add("ids", std::span<const int32_t>(ids))
                     .add("pieces", std::span<const std::string>(pieces))
                     .text());
    } else {
      print(text);  // exactly the text, so that encoding it again gives the ids
    }
    return kOk;
  }
  const std::vector<int32_t> ids =
      tokenizer.encode(read_stdin(), {.add_special_tokens = arguments.adds_special_tokens,
                                      .parse_special_tokens = arguments.has_special_tokens});
  const std::vector<std::string> pieces = pieces_of(tokenizer, ids);
  if (arguments.common.json) {
    print_line(JsonObject()
                   .add("ids", std::span<const int32_t>(ids))
                   .add("pieces", std::span<const std::string>(pieces))
                   .text());
  } else if (arguments.only_ids) {
    print_line(fmt::format("{}", fmt::join(ids, " ")));
  } else {
    std::string out;
    for (size_t i = 0; i < ids.size(); ++i) {
      out += fmt::format("{}\t{}{}\n", ids[i], json_string(pieces[i]),
                         tokenizer.is_special(ids[i]) ? "\tspecial" : "");
    }
    print(out);
    note(fmt::format("{} tokens", ids.size()));
  }
  return kOk;
}

}  // namespace

void add_tokenize(CLI::App& app, Run& run) {
  CLI::App& command =
      add_command(app, "tokenize", "stdin to token ids and pieces, or back: what the model really sees",
                  "  echo -n \"Hello there\" | lowbit tokenize qwen2\n"
                  "  prints one line per token: its id and its spelling in the vocabulary.\n"
                  "  echo \"9707 1052\" | lowbit tokenize qwen2 --decode");
  const auto arguments = std::make_shared<Arguments>();
  command.add_option("MODEL", arguments->model, "a folder with tokenizer.json")->required();
  command.add_flag("--decode", arguments->is_decoding, "stdin holds ids; print their text");
  command.add_flag("--ids", arguments->only_ids, "print only the ids, on one line, as --decode reads them");
  add_fields(command,
             {{"add_special_tokens", &arguments->adds_special_tokens,
               "add what the tokenizer adds by itself (BOS, [CLS])"},
              {"parse_special_tokens", &arguments->has_special_tokens,
               "special tokens that the text spells become such; otherwise they stay text"}},
             "Encoding");
  add_common(command, arguments->common);
  command.callback([arguments, &run] { run = [arguments] { return run_tokenize(*arguments); }; });
}

}  // namespace lowbit::cli
