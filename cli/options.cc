#include "options.h"

#include "help.h"
#include "lowbit/error.h"
#include "lowbit/version.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fmt/format.h>
#include <numeric>

namespace lowbit::cli {
namespace {

template <class T>
std::string default_text(const T& value) {
  if constexpr (std::is_same_v<T, bool>) {
    return value ? "on" : "off";
  } else if constexpr (std::is_same_v<T, std::string>) {
    return value;
  } else if constexpr (std::is_same_v<T, Bytes>) {
    return fmt::format("{}", value.count);
  } else if constexpr (std::is_same_v<T, std::vector<int64_t>>) {
    return fmt::format("{}", fmt::join(value, ","));
  } else if constexpr (std::is_arithmetic_v<T>) {
    return fmt::format("{}", value);
  } else {
    return "";
  }
}

template <class T>
const char* type_text() {
  if constexpr (std::is_integral_v<T>) return "N";
  if constexpr (std::is_floating_point_v<T>) return "X";
  return "TEXT";
}

template <class T>
CLI::Option* add_option(CLI::App& command, const std::string& flag, const std::string& negated, T* value,
                        const std::string& help) {
  if constexpr (std::is_same_v<T, bool>) {
    return command.add_flag(flag + ",!" + negated, *value, help);
  } else if constexpr (std::is_same_v<T, std::optional<bool>>) {
    return command.add_flag_function(
        flag + ",!" + negated, [value](int64_t count) { *value = count > 0; }, help);
  } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
    // One value per flag: a list that takes what follows would swallow the model's path.
    return command.add_option(flag, *value, help)->type_name("TEXT")->allow_extra_args(false);
  } else if constexpr (std::is_same_v<T, std::vector<int64_t>>) {
    return command.add_option(flag, *value, help)
        ->type_name("N,...")
        ->delimiter(',')
        ->allow_extra_args(false);
  } else if constexpr (std::is_same_v<T, Bytes>) {
    return command
        .add_option_function<std::string>(
            flag, [value](const std::string& text) { *value = parse_bytes(text); }, help)
        ->type_name("SIZE")
        ->check([](const std::string& text) {
          try {
            parse_bytes(text);
          } catch (const Error& error) {
            return std::string(error.what());
          }
          return std::string();
        });
  } else {
    CLI::Option* option = command.add_option(flag, *value, help)->type_name(type_text<T>());
    if constexpr (std::is_unsigned_v<T>) {  // the parser would take -1 for the largest number
      option->check([](const std::string& text) {
        return text.starts_with("-") ? std::string("must not be negative") : "";
      });
    }
    return option;
  }
}

}  // namespace

int64_t cache_tokens(int64_t sequences, int64_t length) {
  return std::clamp<int64_t>(sequences, 1, 1 << 10) * std::clamp<int64_t>(length, 1, 1 << 20);
}

std::string option_name(std::string_view field) {
  std::string name = "--" + std::string(field);
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

void add_fields(CLI::App& command, const Fields& fields, const std::string& group,
                std::initializer_list<std::string_view> left_out) {
  for (const Field& field : fields) {
    if (std::find(left_out.begin(), left_out.end(), field.name) != left_out.end()) continue;
    const std::string flag = option_name(field.name), negated = "--no-" + flag.substr(2);
    std::visit(
        [&](auto* value) {
          std::string help(field.help);
          if (const std::string preset = default_text(*value); !preset.empty())
            help += fmt::format(" (default {})", preset);
          add_option(command, flag, negated, value, help)->group(group);
        },
        field.value);
  }
}

void add_common(CLI::App& command, Common& common) {
  command
      .add_option("--threads", common.threads,
                  "worker threads; 0: one per processor that this process may use (default 0)")
      ->type_name("N")
      ->check(CLI::Range(0, 4096).description(""))
      ->group("Common");
  command.add_flag("--json", common.json, "print the result as one JSON object")->group("Common");
  command.set_version_flag("--version", std::string("lowbit ") + version(), "print the version")
      ->group("Common");
  command.set_help_flag("-h,--help", "print this text")->group("Common");  // set anew, so that it stands last
}

CLI::App& add_command(CLI::App& app, const std::string& name, const std::string& description,
                      const std::string& example) {
  CLI::App* command = app.add_subcommand(name, description);
  command->group("Commands");
  command->footer("Example:\n" + example + "\n");
  use_house_help(*command);
  return *command;
}

std::set<std::string> given_fields(const CLI::App& command, const Fields& fields) {
  std::set<std::string> names;
  for (const Field& field : fields) {
    const CLI::Option* option = command.get_option_no_throw(option_name(field.name));
    if (option && option->count() > 0) names.emplace(field.name);
  }
  return names;
}

void copy_fields(const Fields& from, const Fields& to, const std::set<std::string>& names) {
  for (size_t i = 0; i < from.size() && i < to.size(); ++i) {
    if (!names.count(std::string(from[i].name))) continue;
    std::visit([&](auto* source) { *std::get<decltype(source)>(to[i].value) = *source; }, from[i].value);
  }
}

std::string nearest(std::string_view word, const std::vector<std::string>& known) {
  std::string best;
  size_t least = word.size() / 3 + 2;  // a distance of this or more is no typing error
  for (const std::string& candidate : known) {
    // Levenshtein distance, one row at a time.
    std::vector<size_t> row(candidate.size() + 1);
    std::iota(row.begin(), row.end(), size_t{0});
    for (size_t i = 1; i <= word.size(); ++i) {
      size_t diagonal = row[0];
      row[0] = i;
      for (size_t j = 1; j <= candidate.size(); ++j) {
        const size_t changed = diagonal + (word[i - 1] != candidate[j - 1]);
        diagonal = row[j];
        row[j] = std::min({row[j] + 1, row[j - 1] + 1, changed});
      }
    }
    if (row.back() < least) {
      least = row.back();
      best = candidate;
    }
  }
  return best;
}

}  // namespace lowbit::cli
