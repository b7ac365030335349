#include "eval/windows.h"

#include "support.h"

#include <gtest/gtest.h>
#include <numeric>

namespace lowbit {
namespace {

using testing::error_of;

std::vector<int32_t> ids_up_to(int32_t count) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  std::iota(ids.begin(), ids.end(), 100);
  return ids;
}

int64_t scored(const WindowPlan& plan) {
  int64_t sum = 0;
  for (size_t i = 0; i < plan.windows.size(); ++i) {
    sum += static_cast<int64_t>(plan.windows[i].size()) - plan.first_scored[i];
  }
  return sum;
}

TEST(Windows, GptqCutsSideBySideAndDropsTheRest) {
  const WindowPlan plan = plan_windows(ids_up_to(23), {.context = 5}, -1);
  ASSERT_EQ(plan.windows.size(), 4u);
  EXPECT_EQ(plan.windows[3], (std::vector<int32_t>{115, 116, 117, 118, 119}));
  EXPECT_EQ(plan.first_scored, (std::vector<int64_t>{1, 1, 1, 1}));
  EXPECT_EQ(scored(plan), 16);
}

TEST(Windows, LlamaCppScoresTheSecondHalfAndPutsBosFirst) {
  const PerplexityOptions options{.context = 8, .protocol = "llama.cpp"};
  const WindowPlan plain = plan_windows(ids_up_to(17), options, -1);
  ASSERT_EQ(plain.windows.size(), 2u);
  EXPECT_EQ(plain.windows[1][0], 108);
  EXPECT_EQ(plain.first_scored[0], 5);  // its loop scores n_ctx - n_ctx / 2 - 1 ids per window

  // The BOS of the whole text takes the first place, so every id moves by one.
  const WindowPlan bos = plan_windows(ids_up_to(17), options, 1);
  ASSERT_EQ(bos.windows.size(), 2u);
  EXPECT_EQ(bos.windows[0], (std::vector<int32_t>{1, 100, 101, 102, 103, 104, 105, 106}));
  EXPECT_EQ(bos.windows[1], (std::vector<int32_t>{1, 108, 109, 110, 111, 112, 113, 114}));
}

TEST(Windows, StrideScoresEveryIdAfterTheFirstOnce) {
  for (int32_t count : {10, 11, 13, 29}) {
    for (int64_t stride : {1, 3, 9}) {
      const WindowPlan plan = plan_windows(ids_up_to(count), {.context = 10, .stride = stride}, -1);
      std::vector<int> times(static_cast<size_t>(count), 0);
      for (size_t w = 0; w < plan.windows.size(); ++w) {
        for (size_t i = static_cast<size_t>(plan.first_scored[w]); i < plan.windows[w].size(); ++i) {
          ++times[static_cast<size_t>(plan.windows[w][i] - 100)];
        }
      }
      EXPECT_EQ(times[0], 0);
      for (size_t i = 1; i < times.size(); ++i)
        EXPECT_EQ(times[i], 1) << count << " " << stride << " id " << i;
    }
  }
}

TEST(Windows, ShortTextSaysHowManyIdsThereAre) {
  const std::string message =
      error_of(ErrorCode::kInvalidArgument, [] { plan_windows(ids_up_to(7), {.context = 8}, -1); });
  EXPECT_NE(message.find("7 ids"), std::string::npos) << message;
  EXPECT_NE(message.find("8"), std::string::npos) << message;
}

TEST(Windows, SenselessOptionsAreRefused) {
  const auto ids = ids_up_to(50);
  const auto refused = [&](PerplexityOptions options) {
    error_of(ErrorCode::kInvalidArgument, [&] { plan_windows(ids, options, -1); });
  };
  refused({.context = 1});
  refused({.context = 8, .protocol = "wiki"});
  refused({.context = 8, .stride = 8});
  refused({.context = 8, .stride = -1});
  refused({.context = 8, .protocol = "llama.cpp", .stride = 2});
}

TEST(Windows, LimitIsNamedInTheProtocol) {
  const WindowPlan plan = plan_windows(ids_up_to(50), {.context = 5, .limit = 3}, -1);
  EXPECT_EQ(plan.windows.size(), 3u);
  EXPECT_NE(plan.protocol.find("only the first 3 windows"), std::string::npos);
}

}  // namespace
}  // namespace lowbit
