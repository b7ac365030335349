#include "runtime/answer.h"
#include "runtime/options.h"
#include "runtime/sampler.h"
#include "support.h"

#include <cmath>
#include <gtest/gtest.h>

namespace lowbit {
namespace {

TEST(Sampler, ATokenThatWasNotChosenIsAnError) {
  testing::error_of(ErrorCode::kInternal, [] { checked_token(-1); });
  EXPECT_EQ(checked_token(7), 7);
}

TEST(Sampler, PromptsDrawFromDifferentStreams) {
  EXPECT_NE(random_stream(7, 0), random_stream(7, 1));
  EXPECT_NE(random_stream(7, 0), random_stream(8, 0));
}

TEST(GenerateOptions, RangesAreChecked) {
  auto refuse = [](auto change) {
    GenerateOptions options;
    change(options);
    testing::error_of(ErrorCode::kInvalidArgument, [&] { validate(options); });
  };
  refuse([](GenerateOptions& o) { o.max_new_tokens = 0; });
  refuse([](GenerateOptions& o) { o.max_new_tokens = int64_t{1} << 40; });
  refuse([](GenerateOptions& o) { o.temperature = NAN; });
  refuse([](GenerateOptions& o) { o.temperature = -1; });
  refuse([](GenerateOptions& o) { o.top_k = -1; });
  refuse([](GenerateOptions& o) { o.top_p = 0; });
  refuse([](GenerateOptions& o) { o.top_p = NAN; });
  refuse([](GenerateOptions& o) { o.repetition_penalty = 0; });
  refuse([](GenerateOptions& o) { o.stop.assign(1000000, "x"); });
  refuse([](GenerateOptions& o) { o.stop = {""}; });
  validate(GenerateOptions{});
}

TEST(Device, AnArchitectureWithoutAGpuPathTakesTheCpuOrSaysSo) {
  Json config = Json::object();
  config.set("model_type", "phi3");
  std::string logged;
  const Log log{.message = [&](LogLevel, std::string_view text) { logged += text; }};
  EXPECT_EQ(device_for_model(0, "auto", config, log), kHost);
  EXPECT_NE(logged.find("phi3"), std::string::npos) << logged;
  const std::string refusal =
      testing::error_of(ErrorCode::kUnsupported, [&] { device_for_model(0, "cuda:0", config, log); });
  EXPECT_NE(refusal.find("--device cpu"), std::string::npos) << refusal;
  logged.clear();
  EXPECT_EQ(device_for_model(kHost, "cpu", config, log), kHost);
  config.set("model_type", "qwen2");
  EXPECT_EQ(device_for_model(1, "cuda:1", config, log), 1);
  EXPECT_EQ(logged, "");
}

}  // namespace
}  // namespace lowbit
