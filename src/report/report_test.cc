#include "lowbit/report.h"

#include "base/json.h"
#include "report/json_text.h"
#include "report/text_table.h"
#include "support.h"

#include <gtest/gtest.h>

namespace lowbit {
namespace {

bool holds(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

// With lines joined again where they were wrapped.
std::string unwrapped(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool is_wrap = text.substr(i, 3) == "\n  ";
    out += is_wrap ? ' ' : text[i];
    if (is_wrap) i += 2;
  }
  return out;
}

ComparisonRow row(const std::string& name, uint64_t bytes) {
  ComparisonRow row{
      .name = name, .bytes = bytes, .decode_tokens_per_second = 123.45, .speed_protocol = "one sequence"};
  row.classification = {
      .samples = 10, .true_negative = 4, .false_positive = 1, .false_negative = 2, .true_positive = 3};
  row.classification.precision = wilson_interval(3, 4);
  row.classification.recall = wilson_interval(3, 5);
  row.classification.f1 = 2.0 / 3;
  row.classification.protocol = "greedy answers";
  row.perplexity = {.perplexity = 12.5, .standard_error = 0.01, .tokens = 100, .protocol = "gptq windows"};
  return row;
}

TEST(TextTable, AlignsByDisplayWidth) {
  TextTable table;
  table.add({"诈骗", "1"});
  table.add({"ab", "200"});
  EXPECT_EQ(table.text(), "诈骗    1\nab    200\n");
  EXPECT_EQ(display_width("诈骗 a±"), 7u);
}

TEST(Numbers, ReadLikePeopleWriteThem) {
  EXPECT_EQ(bytes_text(999), "999 B");
  EXPECT_EQ(bytes_text(98400000), "98.4 MB");
  EXPECT_EQ(bytes_text(1776000000), "1.78 GB");
  EXPECT_EQ(count_text(134515008), "134,515,008");
  EXPECT_EQ(count_text(-1234), "-1,234");
  EXPECT_EQ(count_text(0), "0");
  EXPECT_EQ(seconds_text(0.416), "0.42 s");
  EXPECT_EQ(seconds_text(200), "3 min 20 s");
  EXPECT_EQ(seconds_text(7500), "2 h 5 min");
  EXPECT_EQ(share_text(std::nullopt), "-");
  EXPECT_EQ(share_text(0.934), "93.4 %");
}

TEST(Comparison, HasOneColumnPerModelAndEveryFigureWithItsProtocol) {
  ComparisonRow source = row("source", 11500000), small = row("int4", 4200000);
  small.divergence = {.mean_kl = 0.0123,
                      .p99_kl = 0.2,
                      .standard_error = 0.001,
                      .top1_agreement = 0.97,
                      .tokens = 100,
                      .protocol = "KL of windows"};
  const std::string text = comparison_text({source, small});
  for (const char* part : {"source", "int4", "11,500,000", "4,200,000", "123.5", "75.0 % [30.1, 95.4]",
                           "60.0 % [23.1, 88.2]", "12.500 ± 0.125", "0.0123 ± 0.001", "97.0 %",
                           "greedy answers", "gptq windows", "KL of windows", "one sequence", "unparsable"}) {
    EXPECT_TRUE(holds(text, part)) << part << "\n" << text;
  }
  EXPECT_EQ(text.find("greedy answers"), text.rfind("greedy answers"))
      << "a protocol that two models share stands once";
}

TEST(Comparison, SaysWhatChangedAnswersMean) {
  ComparisonRow source = row("source", 9), small = row("int4", 4), smaller = row("int2", 2);
  small.paired = {.samples = 1200, .all = {12, 8, mcnemar_p_value(12, 8)}, .positives = {5, 2, 0.45}};
  smaller.paired = {.samples = 1200, .all = {15, 4, mcnemar_p_value(15, 4)}};
  const std::string text = unwrapped(comparison_text({source, small, smaller}));
  for (const char* part : {"lost, gained", "12, 8", "McNemar p", "0.5", "0.019", "int4: of 1,200 answers 12",
                           "(5 of positives", "chance may", "more than chance"}) {
    EXPECT_TRUE(holds(text, part)) << part << "\n" << text;
  }
  EXPECT_EQ(text.find("more than chance"), text.rfind("more than chance"));
  EXPECT_FALSE(holds(comparison_text({source}), "McNemar"));
  const Json json = parse_json(comparison_json({source, small}), "comparison");
  EXPECT_EQ(json.get("models").as_array().at(0).find("paired"), nullptr);
  EXPECT_EQ(json.get("models").as_array().at(1).get("paired").get("became_wrong").as_integer(), 12);
}

TEST(Comparison, FiguresThatNobodyMeasuredAreLeftOut) {
  ComparisonRow plain{.name = "m", .bytes = 5};
  const std::string text = comparison_text({plain});
  for (const char* part : {"tokens/s", "precision", "perplexity", "KL"})
    EXPECT_FALSE(holds(text, part)) << text;
}

TEST(Comparison, JsonHoldsTheSameFigures) {
  const Json json = parse_json(comparison_json({row("source", 7)}), "comparison");
  const Json& model = json.get("models").as_array().at(0);
  EXPECT_EQ(model.get("name").as_string(), "source");
  EXPECT_EQ(model.get("bytes").as_integer(), 7);
  EXPECT_EQ(model.get("classification").get("true_positive").as_integer(), 3);
  EXPECT_DOUBLE_EQ(model.get("perplexity").get("perplexity").as_number(), 12.5);
  EXPECT_EQ(model.find("divergence"), nullptr);
}

TEST(Bench, MarksWhatIsSlowerThanTheFirstModel) {
  BenchRow first{.name = "qwen2", .device = "cpu", .load_seconds = {0.5, 0.5, 0.5}};
  first.first_token_seconds = {0.75, 0.7, 0.8};
  first.memory.weight_bytes = 988000000;
  first.read_gbps = {25, 24, 26};
  first.matrix_gops = 1234.5;
  first.speeds = {{.batch_size = 4,
                   .prefill_tokens_per_second = {.median = 512},
                   .decode_tokens_per_second = {.median = 20.12, .share_of_limit = 0.84}}};
  BenchRow second = first;
  second.name = "qwen2-int4";
  second.speeds[0].prefill_tokens_per_second = {.median = 500, .ratio_to_first = 0.97};
  second.speeds[0].decode_tokens_per_second = {.median = 60, .ratio_to_first = 3};
  const std::string text = unwrapped(bench_text({{first, second}, 128, "one round"}));
  for (const char* part :
       {"qwen2-int4", "0.500 s", "0.750 s", "988.0 MB", "reads, 4 x 128", " 500 *", "20.1 (84 %)", "60.0\n",
        "* slower than qwen2 by more than 2 %", "25.0 GB/s", "1,234 Gop/s", "one round"})
    EXPECT_TRUE(holds(text, part)) << part << "\n" << text;
  EXPECT_FALSE(holds(text, "512 *")) << text;
  EXPECT_FALSE(holds(text, "GPU memory")) << text;
  const std::string alone = bench_text({{first}, 128, "one round"});
  EXPECT_FALSE(holds(alone, "slower")) << alone;
}

TEST(Classification, NothingOverNothingIsADash) {
  ClassifyResult result{.samples = 2, .true_negative = 2, .protocol = "p"};
  const std::string text = classification_text(result);
  EXPECT_TRUE(holds(text, "0 / 0")) << text;
  EXPECT_FALSE(holds(text, "nan")) << text;
}

TEST(Quantize, AFailedCheckIsSaid) {
  QuantizeResult result{.bytes = 25, .checked = true, .passed = false, .mean_kl = 3.5, .check_tokens = 7};
  result.source_bytes = 100;
  result.modules = {{.module = "model.layers.0.mlp.down_proj",
                     .bits = 4,
                     .group_size = 128,
                     .method = "gptq",
                     .relative_error = 0.0123,
                     .damp_percent = 0.05},
                    {.module = "lm_head", .method = "none", .note = "tied to the embedding"}};
  const std::string text = quantize_text(result);
  for (const char* part : {"FAILED", "3.5", "25.0 %", "model.layers.*.mlp.down_proj", "0.0123",
                           "tied to the embedding", "dense"}) {
    EXPECT_TRUE(holds(text, part)) << part << "\n" << text;
  }
}

TEST(Inspection, MissingKeysAreLeftOutAndUnknownOnesAreShown) {
  const std::string text =
      inspection_text(R"({"architecture": "Qwen2ForCausalLM", "bytes": 1500000, "surprise": 7,
    "components": [{"component": "embedding", "parameters": 1000, "bytes": 2000}],
    "engines": [{"engine": "vLLM", "verdict": "no", "reason": "576 is no multiple of 128"}], "warnings": ["odd"]})");
  for (const char* part : {"Qwen2ForCausalLM", "1.5 MB", "surprise", "embedding", "2.0 kB", "vLLM",
                           "576 is no multiple", "odd"}) {
    EXPECT_TRUE(holds(text, part)) << part << "\n" << text;
  }
  EXPECT_FALSE(holds(text, "group order")) << text;
  EXPECT_FALSE(holds(text, "Memory")) << text;
  const std::string memory =
      inspection_text(R"({"memory": {"parameters": 5, "footprint_bytes": 2500000, "run": null,
    "run_unknown": "no config.json", "train": [{"dtype": "bfloat16", "adam_bytes": 4500000}], "train_unknown": null,
    "notes": ["activations are left out"]}})");
  for (const char* part :
       {"2.5 MB", "unknown: no config.json", "bfloat16", "4.5 MB", "activations are left out"}) {
    EXPECT_TRUE(holds(memory, part)) << part << "\n" << memory;
  }
  inspection_text("{}");
  testing::error_of(ErrorCode::kCorruptFile, [] { inspection_text("not json"); });
}

