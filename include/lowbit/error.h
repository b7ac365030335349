// The one exception type of lowbit. The world's faults (files, configs, options, hardware, memory) throw
// Error; a message says what, where, expected and found, and what to do.
#pragma once

#include <stdexcept>
#include <string>

namespace lowbit {

enum class ErrorCode {
  kInvalidArgument,  // an option or a call that cannot be right
  kNotFound,         // a file, tensor or key that is not there
  kCorruptFile,      // bytes that contradict themselves or each other
  kUnsupported,      // well formed, but not something lowbit can do
  kOutOfMemory,      // memory or disk space
  kDevice,           // a processor or its driver
  kInternal,         // a fault of lowbit itself
  kInterrupted,      // the caller asked to stop
};

// The name used in JSON and messages: "invalid_argument", "not_found", ...
const char* error_code_name(ErrorCode code);

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace lowbit
