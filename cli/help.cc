#include "help.h"

#include <CLI/CLI.hpp>
#include <memory>

namespace lowbit::cli {
namespace {

constexpr size_t kNameWidth = 26, kLineWidth = 80;

// `line` with the words of a text behind it, wrapped to lines that begin with `indent` spaces.
std::string wrapped(std::string line, size_t indent, std::string_view rest) {
  std::string out;
  bool is_first = true;
  while (!rest.empty()) {
    const size_t end = std::min(rest.find(' '), rest.size());
    const std::string_view word = rest.substr(0, end);
    if (!is_first && line.size() + 1 + word.size() > kLineWidth) {
      out += line + '\n';
      line.assign(indent, ' ');
      is_first = true;
    }
    if (!is_first) line += ' ';
    line += word;
    is_first = false;
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return out + line + '\n';
}

// "  name                description wrapped at the line's end", as one entry of a list.
std::string entry(const std::string& name, const std::string& description) {
  std::string out, line = "  " + name;
  if (line.size() + 2 > kNameWidth) {
    out = line + '\n';
    line.clear();
  }
  line.resize(kNameWidth, ' ');
  return out + wrapped(line, kNameWidth, description);
}

class HouseHelp : public CLI::Formatter {
 public:
  std::string make_option(const CLI::Option* option, bool is_positional) const override {
    std::string name;
    if (is_positional) {
      name = option->get_name(true, false);
    } else {
      for (const std::string& part : option->get_snames()) name += (name.empty() ? "-" : ", -") + part;
      for (const std::string& part : option->get_lnames()) name += (name.empty() ? "--" : ", --") + part;
      if (!option->get_type_name().empty()) name += " " + option->get_type_name();
    }
    return entry(name, option->get_description());
  }

  // The formatter puts an empty line between option groups by itself.
  std::string make_group(std::string group, bool is_positional,
                         std::vector<const CLI::Option*> options) const override {
    std::string out = (is_positional ? "Arguments" : group) + ":\n";
    for (const CLI::Option* option : options) out += make_option(option, is_positional);
    return is_positional ? out + "\n" : out;
  }

  std::string make_subcommand(const CLI::App* command) const override {
    return entry(command->get_name(), command->get_description());
  }

  std::string make_usage(const CLI::App* command, std::string) const override {
    std::string path;
    for (const CLI::App* app = command; app; app = app->get_parent()) {
      path = path.empty() ? app->get_name() : app->get_name() + " " + path;
    }
    std::string out = "Usage: " + path;
    for (const CLI::Option* option :
         command->get_options([](const CLI::Option* o) { return o->get_positional(); })) {
      out += " " + make_option_usage(option);
    }
    for (const CLI::Option* option :
         command->get_options([](const CLI::Option* o) { return o->nonpositional() && o->get_required(); })) {
      out += " " +
             (option->get_snames().empty() ? "--" + option->get_lnames()[0] : "-" + option->get_snames()[0]) +
             " " + option->get_type_name();
    }
    if (!command->get_subcommands([](const CLI::App*) { return true; }).empty()) out += " COMMAND";
    return out + " [OPTIONS]\n\n";
  }

  std::string make_description(const CLI::App* command) const override {
    return wrapped("", 0, command->get_description()) + "\n";
  }
};

}  // namespace

void use_house_help(CLI::App& command) {
  command.formatter(std::make_shared<HouseHelp>());
  command.set_help_flag("-h,--help", "print this text");
}

}  // namespace lowbit::cli
