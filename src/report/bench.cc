#include "lowbit/report.h"
#include "report/text_table.h"

#include <algorithm>
#include <fmt/format.h>

namespace lowbit {
namespace {

// "1,234 (56 %) *"
std::string speed_cell(const BenchFigure& figure) {
  if (figure.median == 0) return "-";
  std::string text = fixed_text(figure.median, figure.median < 100 ? 1 : 0);
  if (figure.share_of_limit > 0) text += fmt::format(" ({:.0f} %)", 100 * figure.share_of_limit);
  return text + (is_slower(figure) ? " *" : "");
}

std::string seconds_cell(const BenchFigure& figure) {
  return figure.median < 1 ? fmt::format("{:.3f} s", figure.median) : seconds_text(figure.median);
}

}  // namespace

std::string bench_text(const BenchResult& result) {
  const std::vector<BenchRow>& rows = result.models;
  const auto any = [&](auto has) { return std::any_of(rows.begin(), rows.end(), has); };
  TextTable table;
  const auto add_line = [&](const std::string& name, auto cell) {
    std::vector<std::string> cells = {name};
    for (const BenchRow& row : rows) cells.push_back(cell(row));
    table.add(std::move(cells));
  };
  add_line("", [](const BenchRow& row) { return row.name; });
  table.add_rule();
  add_line("device", [](const BenchRow& row) { return row.device; });
  add_line("load", [](const BenchRow& row) { return seconds_cell(row.load_seconds); });
  const bool writes = any([](const BenchRow& row) { return row.first_token_seconds.median > 0; });
  if (writes)
    add_line("load to first token",
             [](const BenchRow& row) { return seconds_cell(row.first_token_seconds); });
  add_line("weights", [](const BenchRow& row) {
    return bytes_text(row.memory.weight_bytes + row.memory.gpu_weight_bytes + row.memory.streamed_bytes);
  });
  add_line("peak of anonymous memory",
           [](const BenchRow& row) { return bytes_text(row.peak_anonymous_bytes); });
  if (any([](const BenchRow& row) { return row.memory.gpu_peak_bytes > 0; })) {
    add_line("peak of GPU memory", [](const BenchRow& row) {
      return row.memory.gpu_peak_bytes > 0 ? bytes_text(row.memory.gpu_peak_bytes) : "-";
    });
  }
  for (size_t i = 0; !rows.empty() && i < rows[0].speeds.size(); ++i) {
    const int64_t batch = rows[0].speeds[i].batch_size;
    const auto add_speed = [&](const std::string& name, BenchFigure BenchSpeed::*figure) {
      if (any([&](const BenchRow& row) { return (row.speeds[i].*figure).median > 0; }))
        add_line(name, [&](const BenchRow& row) { return speed_cell(row.speeds[i].*figure); });
    };
    add_speed(fmt::format("texts/s, {} at once", batch), &BenchSpeed::texts_per_second);
    add_speed(fmt::format("reads, {} x {}", batch, result.prompt_tokens),
              &BenchSpeed::prefill_tokens_per_second);
    add_speed(fmt::format("writes, {} at once", batch), &BenchSpeed::decode_tokens_per_second);
  }
  add_line("the machine multiplies", [](const BenchRow& row) {
    return row.matrix_gops > 0 ? fmt::format("{} Gop/s", count_text(static_cast<int64_t>(row.matrix_gops)))
                               : "-";
  });
  add_line("the machine reads", [](const BenchRow& row) {
    return row.read_gbps.median > 0 ? fmt::format("{:.1f} GB/s", row.read_gbps.median) : "-";
  });
  std::string out = table.text() + "\n";
  const bool any_slower = any([](const BenchRow& row) {
    return std::any_of(row.speeds.begin(), row.speeds.end(), [](const BenchSpeed& speed) {
      return is_slower(speed.prefill_tokens_per_second) || is_slower(speed.decode_tokens_per_second) ||
             is_slower(speed.texts_per_second);
    });
  });
  if (any_slower)
    out += wrapped("*",
                   fmt::format("slower than {} by more than {:.0f} %", rows[0].name, 100 * kBenchTolerance));
  out += writes ? wrapped("reads, writes:",
                          "tokens per second, all sequences together. In brackets the share of the machine's "
                          "limit: reading, of its rate of products (those with weights counted); writing, of "
                          "its bandwidth (weights and cache, which each step reads once)")
                : wrapped("texts/s:",
                          "in brackets the share of the machine's rate of products (those with weights "
                          "counted)");
  return out + wrapped("protocol:", result.protocol);
}

}  // namespace lowbit
