#include "base/json.h"
#include "lowbit/report.h"
#include "report/text_table.h"

#include <fmt/format.h>

namespace lowbit {
namespace {

std::string with_interval(const Proportion& proportion) {
  if (!proportion.value) return "-";
  return fmt::format("{:.1f} % [{:.1f}, {:.1f}]", *proportion.value * 100, proportion.low * 100,
                     proportion.high * 100);
}

// One line of the table: a figure of every model, "-" where it was not measured.
template <class Cell>
void add_line(TextTable& table, const char* name, const std::vector<ComparisonRow>& rows, Cell cell) {
  std::vector<std::string> cells = {name};
  for (const ComparisonRow& row : rows) cells.push_back(cell(row));
  table.add(std::move(cells));
}

// Each protocol once, in the order of first use.
void add_protocol(std::vector<std::pair<std::string, std::string>>& protocols, const char* figure,
                  const std::string& text) {
  if (text.empty()) return;
  for (const auto& [known_figure, known] : protocols) {
    if (known_figure == figure && known == text) return;
  }
  protocols.emplace_back(figure, text);
}

// What the changed answers say about the two models, and what they do not.
std::string paired_text(const PairedResult& paired) {
  const Flips& all = paired.all;
  if (all.became_wrong + all.became_right == 0) {
    return fmt::format("all {} answers are right or wrong as the source's are", count_text(paired.samples));
  }
  return fmt::format(
      "of {} answers {} became wrong ({} of positives, {} of negatives) and {} became right ({} and {}). "
      "Were both models equally good, so uneven a split or worse would come about with p = {}: {} "
      "(positives alone p = {}, negatives alone p = {})",
      count_text(paired.samples), count_text(all.became_wrong), count_text(paired.positives.became_wrong),
      count_text(paired.negatives.became_wrong), count_text(all.became_right),
      count_text(paired.positives.became_right), count_text(paired.negatives.became_right),
      significant_text(all.p_value, 2),
      all.p_value >= 0.05                   ? "chance may explain it, which does not prove them equal"
      : all.became_wrong > all.became_right ? "this model is worse, by more than chance"
                                            : "this model is better, by more than chance",
      significant_text(paired.positives.p_value, 2), significant_text(paired.negatives.p_value, 2));
}

}  // namespace

std::string comparison_text(const std::vector<ComparisonRow>& rows) {
  bool any_classified = false, any_paired = false, any_scored = false, any_compared = false,
       any_timed = false;
  std::vector<std::pair<std::string, std::string>> protocols;
  for (const ComparisonRow& row : rows) {
    any_timed |= row.decode_tokens_per_second > 0;
    any_classified |= row.classification.samples > 0;
    any_paired |= row.paired.samples > 0;
    any_scored |= row.perplexity.tokens > 0;
    any_compared |= row.divergence.tokens > 0;
    if (row.decode_tokens_per_second > 0) add_protocol(protocols, "tokens/s:", row.speed_protocol);
    if (row.classification.samples > 0) add_protocol(protocols, "tn fp fn tp:", row.classification.protocol);
    if (row.perplexity.tokens > 0) add_protocol(protocols, "perplexity:", row.perplexity.protocol);
    if (row.paired.samples > 0) {
      add_protocol(
          protocols, "McNemar p:",
          "exact two-sided test on the same examples, of the answers that became wrong or right against "
          "the first model; an unparsable answer is wrong unless it counts as negative");
    }
    if (row.divergence.tokens > 0) add_protocol(protocols, "KL:", row.divergence.protocol);
  }

  TextTable table;
  add_line(table, "", rows, [](const ComparisonRow& row) { return row.name; });
  table.add_rule();
  add_line(table, "bytes", rows,
           [](const ComparisonRow& row) { return count_text(static_cast<int64_t>(row.bytes)); });
  if (any_timed) {
    add_line(table, "tokens/s", rows, [](const ComparisonRow& row) {
      return row.decode_tokens_per_second > 0 ? fixed_text(row.decode_tokens_per_second, 1) : "-";
    });
  }
  if (any_classified) {
    const auto count = [&](const char* name, int64_t ClassifyResult::*member) {
      add_line(table, name, rows, [&](const ComparisonRow& row) {
        return row.classification.samples > 0 ? count_text(row.classification.*member) : "-";
      });
    };
    count("samples", &ClassifyResult::samples);
    count("tn", &ClassifyResult::true_negative);
    count("fp", &ClassifyResult::false_positive);
    count("fn", &ClassifyResult::false_negative);
    count("tp", &ClassifyResult::true_positive);
    count("unparsable", &ClassifyResult::unparsable);
    add_line(table, "precision [95 %]", rows,
             [](const ComparisonRow& row) { return with_interval(row.classification.precision); });
    add_line(table, "recall [95 %]", rows,
             [](const ComparisonRow& row) { return with_interval(row.classification.recall); });
    add_line(table, "F1", rows, [](const ComparisonRow& row) { return share_text(row.classification.f1); });
    if (any_paired) {
      add_line(table, "lost, gained", rows, [](const ComparisonRow& row) {
        if (row.paired.samples == 0) return std::string("-");
        return fmt::format("{}, {}", count_text(row.paired.all.became_wrong),
                           count_text(row.paired.all.became_right));
      });
      add_line(table, "McNemar p", rows, [](const ComparisonRow& row) {
        return row.paired.samples > 0 ? significant_text(row.paired.all.p_value, 2) : "-";
      });
    }
    add_line(table, "samples/s", rows, [](const ComparisonRow& row) {
      return row.classification.samples > 0 ? fixed_text(row.classification.samples_per_second, 2) : "-";
    });
  }
  if (any_scored) {
    add_line(table, "perplexity", rows, [](const ComparisonRow& row) {
      if (row.perplexity.tokens == 0) return std::string("-");
      return fmt::format("{:.3f} ± {:.3f}", row.perplexity.perplexity,
                         row.perplexity.perplexity * row.perplexity.standard_error);
    });
  }
  if (any_compared) {
    add_line(table, "mean KL (nats)", rows, [](const ComparisonRow& row) {
      if (row.divergence.tokens == 0) return std::string("-");
      return fmt::format("{} ± {}", significant_text(row.divergence.mean_kl, 3),
                         significant_text(row.divergence.standard_error, 2));
    });
    add_line(table, "99 % KL", rows, [](const ComparisonRow& row) {
      return row.divergence.tokens > 0 ? significant_text(row.divergence.p99_kl, 3) : "-";
    });
    add_line(table, "same top token", rows, [](const ComparisonRow& row) {
      return row.divergence.tokens > 0 ? share_text(row.divergence.top1_agreement) : "-";
    });
  }
  std::string out = table.text() + "\n";
  for (const ComparisonRow& row : rows) {
    if (row.paired.samples > 0) out += wrapped(row.name + ":", paired_text(row.paired));
  }
  for (const auto& [figure, protocol] : protocols) out += wrapped(figure, protocol);
  return out;
}

std::string comparison_json(const std::vector<ComparisonRow>& rows) {
  Json models = Json::array();
  for (const ComparisonRow& row : rows) {
    Json model = Json::object();
    model.set("name", row.name);
    model.set("bytes", row.bytes);
    if (row.decode_tokens_per_second > 0) {
      model.set("decode_tokens_per_second", row.decode_tokens_per_second);
      model.set("speed_protocol", row.speed_protocol);
    }
    if (row.classification.samples > 0)
      model.set("classification", parse_json(to_json(row.classification), "classification"));
    if (row.paired.samples > 0) model.set("paired", parse_json(to_json(row.paired), "paired"));
    if (row.perplexity.tokens > 0) model.set("perplexity", parse_json(to_json(row.perplexity), "perplexity"));
    if (row.divergence.tokens > 0) model.set("divergence", parse_json(to_json(row.divergence), "divergence"));
    models.push_back(std::move(model));
  }
  Json json = Json::object();
  json.set("models", std::move(models));
  return json.dump(2);
}

}  // namespace lowbit
