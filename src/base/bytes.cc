#include "lowbit/bytes.h"

#include "base/fail.h"

#include <algorithm>
#include <cctype>
#include <charconv>

namespace lowbit {
namespace {

struct Unit {
  std::string_view name;
  double bytes;
};
constexpr Unit kUnits[] = {{"", 1},      {"b", 1},        {"kb", 1e3},     {"mb", 1e6},     {"gb", 1e9},
                           {"tb", 1e12}, {"kib", 0x1p10}, {"mib", 0x1p20}, {"gib", 0x1p30}, {"tib", 0x1p40}};

}  // namespace

Bytes parse_bytes(std::string_view text) {
  double number = -1;
  const auto [rest, error] =
      std::from_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed);
  std::string name;
  for (const char* at = rest; at < text.data() + text.size(); ++at) {
    if (*at != ' ' || !name.empty()) name += static_cast<char>(std::tolower(static_cast<unsigned char>(*at)));
  }
  const auto unit = std::find_if(std::begin(kUnits), std::end(kUnits),
                                 [&](const Unit& known) { return known.name == name; });
  if (error == std::errc() && number >= 0 && unit != std::end(kUnits) && number * unit->bytes < 0x1p63)
    return static_cast<uint64_t>(number * unit->bytes);
  fail(ErrorCode::kInvalidArgument,
       "\"{}\" is no number of bytes; expected one such as 6GB (10^9 bytes), 800MiB (2^20) or 6000000000",
       text);
}

std::string bytes_text(uint64_t bytes) {
  const double value = static_cast<double>(bytes);
  if (bytes < 1000) return fmt::format("{} B", bytes);
  if (bytes < 1000000) return fmt::format("{:.1f} kB", value / 1e3);
  if (bytes < 1000000000) return fmt::format("{:.1f} MB", value / 1e6);
  return fmt::format("{:.2f} GB", value / 1e9);
}

}  // namespace lowbit
