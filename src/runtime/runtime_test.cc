#include "runtime/answer.h"
#include "runtime/forward.h"
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

// A step is recorded by another thread while a batch begins: what it reads must not be what is set then.
TEST(StepData, AViewStaysWhatItWas) {
  ModelConfig config;
  config.layers = config.kv_heads = 1;
  config.head_dim = 4;
  KvCache cache(config, 2, 8, DType::kF32);
  const std::vector<int32_t> any = {0}, first = {5}, second = {7};
  const SequenceTokens before[] = {{0, any}, {1, any}}, after[] = {{1, first}, {0, second}};
  StepData data({}, before, cache);
  const StepData view = data.view();
  cache.set_length(0, 3);
  data.set({}, after, cache);
  EXPECT_EQ(data.sequences().sequences[1].position, 3);
  ASSERT_EQ(view.tokens(), 2);
  ASSERT_EQ(view.sequences().sequences.size(), 2u);
  EXPECT_NE(view.sequences().sequences.data(), data.sequences().sequences.data());
  EXPECT_EQ(view.sequences().sequences[1].position, 0);
  EXPECT_EQ(view.sequences().sequences[0].keys, cache.keys(0));
  EXPECT_EQ(view.positions()[1], 0);
  EXPECT_EQ(view.ids().ids[0], 0);
}

}  // namespace
}  // namespace lowbit
