#include "quantize/gpu_budget.h"

#include <gtest/gtest.h>

namespace lowbit {
namespace {

TEST(GpuBudget, StatesLeaveTheGpuInTheOrderOfWhatTheyCost) {
  GpuBudget budget;
  budget.hidden = 1000;
  budget.carry = 5000;
  budget.weights = 200;
  budget.forward = 300;
  budget.hessians = 400;
  budget.codes = 700;
  const uint64_t least = budget.least();
  EXPECT_GE(least, 900u);
  auto place = [&](uint64_t available) { return place_states(budget, available); };
  EXPECT_TRUE(place(least + 6000).keeps_carry);
  EXPECT_FALSE(place(least + 5999).keeps_carry);
  EXPECT_FALSE(place(least + 1000).keeps_hidden_here);
  EXPECT_TRUE(place(least + 999).keeps_hidden_here);
  EXPECT_TRUE(place(least).fits);
  EXPECT_FALSE(place(least - 1).fits);
  const std::string text = shortage_text(budget, 500);
  EXPECT_NE(text.find("--max-gpu-memory"), std::string::npos) << text;
  EXPECT_NE(text.find("500 B may be taken"), std::string::npos) << text;
}

}  // namespace
}  // namespace lowbit
