// precompiled_charsmap from untrusted bytes, which base64 and JSON would keep a fuzzer away from. A map that
// loads must answer for any text, and its answers must be UTF-8.
#include "lowbit/error.h"
#include "text/precompiled_charsmap.h"
#include "text/unicode.h"

#include <cstdint>
#include <cstdlib>
#include <string>

namespace {

std::string base64(const uint8_t* data, size_t size) {
  static constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < size; i += 3) {
    uint32_t bits = 0;
    for (size_t k = 0; k < 3; ++k) bits = bits << 8 | (i + k < size ? data[i + k] : 0u);
    for (size_t k = 0; k < 4; ++k) out += i + k > size ? '=' : kDigits[bits >> (18 - 6 * k) & 63];
  }
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto map = lowbit::PrecompiledCharsmap::from_base64(base64(data, size));
    std::string text(3, '\0');
    for (int first = 0; first < 256; ++first) {
      for (int second = 0; second < 256; ++second) {
        text[0] = static_cast<char>(first), text[1] = static_cast<char>(second), text[2] = text[0];
        const auto replacement = map.find(text);
        if (replacement && !lowbit::is_utf8(*replacement)) std::abort();
      }
    }
  } catch (const lowbit::Error&) {
  }
  return 0;
}
