// The alphabet of byte-level BPE: each of the 256 bytes as one printable character, as GPT-2 defined it.
#pragma once

#include <cstdint>
#include <string_view>

namespace lowbit {

// The character of a byte: printable Latin-1 stands for itself, the other 68 bytes are U+0100 to U+0143 in
// order.
uint32_t byte_level_character(unsigned char byte);
std::string_view byte_level_text(unsigned char byte);  // the same as UTF-8
// The byte that a character stands for, or -1.
int byte_level_byte(uint32_t character);

}  // namespace lowbit
