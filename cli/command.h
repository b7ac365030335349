// What the files of cli/ share: one function per command, exit codes, and the options that every command has.
#pragma once

#include <functional>
#include <string>

namespace CLI {
class App;
}

namespace lowbit::cli {

// Stable; listed in `lowbit --help`.
enum ExitCode : int {
  kOk = 0,
  kError = 1,        // the world's fault: files, formats, memory
  kUsage = 2,        // the command line, or the value of an option
  kCheckFailed = 3,  // quantize: saved, but the reload check did not pass
  kInfeasible = 4,   // quantize --plan: it cannot finish
  kInterrupted = 130,
};

struct Common {
  int threads = 0;
  bool json = false;
};

// What main runs once the command line has been read.
using Run = std::function<int()>;

// Each adds its command with its options and its example, and sets `run` when the command line names it.
void add_quantize(CLI::App& app, Run& run);
void add_eval(CLI::App& app, Run& run);
void add_compare(CLI::App& app, Run& run);
void add_bench(CLI::App& app, Run& run);
void add_generate(CLI::App& app, Run& run);
void add_chat(CLI::App& app, Run& run);
void add_inspect(CLI::App& app, Run& run);
void add_explain(CLI::App& app, Run& run);
void add_convert(CLI::App& app, Run& run);
void add_tokenize(CLI::App& app, Run& run);
void add_render(CLI::App& app, Run& run);
void add_doctor(CLI::App& app, Run& run);

}  // namespace lowbit::cli
