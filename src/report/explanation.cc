#include "lowbit/report.h"
#include "report/json_text.h"
#include "report/text_table.h"

#include <algorithm>
#include <cmath>
#include <fmt/format.h>

namespace lowbit {
namespace {

constexpr size_t kWidth = 65;  // of the picture: odd, so that 0 has a place

// Where the levels of a group lie between the lowest and the largest, and how many values went there.
std::string picture(const Json& json) {
  double largest = 0;
  for (const Json& level : array_of(json, "levels"))
    largest = std::max(largest, std::abs(number_of(level, "value", 0)));
  if (largest == 0) return "";
  std::vector<double> counts(kWidth);
  std::string marks(kWidth, ' ');
  for (const Json& level : array_of(json, "levels")) {
    const double place = (number_of(level, "value", 0) / largest + 1) / 2 * (kWidth - 1);
    const size_t column = static_cast<size_t>(std::clamp(std::lround(place), 0L, long{kWidth} - 1));
    marks[column] = '|';
    counts[column] += number_of(level, "count", 0);
  }
  const double most = *std::max_element(counts.begin(), counts.end());
  constexpr int kRows = 6;
  std::string out;
  for (int row = kRows; row >= 1 && most > 0; --row) {
    std::string line;
    for (const double count : counts) line += count > 0 && count > most * (row - 1) / kRows ? '#' : ' ';
    out += "  " + line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  out += "  " + marks + "\n";
  const std::string low = fmt::format("{:.4g}", -largest), high = fmt::format("{:.4g}", largest);
  const size_t middle = kWidth / 2;
  std::string scale = low + std::string(middle - low.size(), ' ') + "0";
  scale += std::string(kWidth - scale.size() - high.size(), ' ') + high;
  return out + "  " + scale + "  times the scale; #: values rounded there\n";
}

std::string values_table(const Json& json) {
  TextTable table;
  table.add({"value", "code", "decoded", "error"});
  table.add_rule();
  for (const Json& value : array_of(json, "first")) {
    table.add({significant_text(number_of(value, "value", 0), 6), text_of(value, "code"),
               significant_text(number_of(value, "decoded", 0), 6),
               significant_text(number_of(value, "error", 0), 3)});
  }
  return table.text();
}

}  // namespace

std::string explanation_text(std::string_view explain_json) {
  const Json json = parse_json(explain_json, "explanation");
  const double values = number_of(json, "values", 0), groups = number_of(json, "number_of_groups", 0);
  std::string out = fmt::format(
      "{}, {} bits, group_size {}: {} values in {} group{}, {:.4g} bits each\n\n", text_of(json, "format"),
      text_of(json, "bits"), text_of(json, "group_size"), count_text(static_cast<int64_t>(values)),
      count_text(static_cast<int64_t>(groups)), groups == 1 ? "" : "s", number_of(json, "bits_per_value", 0));
  out += picture(json) + "\n" + values_table(json);
  const double rows = static_cast<double>(array_of(json, "first").size());
  if (rows < values) out += fmt::format("... {} more\n", count_text(static_cast<int64_t>(values - rows)));
  out += '\n';
  out += objects_table(json, "groups", {"first", "scale", "zero_point", "largest_error"});
  const double shown = static_cast<double>(array_of(json, "groups").size());
  if (shown < groups) out += fmt::format("... {} more\n", count_text(static_cast<int64_t>(groups - shown)));
  return out + fmt::format("\nmean error {:.4g}, largest {:.4g}, relative error {:.4g}\n",
                           number_of(json, "mean_error", 0), number_of(json, "largest_error", 0),
                           number_of(json, "relative_error", 0));
}

}  // namespace lowbit
