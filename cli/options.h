// From option fields to command line options: group_size becomes --group-size, a bool --sym and --no-sym, and
// the help shows the member's own default. An option is added by one struct member and one line of
// option_fields.
#pragma once

#include "command.h"
#include "lowbit/fields.h"

#include <initializer_list>
#include <set>
#include <string>
#include <string_view>

namespace lowbit::cli {

// The struct behind `fields` must live until the command has run. Fields named in `left_out` get no option.
void add_fields(CLI::App& command, const Fields& fields, const std::string& group,
                std::initializer_list<std::string_view> left_out = {});

// --threads, --json and --version.
void add_common(CLI::App& command, Common& common);

// A command with its description and its example; the text that --help ends with.
CLI::App& add_command(CLI::App& app, const std::string& name, const std::string& description,
                      const std::string& example);

// Names (snake_case) of the fields whose options were on the command line.
std::set<std::string> given_fields(const CLI::App& command, const Fields& fields);

// Copies the fields named in `names` between two lists of the same struct.
void copy_fields(const Fields& from, const Fields& to, const std::set<std::string>& names);

// RuntimeOptions::kv_cache_tokens for a batch of so many sequences and tokens of each, whatever was given for
// them.
int64_t cache_tokens(int64_t sequences, int64_t length);
constexpr int64_t kUsualPrompt = 1024;  // a dialogue with its answer is seldom longer

std::string option_name(std::string_view field);  // "--group-size"

// The word of `known` that is nearest to a mistyped one; empty when none is near.
std::string nearest(std::string_view word, const std::vector<std::string>& known);

}  // namespace lowbit::cli
