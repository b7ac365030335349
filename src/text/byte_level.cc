#include "text/byte_level.h"

#include "text/unicode.h"

#include <array>
#include <string>

namespace lowbit {
namespace {

constexpr int kCharacters = 0x144;

struct Tables {
  std::array<uint32_t, 256> character{};
  std::array<std::string, 256> text;
  std::array<int16_t, kCharacters> byte{};
  Tables() {
    byte.fill(-1);
    uint32_t next = 0x100;
    for (uint32_t b = 0; b < 256; ++b) {
      const bool is_printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      character[b] = is_printable ? b : next++;
      text[b] = to_utf8(character[b]);
      byte[character[b]] = static_cast<int16_t>(b);
    }
  }
};

const Tables& tables() {
  static const Tables kTables;
  return kTables;
}

}  // namespace

uint32_t byte_level_character(unsigned char byte) { return tables().character[byte]; }
std::string_view byte_level_text(unsigned char byte) { return tables().text[byte]; }
int byte_level_byte(uint32_t character) { return character < kCharacters ? tables().byte[character] : -1; }

}  // namespace lowbit
