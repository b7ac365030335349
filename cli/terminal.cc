#include "terminal.h"

#include "command.h"
#include "lowbit/error.h"

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fmt/format.h>
#include <memory>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

namespace lowbit::cli {
namespace {

// Only what a signal handler may touch.
volatile sig_atomic_t g_interrupts = 0;
volatile sig_atomic_t g_exits_at_once = 1;
volatile sig_atomic_t g_bar_is_shown = 0;

void write_error(std::string_view text) {
  while (!text.empty()) {
    const ssize_t count = ::write(STDERR_FILENO, text.data(), text.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return;  // nobody listens; there is no better place to say so
    text.remove_prefix(static_cast<size_t>(count));
  }
}

void handle_interrupt(int) {
  if (g_exits_at_once || g_interrupts > 0) ::_exit(ExitCode::kInterrupted);
  g_interrupts = 1;
}

std::string time_left(double seconds) {
  const long long whole = static_cast<long long>(seconds + 0.5);
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole % 3600 / 60);
}

// Of the terminal that stderr is.
size_t columns() {
  winsize size = {};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= 20 ? size.ws_col : 80;
}

class ProgressPrinter {
 public:
  ~ProgressPrinter() { clear(); }

  void report(const Progress& state) {
    if (is_interrupted()) {
      clear();
      throw Error(ErrorCode::kInterrupted, "interrupted");
    }
    if (state.phase != phase_ || state.done < last_done_) {
      clear();
      phase_ = state.phase;
      start_ = std::chrono::steady_clock::now();
      first_done_ = state.done;
      last_tenth_ = -1;
    }
    last_done_ = state.done;
    ::isatty(STDERR_FILENO) ? draw(state) : write_lines(state);
  }

  void message(LogLevel level, std::string_view text) {
    if (level == LogLevel::kDebug) return;
    clear();
    write_error(fmt::format("{}{}\n", level == LogLevel::kWarning ? "lowbit: warning: " : "", text));
  }

 private:
  void clear() {
    if (g_bar_is_shown) write_error("\r\033[K");
    g_bar_is_shown = 0;
  }

  std::string remaining(const Progress& state) const {
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    const int64_t steps = state.done - first_done_;
    if (state.total <= 0 || steps <= 0 || state.done >= state.total) return "";
    return ", " +
           time_left(seconds / static_cast<double>(steps) * static_cast<double>(state.total - state.done)) +
           " left";
  }

  void draw(const Progress& state) {
    if (state.total > 0 && state.done >= state.total) return clear();
    constexpr int64_t kWidth = 24;
    std::string bar;
    if (state.total > 0) {
      const int64_t filled = kWidth * state.done / state.total;
      bar = fmt::format("[{}{}] {}/{}", std::string(static_cast<size_t>(filled), '#'),
                        std::string(static_cast<size_t>(kWidth - filled), '.'), state.done, state.total);
    } else {
      bar = fmt::format("{}", state.done);
    }
    std::string line = fmt::format("{} {}{}", state.phase, bar, remaining(state));
    if (!state.detail.empty()) line += fmt::format("  {}", state.detail);
    // A line that wraps could not be overwritten.
    const size_t room = columns() - 1;
    if (line.size() > room) line = line.substr(0, room - 3) + "...";
    write_error("\r\033[K" + line);
    g_bar_is_shown = 1;
  }

  void write_lines(const Progress& state) {
    const int64_t tenth = state.total > 0 ? 10 * state.done / state.total : -1;
    if (state.detail.empty() && tenth == last_tenth_) return;
    last_tenth_ = tenth;
    std::string line = state.total > 0 ? fmt::format("{} {}/{}", state.phase, state.done, state.total)
                                       : fmt::format("{} {}", state.phase, state.done);
    line += remaining(state);
    if (!state.detail.empty()) line += fmt::format("  {}", state.detail);
    write_error(line + "\n");
  }

  std::string phase_;
  int64_t first_done_ = 0, last_done_ = 0, last_tenth_ = -1;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace

void print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    throw Error(ErrorCode::kOutOfMemory,
                fmt::format("cannot write the result to stdout: {}", std::strerror(errno)));
  }
}

void print_line(std::string_view text) {
  print(text);
  if (text.empty() || text.back() != '\n') print("\n");
}

void note(std::string_view text) {
  if (g_bar_is_shown) write_error("\r\033[K");
  g_bar_is_shown = 0;
  write_error(fmt::format("{}\n", text));
}

Log progress_log() {
  const auto printer = std::make_shared<ProgressPrinter>();
  return {[printer](LogLevel level, std::string_view text) { printer->message(level, text); },
          [printer](const Progress& state) { printer->report(state); }};
}

void set_on_interrupt(OnInterrupt action) {
  g_interrupts = 0;
  g_exits_at_once = action == OnInterrupt::kExit;
  struct sigaction handler = {};
  handler.sa_handler = handle_interrupt;
  handler.sa_flags = SA_RESTART;
  sigemptyset(&handler.sa_mask);
  ::sigaction(SIGINT, &handler, nullptr);
}

bool is_interrupted() { return g_interrupts > 0; }
void clear_interrupt() { g_interrupts = 0; }

bool stdin_is_terminal() { return ::isatty(STDIN_FILENO) != 0; }

std::string read_stdin() {
  constexpr size_t kMost = size_t{1} << 30;
  std::string text;
  char part[65536];
  for (size_t count; (count = std::fread(part, 1, sizeof part, stdin)) > 0;) {
    if (text.size() + count > kMost) throw Error(ErrorCode::kInvalidArgument, "stdin holds more than 1 GiB");
    text.append(part, count);
  }
  return text;
}

}  // namespace lowbit::cli
