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

}  // namespace
}  // namespace lowbit