TEST(Plan, TheSameModuleOfAllLayersIsOneLine) {
  const std::string text = plan_text(R"({"modules": [
    {"module": "model.layers.0.mlp.up_proj", "method": "gptq", "bits": 4, "group_size": 128, "out_features": 8, "in_features": 16},
    {"module": "model.layers.1.mlp.up_proj", "method": "gptq", "bits": 4, "group_size": 128, "out_features": 8, "in_features": 16},
    {"module": "lm_head", "method": "none", "reason": "tied to the embedding"}],
    "bytes_by_component": {"codes": 1500000}, "estimated_seconds": 75.2, "feasible": true})");
  EXPECT_TRUE(holds(text, "model.layers.*.mlp.up_proj  2  gptq")) << text;
  for (const char* part : {"tied to the embedding", "1.5 MB", "1 min 15 s", "It can finish"})
    EXPECT_TRUE(holds(text, part)) << text;
}

TEST(LayerPattern, ReplacesIndicesOnly) {
  EXPECT_EQ(layer_pattern("model.layers.12.mlp.up_proj"), "model.layers.*.mlp.up_proj");
  EXPECT_EQ(layer_pattern("h.3"), "h.*");
  EXPECT_EQ(layer_pattern("block2.4x.w1"), "block2.4x.w1");
  EXPECT_EQ(layer_pattern(""), "");
}

