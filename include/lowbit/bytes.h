// A number of bytes among the options: "6GB" (10^9), "800MiB" (2^20) or a plain number.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lowbit {

struct Bytes {
  uint64_t count = 0;

  Bytes() = default;
  Bytes(uint64_t given) : count(given) {}
  bool operator==(const Bytes&) const = default;
};

// kInvalidArgument says what is expected.
Bytes parse_bytes(std::string_view text);
std::string bytes_text(uint64_t bytes);  // "6.00 GB"

}  // namespace lowbit
