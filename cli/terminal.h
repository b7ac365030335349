// Where the program speaks: results to stdout, progress and warnings to stderr; and what Ctrl-C does.
#pragma once

#include "lowbit/log.h"

#include <string>
#include <string_view>

namespace lowbit::cli {

// Writes a result to stdout. Throws when stdout takes no more (a full disk).
void print(std::string_view text);
// The same with a line end when the text has none.
void print_line(std::string_view text);

// One line to stderr, clear of a progress bar.
void note(std::string_view text);

// Progress to stderr: a bar with the time left on a terminal; otherwise a line for each step that says
// something, and one line per tenth of the work for those that do not. Stops with Error kInterrupted at the
// step after a Ctrl-C.
Log progress_log();

enum class OnInterrupt {
  kExit,  // exit code 130 at once
  kFlag,  // the first Ctrl-C sets the flag, a second one exits
};
void set_on_interrupt(OnInterrupt action);
bool is_interrupted();
void clear_interrupt();

bool stdin_is_terminal();
std::string read_stdin();  // to its end; at most 1 GiB

}  // namespace lowbit::cli