TEST(Plan, FeasibilityIsReadAndReasonsAreShown) {
  EXPECT_TRUE(plan_is_feasible(R"({"feasible": true})"));
  EXPECT_FALSE(plan_is_feasible(R"({"feasible": false})"));
  EXPECT_FALSE(plan_is_feasible("{}"));
  const std::string text = plan_text(
      R"({"feasible": false, "reasons": ["needs 9 GB of disk, 2 GB are free"], "peak_bytes": 9000000})");
  EXPECT_TRUE(holds(text, "CANNOT")) << text;
  EXPECT_TRUE(holds(text, "needs 9 GB of disk")) << text;
  EXPECT_TRUE(holds(text, "9.0 MB")) << text;
}

TEST(Reports, SurviveKeysOfOtherTypes) {
  const char* odd =
      R"({"components": "none", "engines": [1, null, {"engine": []}], "bytes": "many", "limits": [], "memory": 3,
    "kernels": {}, "modules": [[]], "reasons": [{"a": 1}], "architecture": {"x": [1]}, "feasible": 3})";
  EXPECT_TRUE(holds(inspection_text(odd), "many"));
  EXPECT_TRUE(holds(plan_text(odd), "a 1"));
  EXPECT_TRUE(holds(doctor_text(odd), "many"));
  EXPECT_TRUE(holds(tensor_text(R"({"name": "w", "shape": [2, 3], "bytes": 1200})"), "2, 3"));
}

}  // namespace
}  // namespace lowbit
