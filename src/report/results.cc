#include "lowbit/report.h"
#include "report/json_text.h"
#include "report/text_table.h"

#include <algorithm>
#include <fmt/format.h>

namespace lowbit {
namespace {

std::string percent_interval(const Proportion& proportion) {
  if (!proportion.value) return "-  (0 / 0)";
  return fmt::format("{:.1f} %  [{:.1f}, {:.1f}]", *proportion.value * 100, proportion.low * 100,
                     proportion.high * 100);
}

// What the model took of a GPU, if it ran there.
void add_memory(TextTable& table, const MemoryUse& use) {
  if (use.gpu_peak_bytes == 0) return;
  std::string text = fmt::format("{} at most: weights {}, keys and values {}, workspaces {}",
                                 bytes_text(use.gpu_peak_bytes), bytes_text(use.gpu_weight_bytes),
                                 bytes_text(use.gpu_kv_cache_bytes), bytes_text(use.gpu_workspace_bytes));
  if (use.streamed_bytes > 0) text += fmt::format("; {} more are streamed", bytes_text(use.streamed_bytes));
  table.add({"GPU memory", std::move(text)});
}

// The same module of all layers that was treated the same way.
struct ModuleKind {
  std::string pattern, method, note;
  int bits = 0;
  int64_t group_size = 0, count = 0;
  double sum = 0, worst = 0, damp_percent = 0;
  // Of the inputs of those that have static ones.
  int64_t inputs = 0;
  double clipped = 0, most_clipped = 0, input_sum = 0, input_worst = 0;
  void add(const InputReport& input) {
    ++inputs;
    clipped += input.clipped;
    most_clipped = std::max(most_clipped, input.clipped);
    input_sum += input.relative_error;
    input_worst = std::max(input_worst, input.relative_error);
  }
};

std::string input_lines(const std::vector<ModuleKind>& kinds) {
  TextTable table;
  table.add({"inputs of", "n", "error", "worst", "clipped", "most"});
  table.add_rule();
  int64_t count = 0;
  for (const ModuleKind& kind : kinds) {
    if (kind.inputs == 0) continue;
    const auto share = [](double value) { return significant_text(100 * value, 3) + " %"; };
    const auto number = static_cast<double>(kind.inputs);
    table.add({kind.pattern, count_text(kind.inputs), significant_text(kind.input_sum / number, 3),
               significant_text(kind.input_worst, 3), share(kind.clipped / number),
               share(kind.most_clipped)});
    count += kind.inputs;
  }
  std::string lines;
  if (count > 0) lines.append("\n").append(table.text());
  return lines;
}

std::string module_lines(const std::vector<ModuleReport>& modules) {
  std::vector<ModuleKind> kinds;
  for (const ModuleReport& module : modules) {
    const std::string pattern = layer_pattern(module.module);
    const auto same = std::find_if(kinds.begin(), kinds.end(), [&](const ModuleKind& kind) {
      return kind.pattern == pattern && kind.method == module.method && kind.bits == module.bits &&
             kind.group_size == module.group_size && kind.note == module.note;
    });
    ModuleKind& kind = same != kinds.end() ? *same
                                           : kinds.emplace_back(ModuleKind{.pattern = pattern,
                                                                           .method = module.method,
                                                                           .note = module.note,
                                                                           .bits = module.bits,
                                                                           .group_size = module.group_size});
    ++kind.count;
    kind.sum += module.relative_error;
    kind.worst = std::max(kind.worst, module.relative_error);
    kind.damp_percent = std::max(kind.damp_percent, module.damp_percent);
    if (module.input) kind.add(*module.input);
  }
  std::string notes;
  TextTable table;
  table.align_left(2);
  table.add({"module", "n", "method", "bits", "group", "error", "worst", "damp"});
  table.add_rule();
  for (const ModuleKind& kind : kinds) {
    const bool is_dense = kind.method == "none";
    table.add({kind.pattern, count_text(kind.count), is_dense ? "dense" : kind.method,
               is_dense ? "-" : std::to_string(kind.bits), is_dense ? "-" : std::to_string(kind.group_size),
               is_dense ? "-" : significant_text(kind.sum / static_cast<double>(kind.count), 3),
               is_dense ? "-" : significant_text(kind.worst, 3),
               kind.damp_percent > 0 ? significant_text(kind.damp_percent, 3) : "-"});
    if (!kind.note.empty()) notes += wrapped(kind.pattern + ":", kind.note);
  }
  return table.text() + notes + input_lines(kinds);
}

}  // namespace

std::string classification_text(const ClassifyResult& result) {
  TextTable table;
  table.align_left(1);
  table.add({"samples", fmt::format("{}  (in {}, {:.2f} per second)", count_text(result.samples),
                                    seconds_text(result.seconds), result.samples_per_second)});
  table.add({"tn fp fn tp", fmt::format("{} {} {} {}", result.true_negative, result.false_positive,
                                        result.false_negative, result.true_positive)});
  table.add({"unparsable", count_text(result.unparsable)});
  table.add({"precision", percent_interval(result.precision)});
  table.add({"recall", percent_interval(result.recall)});
  table.add({"F1", share_text(result.f1)});
  table.add({"accuracy", percent_interval(result.accuracy)});
  add_memory(table, result.memory);
  return table.text() + wrapped("protocol:", result.protocol);
}

std::string sequence_classification_text(const SequenceClassifyResult& result) {
  TextTable table;
  table.align_left(1);
  table.add({"samples", fmt::format("{}  (in {}, {:.2f} per second)", count_text(result.samples),
                                    seconds_text(result.seconds), result.samples_per_second)});
  table.add({"accuracy", percent_interval(result.accuracy)});
  table.add({"macro F1", share_text(result.macro_f1)});
  if (result.truncated > 0) table.add({"cut", fmt::format("{} texts", count_text(result.truncated))});
  add_memory(table, result.memory);
  TextTable labels;
  std::vector<std::string> heading = {"label", "samples", "precision", "recall", "F1"};
  // A row of the confusion: what the examples of a label were taken for.
  const bool has_confusion = result.labels.size() <= 8;
  for (size_t i = 0; has_confusion && i < result.labels.size(); ++i)
    heading.push_back("as " + result.labels[i].label);
  labels.add(heading);
  labels.add_rule();
  for (size_t i = 0; i < result.labels.size(); ++i) {
    const LabelResult& label = result.labels[i];
    std::vector<std::string> row = {label.label, count_text(label.samples), percent_interval(label.precision),
                                    percent_interval(label.recall), share_text(label.f1)};
    for (size_t k = 0; has_confusion && k < result.labels.size(); ++k)
      row.push_back(count_text(result.confusion[i][k]));
    labels.add(row);
  }
  return table.text() + labels.text() + wrapped("protocol:", result.protocol);
}

std::string embeddings_text(const EmbeddingsResult& result) {
  TextTable table;
  table.align_left(1);
  table.add({"mean cosine",
             fmt::format("{:.6f} ± {}", result.mean_cosine, significant_text(result.standard_error, 2))});
  table.add({"median", fixed_text(result.median_cosine, 6)});
  table.add({"lowest 5 %", fixed_text(result.p5_cosine, 6)});
  table.add({"lowest 1 %", fixed_text(result.p1_cosine, 6)});
  table.add({"minimum", fmt::format("{:.6f}  (text {})", result.min_cosine, result.worst_text)});
  if (result.similarity_spearman)
    table.add({"rank correlation",
               fmt::format("{:.5f}  (of the similarities between texts)", *result.similarity_spearman)});
  table.add({"texts", fmt::format("{} of {} tokens, {} cut", count_text(result.texts),
                                  count_text(result.tokens), count_text(result.truncated))});
  table.add({"time", fmt::format("{}, of the reference {}", seconds_text(result.seconds),
                                 seconds_text(result.reference_seconds))});
  add_memory(table, result.memory);
  return table.text() + wrapped("protocol:", result.protocol);
}

std::string perplexity_text(const PerplexityResult& result) {
  TextTable table;
  table.align_left(1);
  table.add({"perplexity",
             fmt::format("{:.4f} ± {:.4f}", result.perplexity, result.perplexity * result.standard_error)});
  table.add({"mean NLL", fmt::format("{:.5f} ± {:.5f} nats per id", result.mean_nll, result.standard_error)});
  table.add({"tokens", fmt::format("{} scored in {} windows of {}", count_text(result.tokens),
                                   count_text(result.windows), result.context)});
  table.add(
      {"time", fmt::format("{}, {:.0f} tokens per second", seconds_text(result.seconds),
                           result.seconds > 0 ? static_cast<double>(result.tokens) / result.seconds : 0)});
  add_memory(table, result.memory);
  return table.text() + wrapped("protocol:", result.protocol);
}

std::string divergence_text(const DivergenceResult& result) {
  TextTable table;
  table.align_left(1);
  table.add({"mean KL", fmt::format("{} ± {} nats", significant_text(result.mean_kl, 4),
                                    significant_text(result.standard_error, 2))});
  table.add({"median KL", significant_text(result.median_kl, 4)});
  table.add({"95 % KL", significant_text(result.p95_kl, 4)});
  table.add({"99 % KL", significant_text(result.p99_kl, 4)});
  table.add({"99.9 % KL", significant_text(result.p999_kl, 4)});
  table.add({"largest KL", significant_text(result.max_kl, 4)});
  table.add({"same top token", fmt::format("{:.2f} %", result.top1_agreement * 100)});
  table.add({"perplexity", fmt::format("{:.4f}, of the reference {:.4f}", result.perplexity.perplexity,
                                       result.reference_perplexity.perplexity)});
  table.add({"tokens", fmt::format("{} positions in {} windows of {}", count_text(result.tokens),
                                   count_text(result.windows), result.context)});
  table.add({"time", seconds_text(result.seconds)});
  add_memory(table, result.memory);
  return table.text() + wrapped("protocol:", result.protocol);
}

std::string quantize_text(const QuantizeResult& result) {
  std::string out = module_lines(result.modules) + "\n";
  TextTable summary;
  summary.align_left(1);
  summary.add(
      {"size", fmt::format("{} from {}{}", bytes_text(result.bytes), bytes_text(result.source_bytes),
                           result.source_bytes > 0
                               ? fmt::format(" ({:.1f} %)", 100.0 * static_cast<double>(result.bytes) /
                                                                static_cast<double>(result.source_bytes))
                               : "")});
  summary.add(
      {"bits per weight", fmt::format("{:.3f} in the quantized modules, scales and zero points included",
                                      result.bits_per_weight)});
  summary.add(
      {"time", seconds_text(result.seconds) + (result.resumed ? ", continued from an earlier run" : "")});
  summary.add(
      {"peak memory", fmt::format("{} resident, {} of it not file-backed", bytes_text(result.peak_rss_bytes),
                                  bytes_text(result.peak_anonymous_bytes))});
  if (result.checked) {
    summary.add({"check", result.passed ? "passed: reloaded and compared with the source"
                                        : "FAILED: saved, but it does not do what it should"});
    if (result.check_tokens > 0) {
      summary.add({"", fmt::format("KL {} nats, same top token {:.1f} % on {} held-back tokens",
                                   significant_text(result.mean_kl, 3), result.top1_agreement * 100,
                                   count_text(result.check_tokens))});
    }
  } else {
    summary.add({"check", "not made"});
  }
  out += summary.text();
  out += wrapped(
      "error:",
      "mean of |X dW^T| / |X W^T| over n modules and the calibration samples, of the weights alone for rtn; "
      "damp: the share of the mean diagonal that was needed");
  for (const std::string& warning : result.warnings) out += wrapped("warning:", warning);
  return out;
}

}  // namespace lowbit
