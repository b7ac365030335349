// What tests ask of two results of the same options.
#pragma once

#include "quantize/run.h"

#include <gtest/gtest.h>

namespace lowbit::testing {

// The two differ in where codes fell, not in how well.
inline void expect_as_good(const QuantizeResult& result, const QuantizeResult& other) {
  ASSERT_EQ(result.modules.size(), other.modules.size());
  for (size_t i = 0; i < result.modules.size(); ++i) {
    const ModuleReport &ours = result.modules[i], &theirs = other.modules[i];
    EXPECT_EQ(ours.method, theirs.method) << ours.module << ": " << ours.note;
    EXPECT_EQ(ours.tokens, theirs.tokens) << ours.module;
    EXPECT_NEAR(ours.relative_error, theirs.relative_error, 0.05 * theirs.relative_error) << ours.module;
  }
  EXPECT_TRUE(result.checked && result.passed);
  EXPECT_EQ(result.check_tokens, other.check_tokens);
  EXPECT_LT(result.mean_kl, 2 * other.mean_kl);  // of few tokens of a random model
  EXPECT_GT(result.mean_kl, 0.25 * other.mean_kl);
}

}  // namespace lowbit::testing
