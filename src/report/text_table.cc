#include "report/text_table.h"

#include <algorithm>
#include <cmath>
#include <fmt/format.h>

namespace lowbit {
namespace {

constexpr size_t kLineWidth = 80;

// Code points shown two columns wide: East Asian wide and fullwidth blocks, as far as tables meet them.
bool is_wide(uint32_t point) {
  return (point >= 0x1100 && point <= 0x115f) || (point >= 0x2e80 && point <= 0xa4cf) ||
         (point >= 0xac00 && point <= 0xd7a3) || (point >= 0xf900 && point <= 0xfaff) ||
         (point >= 0xfe30 && point <= 0xfe6f) || (point >= 0xff00 && point <= 0xff60) ||
         (point >= 0x1f300 && point <= 0x1faff) || (point >= 0x20000 && point <= 0x3fffd);
}

}  // namespace

size_t display_width(std::string_view utf8) {
  size_t width = 0;
  for (size_t i = 0; i < utf8.size();) {
    const unsigned char lead = static_cast<unsigned char>(utf8[i]);
    const size_t length = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    uint32_t point = length == 1 ? lead : lead & (0xffu >> (length + 1));
    for (size_t k = 1; k < length && i + k < utf8.size(); ++k) point = point << 6 | (utf8[i + k] & 0x3f);
    width += is_wide(point) ? 2 : 1;
    i += length;
  }
  return width;
}

void TextTable::align_left(size_t column) { left_.push_back(column); }

std::string TextTable::text() const {
  std::vector<size_t> widths;
  for (const auto& row : rows_) {
    widths.resize(std::max(widths.size(), row.size()), 0);
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], display_width(row[i]));
  }
  size_t total = 0;
  for (size_t width : widths) total += width + 2;
  std::string out;
  for (const auto& row : rows_) {
    std::string line;
    if (row.empty() && total >= 2) line = std::string(total - 2, '-');
    for (size_t i = 0; i < row.size(); ++i) {
      if (i > 0) line += "  ";
      const std::string space(widths[i] - display_width(row[i]), ' ');
      const bool is_left = std::find(left_.begin(), left_.end(), i) != left_.end();
      line += is_left ? row[i] + space : space + row[i];
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + '\n';
  }
  return out;
}

std::string count_text(int64_t count) {
  std::string digits = fmt::format("{}", count < 0 ? -count : count);
  for (size_t at = digits.size(); at > 3;) digits.insert(at -= 3, 1, ',');
  return count < 0 ? "-" + digits : digits;
}

std::string seconds_text(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "-";
  if (seconds < 10) return fmt::format("{:.2f} s", seconds);
  if (seconds < 60) return fmt::format("{:.1f} s", seconds);
  const int64_t whole = std::llround(seconds);
  if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  return fmt::format("{} h {} min", whole / 3600, whole % 3600 / 60);
}

std::string fixed_text(double value, int decimals) {
  return std::isfinite(value) ? fmt::format("{:.{}f}", value, decimals) : "-";
}

std::string significant_text(double value, int digits) {
  return std::isfinite(value) ? fmt::format("{:.{}g}", value, digits) : "-";
}

std::string share_text(std::optional<double> share) {
  return share && std::isfinite(*share) ? fmt::format("{:.1f} %", *share * 100) : "-";
}

std::string wrapped(std::string_view label, std::string_view text) {
  std::string out, line(label);
  while (!text.empty()) {
    const size_t end = std::min(text.find(' '), text.size());
    const std::string_view word = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (display_width(line) + 1 + display_width(word) > kLineWidth) {
      out += line + '\n';
      line.assign(1, ' ');
    }
    line += " ";
    line += word;
  }
  return out + line + '\n';
}

}  // namespace lowbit
