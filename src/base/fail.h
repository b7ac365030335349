// fail(code, format, ...) throws lowbit::Error with a formatted message; LOWBIT_ASSERT checks our own logic
// in debug and sanitizer builds and must be unreachable from any input.
#pragma once

#include "lowbit/error.h"

#include <fmt/core.h>

namespace lowbit {

template <class... Args>
[[noreturn]] void fail(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(code, fmt::format(format, std::forward<Args>(args)...));
}

[[noreturn]] void assertion_failed(const char* expression, const char* file, int line);

}  // namespace lowbit

#if defined(LOWBIT_CHECKS)
#define LOWBIT_ASSERT(expression) \
  ((expression) ? (void)0 : ::lowbit::assertion_failed(#expression, __FILE__, __LINE__))
#else
#define LOWBIT_ASSERT(expression) ((void)0)
#endif
