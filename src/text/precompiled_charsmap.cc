#include "text/precompiled_charsmap.h"

#include "base/fail.h"
#include "text/unicode.h"

namespace lowbit {
namespace {

// The bytes: u32 size of the trie; the trie; the replacements, UTF-8, each ended by a NUL; all little-endian.
//
// The trie is a double array (Aoe 1989; Darts-clone's layout), units of 32 bits. The node that a key has led
// to has a base, an index into the array; its child for a byte is the unit at base ^ byte, if that unit
// carries the byte as its label. The root is unit 0. A unit:
//   bits 0-7  label     bit 8  a value ends here: it is in the unit at the node's base
//   bit 9     the offset counts 256                  bits 10-30  offset: base = position ^ offset
// A value has bit 31 set, which no byte has, and in bits 0-30 where the replacement begins.
bool has_value(uint32_t unit) { return (unit >> 8 & 1) != 0; }
uint32_t label_of(uint32_t unit) { return unit & 0x800000FF; }
uint32_t value_of(uint32_t unit) { return unit & 0x7FFFFFFF; }
size_t offset_of(uint32_t unit) { return size_t{unit >> 10} << ((unit & 0x200) != 0 ? 8 : 0); }

std::string decode_base64(std::string_view text) {
  const auto digit_of = [](char c) {
    return c >= 'A' && c <= 'Z'   ? c - 'A'
           : c >= 'a' && c <= 'z' ? c - 'a' + 26
           : c >= '0' && c <= '9' ? c - '0' + 52
           : c == '+'             ? 62
           : c == '/'             ? 63
                                  : -1;
  };
  if (text.size() % 4 != 0) {
    fail(ErrorCode::kCorruptFile,
         "precompiled_charsmap has {} characters, base64 has a multiple of 4: truncated?", text.size());
  }
  const size_t padding = text.ends_with("==") ? 2 : text.ends_with("=") ? 1 : 0;
  std::string bytes;
  bytes.reserve(text.size() / 4 * 3);
  uint32_t bits = 0;
  for (size_t i = 0; i < text.size() - padding; ++i) {
    const int digit = digit_of(text[i]);
    if (digit < 0) fail(ErrorCode::kCorruptFile, "precompiled_charsmap is not base64 at character {}", i);
    bits = bits << 6 | static_cast<uint32_t>(digit);
    // After 2, 3 and 4 of four characters one more byte is complete.
    if (i % 4 > 0) bytes += static_cast<char>(bits >> (6 - 2 * (i % 4)));
  }
  return bytes;
}

uint32_t u32_at(std::string_view bytes, size_t at) {
  const auto byte = [&](size_t i) {
    return static_cast<uint32_t>(static_cast<unsigned char>(bytes[at + i]));
  };
  return byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24;
}

}  // namespace

PrecompiledCharsmap PrecompiledCharsmap::from_base64(std::string_view text) {
  if (text.size() / 4 * 3 > kMaxBytes) {
    fail(ErrorCode::kUnsupported,
         "precompiled_charsmap has {} characters of base64, at most {} are supported", text.size(),
         kMaxBytes / 3 * 4);
  }
  const std::string bytes = decode_base64(text);
  if (bytes.size() < 4)
    fail(ErrorCode::kCorruptFile, "precompiled_charsmap has {} bytes, expected at least 4", bytes.size());
  const size_t trie_bytes = u32_at(bytes, 0);
  if (trie_bytes == 0 || trie_bytes % 4 != 0 || trie_bytes > bytes.size() - 4) {
    fail(ErrorCode::kCorruptFile,
         "precompiled_charsmap says that its trie has {} bytes, expected a multiple of 4 up to the {} that "
         "follow: "
         "the file may be truncated",
         trie_bytes, bytes.size() - 4);
  }
  PrecompiledCharsmap map;
  map.units_.resize(trie_bytes / 4);
  for (size_t i = 0; i < map.units_.size(); ++i) map.units_[i] = u32_at(bytes, 4 + 4 * i);
  map.replacements_ = bytes.substr(4 + trie_bytes);
  if (!is_utf8(map.replacements_)) {
    fail(ErrorCode::kCorruptFile, "the {} bytes of replacements in precompiled_charsmap are not UTF-8",
         map.replacements_.size());
  }
  map.check();
  return map;
}

std::optional<std::string_view> PrecompiledCharsmap::find(std::string_view text) const {
  size_t position = offset_of(units_[0]);
  for (char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    position ^= byte;
    if (byte == 0 || position >= units_.size()) return std::nullopt;
    const uint32_t unit = units_[position];
    if (label_of(unit) != byte) return std::nullopt;
    position ^= offset_of(unit);
    if (has_value(unit)) {
      const std::string_view rest = std::string_view(replacements_).substr(value_of(units_[position]));
      return rest.substr(0, rest.find('\0'));
    }
  }
  return std::nullopt;
}

void PrecompiledCharsmap::check_value(uint32_t value) const {
  if (value > replacements_.size()) {
    fail(ErrorCode::kCorruptFile, "precompiled_charsmap points to byte {} of its {} bytes of replacements",
         value, replacements_.size());
  }
  if (value < replacements_.size() && (static_cast<unsigned char>(replacements_[value]) & 0xC0) == 0x80)
    fail(ErrorCode::kCorruptFile, "precompiled_charsmap points into a character, at byte {}", value);
}

// Every node once, however often keys share it: find() may then trust offsets and values. A search would end
// in a loop as well, but no writer makes one.
void PrecompiledCharsmap::check() const {
  enum State : unsigned char { kNew, kOnPath, kDone };
  struct Node {
    size_t base;
    size_t next_byte;
  };
  std::vector<unsigned char> states(units_.size(), kNew);
  std::vector<Node> path;
  const auto enter = [&](size_t base) {
    if (base >= units_.size()) {
      fail(ErrorCode::kCorruptFile, "the trie of precompiled_charsmap points to unit {}, it has {}", base,
           units_.size());
    }
    if (states[base] == kOnPath)
      fail(ErrorCode::kCorruptFile, "the trie of precompiled_charsmap loops at unit {}", base);
    if (states[base] == kNew) {
      states[base] = kOnPath;
      path.push_back({base, 1});
    }
  };
  enter(offset_of(units_[0]));
  while (!path.empty()) {
    Node& node = path.back();
    if (node.next_byte > 255) {
      states[node.base] = kDone;
      path.pop_back();
      continue;
    }
    const size_t byte = node.next_byte++, position = node.base ^ byte;
    if (position >= units_.size() || label_of(units_[position]) != byte) continue;
    const size_t base = position ^ offset_of(units_[position]);
    const bool ends = has_value(units_[position]);
    enter(base);  // `node` is gone
    if (ends) check_value(value_of(units_[base]));
  }
}

}  // namespace lowbit
