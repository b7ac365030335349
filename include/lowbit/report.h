// Results as tables for people. Reads result structs and the JSON of inspect, plan and doctor; knows no
// model.
#pragma once

#include "lowbit/bench.h"
#include "lowbit/evaluate.h"
#include "lowbit/quantize.h"

#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

// One line of the table that matters: a model beside the one it came from.
struct ComparisonRow {
  std::string name;                     // "source", "int8", "int4"
  uint64_t bytes = 0;                   // of the safetensors files
  double decode_tokens_per_second = 0;  // 0: not measured
  std::string speed_protocol;
  ClassifyResult classification;  // samples == 0: not measured
  PairedResult paired;            // with the source's answers; samples == 0: not compared (the source itself)
  PerplexityResult perplexity;    // tokens == 0: not measured
  DivergenceResult divergence;    // tokens == 0: not measured (the source itself)
};
// One column per model, one line per figure, below it what the changed answers mean and the protocols.
// Figures that no model has are left out.
std::string comparison_text(const std::vector<ComparisonRow>& rows);
std::string comparison_json(const std::vector<ComparisonRow>& rows);

std::string classification_text(const ClassifyResult& result);
std::string perplexity_text(const PerplexityResult& result);
std::string divergence_text(const DivergenceResult& result);
std::string sequence_classification_text(const SequenceClassifyResult& result);
std::string embeddings_text(const EmbeddingsResult& result);
// One column per model, one line per figure; what is slower than the first model is marked.
std::string bench_text(const BenchResult& result);
std::string quantize_text(const QuantizeResult& result);

// Of the JSON that inspect_json, inspect_tensor_json, explain_json, plan_json and doctor_json return. Missing
// keys are left out. kCorruptFile when it is not JSON.
std::string inspection_text(std::string_view inspect_json);
std::string tensor_text(std::string_view tensor_json);
std::string plan_text(std::string_view plan_json);
bool plan_is_feasible(std::string_view plan_json);
std::string explanation_text(std::string_view explain_json);
std::string doctor_text(std::string_view doctor_json);

}  // namespace lowbit
