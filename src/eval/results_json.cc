#include "base/json.h"
#include "lowbit/evaluate.h"

namespace lowbit {
namespace {

Json number_or_null(const std::optional<double>& value) { return value ? Json(*value) : Json(); }

Json interval(const Proportion& proportion) {
  return Json(Json::Array{Json(proportion.low), Json(proportion.high)});
}

Json memory_json(const MemoryUse& memory) { return parse_json(to_json(memory), "memory"); }

Json flips_json(const Flips& flips) {
  Json json = Json::object();
  json.set("became_wrong", flips.became_wrong);
  json.set("became_right", flips.became_right);
  json.set("p_value", flips.p_value);
  return json;
}

}  // namespace

std::string to_json(const ClassifyResult& result) {
  Json json = Json::object();
  json.set("samples", result.samples);
  json.set("true_negative", result.true_negative);
  json.set("false_positive", result.false_positive);
  json.set("false_negative", result.false_negative);
  json.set("true_positive", result.true_positive);
  json.set("unparsable", result.unparsable);
  json.set("precision", number_or_null(result.precision.value));
  json.set("precision_interval", interval(result.precision));
  json.set("recall", number_or_null(result.recall.value));
  json.set("recall_interval", interval(result.recall));
  json.set("f1", number_or_null(result.f1));
  json.set("accuracy", number_or_null(result.accuracy.value));
  json.set("accuracy_interval", interval(result.accuracy));
  json.set("seconds", result.seconds);
  json.set("samples_per_second", result.samples_per_second);
  json.set("memory", memory_json(result.memory));
  json.set("protocol", result.protocol);
  return json.dump(2);
}

std::string to_json(const PerplexityResult& result) {
  Json json = Json::object();
  json.set("perplexity", result.perplexity);
  json.set("mean_nll", result.mean_nll);
  json.set("standard_error", result.standard_error);
  json.set("tokens", result.tokens);
  json.set("windows", result.windows);
  json.set("context", result.context);
  json.set("seconds", result.seconds);
  if (result.memory.peak_rss_bytes > 0) json.set("memory", memory_json(result.memory));
  json.set("protocol", result.protocol);
  return json.dump(2);
}

std::string to_json(const DivergenceResult& result) {
  Json json = Json::object();
  json.set("mean_kl", result.mean_kl);
  json.set("standard_error", result.standard_error);
  json.set("median_kl", result.median_kl);
  json.set("p95_kl", result.p95_kl);
  json.set("p99_kl", result.p99_kl);
  json.set("p999_kl", result.p999_kl);
  json.set("max_kl", result.max_kl);
  json.set("top1_agreement", result.top1_agreement);
  json.set("perplexity", result.perplexity.perplexity);
  json.set("reference_perplexity", result.reference_perplexity.perplexity);
  json.set("tokens", result.tokens);
  json.set("windows", result.windows);
  json.set("context", result.context);
  json.set("seconds", result.seconds);
  json.set("memory", memory_json(result.memory));
  json.set("reference_memory", memory_json(result.reference_memory));
  json.set("protocol", result.protocol);
  return json.dump(2);
}

std::string to_json(const SequenceClassifyResult& result) {
  Json json = Json::object();
  json.set("samples", result.samples);
  json.set("accuracy", number_or_null(result.accuracy.value));
  json.set("accuracy_interval", interval(result.accuracy));
  json.set("macro_f1", number_or_null(result.macro_f1));
  Json labels = Json::array();
  for (size_t i = 0; i < result.labels.size(); ++i) {
    const LabelResult& label = result.labels[i];
    Json counts = Json::object();
    for (size_t k = 0; k < result.labels.size(); ++k)
      counts.set(result.labels[k].label, result.confusion[i][k]);
    labels.push_back(Json::Object{{"label", label.label},
                                  {"samples", label.samples},
                                  {"precision", number_or_null(label.precision.value)},
                                  {"precision_interval", interval(label.precision)},
                                  {"recall", number_or_null(label.recall.value)},
                                  {"recall_interval", interval(label.recall)},
                                  {"f1", number_or_null(label.f1)},
                                  {"predicted_as", counts}});
  }
  json.set("labels", labels);
  json.set("tokens", result.tokens);
  json.set("truncated", result.truncated);
  json.set("seconds", result.seconds);
  json.set("samples_per_second", result.samples_per_second);
  json.set("memory", memory_json(result.memory));
  json.set("protocol", result.protocol);
  return json.dump(2);
}

std::string to_json(const EmbeddingsResult& result) {
  Json json = Json::object();
  json.set("mean_cosine", result.mean_cosine);
  json.set("standard_error", result.standard_error);
  json.set("median_cosine", result.median_cosine);
  json.set("p5_cosine", result.p5_cosine);
  json.set("p1_cosine", result.p1_cosine);
  json.set("min_cosine", result.min_cosine);
  json.set("worst_text", result.worst_text);
  json.set("similarity_spearman", number_or_null(result.similarity_spearman));
  json.set("texts", result.texts);
  json.set("tokens", result.tokens);
  json.set("truncated", result.truncated);
  json.set("width", result.width);
  json.set("seconds", result.seconds);
  json.set("reference_seconds", result.reference_seconds);
  json.set("memory", memory_json(result.memory));
  json.set("reference_memory", memory_json(result.reference_memory));
  json.set("protocol", result.protocol);
  return json.dump(2);
}

std::string to_json(const PairedResult& result) {
  Json json = flips_json(result.all);
  json.set("samples", result.samples);
  json.set("positives", flips_json(result.positives));
  json.set("negatives", flips_json(result.negatives));
  json.set("protocol", "McNemar's exact test, two-sided, on the same examples");
  return json.dump(2);
}

}  // namespace lowbit
