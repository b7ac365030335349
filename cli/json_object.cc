#include "json_object.h"

#include <cmath>
#include <fmt/format.h>

namespace lowbit::cli {
namespace {

// Bytes of the well-formed UTF-8 sequence at `i` (RFC 3629, table 3-7 of Unicode); 0 when there is none.
size_t sequence_length(std::string_view text, size_t i) {
  const auto byte = [&](size_t k) {
    return i + k < text.size() ? static_cast<unsigned char>(text[i + k]) : 0u;
  };
  const auto follows = [&](size_t k) { return (byte(k) & 0xc0) == 0x80; };
  const unsigned lead = byte(0), second = byte(1);
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead <= 0xdf) return follows(1) ? 2 : 0;
  if (lead >= 0xe0 && lead <= 0xef) {
    const bool is_valid = !(lead == 0xe0 && second < 0xa0) && !(lead == 0xed && second > 0x9f);
    return is_valid && follows(1) && follows(2) ? 3 : 0;
  }
  if (lead >= 0xf0 && lead <= 0xf4) {
    const bool is_valid = !(lead == 0xf0 && second < 0x90) && !(lead == 0xf4 && second > 0x8f);
    return is_valid && follows(1) && follows(2) && follows(3) ? 4 : 0;
  }
  return 0;
}

}  // namespace

std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (size_t i = 0; i < text.size();) {
    const size_t length = sequence_length(text, i);
    const unsigned char c = static_cast<unsigned char>(text[i]);
    if (length == 0) {
      out += "\xef\xbf\xbd";
    } else if (length > 1) {
      out += text.substr(i, length);
    } else if (c == '"' || c == '\\') {
      out += {'\\', static_cast<char>(c)};
    } else if (c == '\n') {
      out += "\\n";
    } else if (c < 0x20 || c == 0x7f) {
      out += fmt::format("\\u{:04x}", c);
    } else {
      out += static_cast<char>(c);
    }
    i += length == 0 ? 1 : length;
  }
  return out + "\"";
}

JsonObject& JsonObject::add_raw(std::string_view key, std::string_view json) {
  if (!members_.empty()) members_ += ", ";
  members_ += json_string(key) + ": ";
  members_ += json;
  return *this;
}

JsonObject& JsonObject::add(std::string_view key, int64_t number) {
  return add_raw(key, fmt::format("{}", number));
}
JsonObject& JsonObject::add(std::string_view key, uint64_t number) {
  return add_raw(key, fmt::format("{}", number));
}
JsonObject& JsonObject::add(std::string_view key, double number) {
  return add_raw(key, std::isfinite(number) ? fmt::format("{}", number) : "null");
}

JsonObject& JsonObject::add(std::string_view key, std::span<const int32_t> numbers) {
  return add_raw(key, fmt::format("[{}]", fmt::join(numbers, ", ")));
}

JsonObject& JsonObject::add(std::string_view key, std::span<const std::string> texts) {
  std::string array;
  for (const std::string& text : texts) array += (array.empty() ? "" : ", ") + json_string(text);
  return add_raw(key, "[" + array + "]");
}

}  // namespace lowbit::cli
