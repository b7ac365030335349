// lowbit: quantize language models, run them, and say what it cost. Reads the command line, runs one command,
// and turns errors into one line and an exit code.

#include "command.h"
#include "help.h"
#include "lowbit/error.h"
#include "lowbit/version.h"
#include "options.h"
#include "terminal.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <fmt/format.h>
#include <iostream>
#include <new>

namespace lowbit::cli {
namespace {

constexpr const char* kFooter =
    "Exit codes:\n"
    "  0    done\n"
    "  1    an error: a file, a format, memory\n"
    "  2    the command line or an option's value is wrong\n"
    "  3    quantize: saved, but the checkpoint failed its check\n"
    "  4    quantize --plan: it cannot finish\n"
    "  130  interrupted\n"
    "\n"
    "stdout carries results only; progress and warnings go to stderr. Nothing is\n"
    "downloaded, nothing is sent.\n"
    "\n"
    "Example:\n"
    "  lowbit quantize qwen2 -o qwen2-int4 --bits 4 --calibration train.jsonl\n"
    "  lowbit eval classify qwen2-int4 --data test.jsonl\n"
    "  lowbit quantize --help\n";

// An error is one line, whatever a message holds.
int fail_with(ExitCode code, std::string message) {
  std::replace(message.begin(), message.end(), '\n', ' ');
  note("lowbit: error: " + message);
  return code;
}

// The command that the command line reached: "lowbit eval perplexity".
const CLI::App* deepest(const CLI::App* app) {
  while (!app->get_subcommands().empty()) app = app->get_subcommands().back();
  return app;
}

std::string path_of(const CLI::App* app) {
  return app->get_parent() ? path_of(app->get_parent()) + " " + app->get_name() : app->get_name();
}

std::vector<std::string> option_names(const CLI::App* app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app->get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

std::vector<std::string> command_names(const CLI::App* app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app->get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(command->get_name());
  return names;
}

std::string did_you_mean(const std::string& word, const std::vector<std::string>& known) {
  const std::string near = nearest(word, known);
  return near.empty() ? "" : fmt::format("; did you mean {}?", near);
}

int fail_parse(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App* command = deepest(&app);
  const std::string path = path_of(command), hint = fmt::format(" (see {} --help)", path);
  if (dynamic_cast<const CLI::ExtrasError*>(&error)) {
    for (const std::string& word : command->remaining()) {
      if (word.size() > 1 && word[0] == '-') {
        const std::string name = word.substr(0, word.find('='));
        return fail_with(kUsage, fmt::format("{} has no option {}{}{}", path, name,
                                             did_you_mean(name, option_names(command)), hint));
      }
    }
    const std::vector<std::string> left = command->remaining();
    return fail_with(kUsage,
                     fmt::format("{} does not take \"{}\"{}", path, left.empty() ? "" : left[0], hint));
  }
  return fail_with(kUsage, fmt::format("{}: {}{}", path, error.what(), hint));
}

// A command that is missing or unknown, said before the parser says it less well.
int check_command(const CLI::App& app, int argc, char** argv) {
  const CLI::App* at = &app;
  for (int i = 1; !command_names(at).empty(); ++i) {
    const std::vector<std::string> names = command_names(at);
    if (i >= argc) {
      return fail_with(kUsage, fmt::format("{} needs a command: {} (see {} --help)", path_of(at),
                                           fmt::join(names, ", "), path_of(at)));
    }
    const std::string word = argv[i];
    if (!word.empty() && word[0] == '-')
      return kOk;  // an option of `at`, such as --help: the parser's business
    if (std::find(names.begin(), names.end(), word) == names.end()) {
      return fail_with(kUsage, fmt::format("{} has no command \"{}\"{} (see {} --help)", path_of(at), word,
                                           did_you_mean(word, names), path_of(at)));
    }
    at = at->get_subcommand(word);
  }
  return kOk;
}

int run_main(int argc, char** argv) {
  CLI::App app("lowbit: quantize language models, run them, and say what the quantization cost", "lowbit");
  Run run;
  use_house_help(app);
  app.set_version_flag("--version", std::string("lowbit ") + version(), "print the version");
  app.footer(kFooter);
  app.require_subcommand(1);
  add_quantize(app, run);
  add_eval(app, run);
  add_compare(app, run);
  add_bench(app, run);
  add_generate(app, run);
  add_chat(app, run);
  add_inspect(app, run);
  add_explain(app, run);
  add_convert(app, run);
  add_tokenize(app, run);
  add_render(app, run);
  add_doctor(app, run);

  if (const int code = check_command(app, argc, argv); code != kOk) return code;
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {  // --help and --version
    return app.exit(success, std::cout, std::cerr);
  } catch (const CLI::ParseError& error) {
    return fail_parse(app, error);
  }
  return run ? run() : kUsage;
}

int guarded_main(int argc, char** argv) {
  set_on_interrupt(OnInterrupt::kExit);
  std::signal(SIGXFSZ, SIG_IGN);  // a file over the user's limit is an error that names the file
  try {
    return run_main(argc, argv);
  } catch (const Error& error) {
    switch (error.code()) {
      case ErrorCode::kInterrupted:
        return fail_with(kInterrupted, error.what());
      case ErrorCode::kInvalidArgument:
        return fail_with(kUsage, error.what());
      default:
        return fail_with(kError, error.what());
    }
  } catch (const std::bad_alloc&) {
    return fail_with(kError, "out of memory");
  } catch (const std::exception& error) {
    return fail_with(kError, fmt::format("internal: {}", error.what()));
  }
}

}  // namespace
}  // namespace lowbit::cli

int main(int argc, char** argv) { return lowbit::cli::guarded_main(argc, argv); }
