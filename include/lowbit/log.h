// Where the library says what it does. It never prints: the caller sets these sinks, and an unset sink is
// silence.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace lowbit {

enum class LogLevel { kDebug, kInfo, kWarning };

struct Progress {
  std::string_view phase;  // "quantize", "load", "eval", ...
  int64_t done = 0;
  int64_t total = 0;        // 0: not known
  std::string_view detail;  // "model.layers.3.mlp.down_proj: error 0.012, 0.4 s"; may be empty
};

struct Log {
  std::function<void(LogLevel, std::string_view)> message;
  std::function<void(const Progress&)> progress;

  void info(std::string_view text) const {
    if (message) message(LogLevel::kInfo, text);
  }
  void warning(std::string_view text) const {
    if (message) message(LogLevel::kWarning, text);
  }
  void report(const Progress& state) const {
    if (progress) progress(state);
  }
};

}  // namespace lowbit
