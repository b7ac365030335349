// Regular expressions of tokenizer files, matched by PCRE2 within limits of steps, memory and time.
#pragma once

#include "lowbit/tokenizer.h"

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

class Regex {
 public:
  // `pattern` is in the syntax that HF tokenizers use (Oniguruma's Ruby syntax); \s \w \h and ^ $ are
  // translated to mean the same in PCRE2. Throws kUnsupported naming the pattern when it cannot be compiled.
  explicit Regex(std::string_view pattern);

  // Appends all matches of valid UTF-8 from left to right, none overlapping; an empty match directly after
  // another match does not count. Throws kUnsupported when the pattern needs too many steps (catastrophic
  // backtracking).
  void find_all(std::string_view text, std::vector<TextRange>& matches) const;

 private:
  std::string pattern_;
  std::shared_ptr<const void> code_;  // pcre2_code
};

}  // namespace lowbit
