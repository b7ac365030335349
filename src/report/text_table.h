// Plain text tables and numbers in the units that people read.
#pragma once

#include "lowbit/bytes.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

// Rows of cells, columns aligned by display width (wide CJK characters count two). The first column is
// left-aligned, the others right-aligned unless left_columns says otherwise.
class TextTable {
 public:
  void add(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  void add_rule() { rows_.emplace_back(); }  // a line of dashes
  void align_left(size_t column);
  std::string text() const;  // every line ends in '\n'

 private:
  std::vector<std::vector<std::string>> rows_;
  std::vector<size_t> left_ = {0};
};

size_t display_width(std::string_view utf8);

std::string count_text(int64_t count);               // "134,515,008"
std::string seconds_text(double seconds);            // "0.42 s", "3 min 20 s", "2 h 5 min"
std::string fixed_text(double value, int decimals);  // "-" when not finite
std::string significant_text(double value, int digits);
std::string share_text(std::optional<double> share);  // "93.4 %", "-" when there is none

// "Protocol: ..." wrapped at 110 columns, further lines indented.
std::string wrapped(std::string_view label, std::string_view text);

}  // namespace lowbit
