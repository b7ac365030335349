// SHA-256 (FIPS 180-4), for fingerprints of files and templates.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace lowbit {

class Sha256 {
 public:
  void append(const void* data, size_t size);
  void append(std::string_view text) { append(text.data(), text.size()); }
  // 64 hexadecimal digits of all that was appended. Call once.
  std::string finish();

 private:
  void add_block(const uint8_t* block);
  std::array<uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> block_{};
  uint64_t size_ = 0;  // bytes appended
};

std::string sha256_hex(std::string_view bytes);

}  // namespace lowbit
