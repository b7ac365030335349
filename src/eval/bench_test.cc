#include "lowbit/bench.h"

#include "base/json.h"
#include "support.h"

#include <gtest/gtest.h>

namespace lowbit {
namespace {

using testing::error_of;

const std::filesystem::path kModel = LOWBIT_SOURCE_DIR "/demo/model",
                            kEncoder = LOWBIT_SOURCE_DIR "/tests/golden/bert_classifier";
const BenchOptions kShort{.batch_size = {1, 3}, .prompt_tokens = 8, .new_tokens = 4, .rounds = 2};

BenchModel cpu_model(const std::filesystem::path& folder, RuntimeOptions options = {}) {
  options.device = "cpu";
  options.threads = 2;
  return {.name = "m", .folder = folder, .runtime = std::move(options)};
}

TEST(Bench, MeasuresEveryModelAtEveryBatchSizeInTurn) {
  std::vector<std::string> order;
  const Log log{.progress = [&](const Progress& state) { order.emplace_back(state.detail); }};
  std::vector<BenchModel> models = {cpu_model(kModel), cpu_model(kModel, {.load_in_4bit = true})};
  models[1].name = "four";
  const BenchResult result = bench(models, kShort, log);
  EXPECT_EQ(order, (std::vector<std::string>{"m", "four", "m", "four"}));
  ASSERT_EQ(result.models.size(), 2u);
  for (const BenchRow& row : result.models) {
    EXPECT_EQ(row.device, "cpu");
    EXPECT_GT(row.load_seconds.median, 0);
    EXPECT_GT(row.first_token_seconds.median, row.load_seconds.lowest);
    EXPECT_GT(row.read_gbps.median, 0);
    ASSERT_EQ(row.speeds.size(), 2u);
    EXPECT_EQ(row.speeds[1].batch_size, 3);
    for (const BenchSpeed& speed : row.speeds) {
      for (const BenchFigure& figure : {speed.prefill_tokens_per_second, speed.decode_tokens_per_second}) {
        EXPECT_GT(figure.lowest, 0);
        EXPECT_LE(figure.lowest, figure.median);
        EXPECT_LE(figure.median, figure.highest);
        EXPECT_GT(figure.share_of_limit, 0);
      }
      EXPECT_EQ(speed.texts_per_second.median, 0);
    }
  }
  // demo/model: matrices of layers [out, in] in BF16, and a head that is the embedding's.
  const BenchRow &source = result.models[0], &four = result.models[1];
  const auto head =
      static_cast<uint64_t>(source.step_bytes - source.operations_per_token);  // 2 bytes, 2 operations
  EXPECT_EQ(four.step_bytes, head + (source.step_bytes - head) / 4 + (source.step_bytes - head) / 2 / 64 * 4)
      << "4 bits and an F32 scale for each 64 codes";
  EXPECT_EQ(four.operations_per_token, source.operations_per_token);
  EXPECT_EQ(source.memory.weight_bytes - four.memory.weight_bytes, source.step_bytes - four.step_bytes);
  EXPECT_GE(source.peak_anonymous_bytes, source.memory.weight_bytes);
  const BenchFigure &reference = source.speeds[0].decode_tokens_per_second,
                    &ours = four.speeds[0].decode_tokens_per_second;
  EXPECT_EQ(reference.ratio_to_first, 0);
  EXPECT_DOUBLE_EQ(ours.ratio_to_first, ours.median / reference.median);
  const Json json = parse_json(to_json(result), "bench");
  EXPECT_EQ(json.get("models").as_array()[1].get("name").as_string(), "four");
  EXPECT_DOUBLE_EQ(json.get("models")
                       .as_array()[1]
                       .get("speeds")
                       .as_array()[0]
                       .get("decode_tokens_per_second")
                       .get("median")
                       .as_number(),
                   ours.median);
}

TEST(Bench, EncodersReadTexts) {
  const BenchResult result = bench({cpu_model(kEncoder), cpu_model(kEncoder, {.load_in_8bit = true})},
                                   {.batch_size = {2}, .prompt_tokens = 6, .rounds = 1});
  for (const BenchRow& row : result.models) {
    EXPECT_GT(row.speeds[0].texts_per_second.median, 0);
    EXPECT_EQ(row.speeds[0].decode_tokens_per_second.median, 0);
    EXPECT_EQ(row.first_token_seconds.median, 0);
  }
  EXPECT_EQ(result.protocol.find("texts of 6 tokens"), 0u) << result.protocol;
}

TEST(Bench, RefusesBeforeItMeasures) {
  const Log log{.progress = [](const Progress&) { FAIL() << "something was measured"; }};
  const auto refusal = [&](const std::vector<BenchModel>& models, const BenchOptions& options) {
    return error_of(ErrorCode::kInvalidArgument, [&] { bench(models, options, log); });
  };
  refusal({}, kShort);
  refusal({cpu_model(kModel)}, {.batch_size = {}});
  refusal({cpu_model(kModel)}, {.batch_size = {1, 0}});
  refusal({cpu_model(kModel)}, {.rounds = 0});
  EXPECT_NE(refusal({cpu_model(kModel)}, {.prompt_tokens = 100000}).find("100000 prompt tokens"),
            std::string::npos);
  const std::string kinds = refusal({cpu_model(kModel), cpu_model(kEncoder)}, kShort);
  EXPECT_NE(kinds.find("writes text, m is an encoder"), std::string::npos) << kinds;
}

TEST(Bench, SlowerIsWhatTheMedianSaysByMoreThanNoise) {
  EXPECT_FALSE(is_slower({.median = 5}));
  EXPECT_FALSE(is_slower({.median = 5, .ratio_to_first = 0.99}));
  EXPECT_TRUE(is_slower({.median = 5, .ratio_to_first = 0.97}));
}

TEST(Speed, IsMeasuredAndNamesItsProtocol) {
  const LanguageModel model = LanguageModel::load(kModel, {.device = "cpu", .threads = 2});
  const SpeedResult result = measure_speed(model, {.prompt_tokens = 8, .new_tokens = 4, .repetitions = 1});
  EXPECT_GT(result.decode_tokens_per_second, 0);
  EXPECT_GT(result.prefill_tokens_per_second, 0);
  EXPECT_NE(result.protocol.find("8 prompt tokens"), std::string::npos);
  const SpeedResult batch =
      measure_speed(model, {.batch_size = 3, .prompt_tokens = 8, .new_tokens = 4, .repetitions = 1});
  EXPECT_GT(batch.decode_tokens_per_second, 0);
  EXPECT_EQ(batch.protocol.find("3 sequences at once, 8 prompt tokens"), 0u) << batch.protocol;
  error_of(ErrorCode::kInvalidArgument, [&] { measure_speed(model, {.prompt_tokens = 100000}); });
  error_of(ErrorCode::kInvalidArgument, [&] { measure_speed(model, {.batch_size = 0}); });
  const LanguageModel encoder = LanguageModel::load(kEncoder, {.device = "cpu", .threads = 2});
  error_of(ErrorCode::kInvalidArgument,
           [&] { measure_speed(encoder, {.prompt_tokens = 4, .new_tokens = 4}); });
}

}  // namespace
}  // namespace lowbit
