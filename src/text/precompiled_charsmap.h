// The rewriting rules of a SentencePiece model ("precompiled_charsmap"): characters, and short sequences of
// them, to what stands for them. precompiled_charsmap.cc draws the bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

class PrecompiledCharsmap {
 public:
  // Throws kCorruptFile for what is no base64, is truncated, loops or points outside; kUnsupported above
  // kMaxBytes.
  static PrecompiledCharsmap from_base64(std::string_view text);

  static constexpr size_t kMaxBytes = size_t{4} << 20;  // SentencePiece's own largest map has 0.3 MB

  // What stands for the shortest key that `text` begins with.
  std::optional<std::string_view> find(std::string_view text) const;

 private:
  void check() const;
  void check_value(uint32_t value) const;

  std::vector<uint32_t> units_;
  std::string replacements_;
};

}  // namespace lowbit
