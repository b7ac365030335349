// How --help looks: a sentence, the usage line, options in named groups with their values and defaults, one
// example.
#pragma once

#include "command.h"

namespace lowbit::cli {

void use_house_help(CLI::App& command);

}  // namespace lowbit::cli
