#include "quantize/column_order.h"

#include <algorithm>
#include <gtest/gtest.h>

namespace lowbit {
namespace {

const std::vector<float> kDiagonal = {1, 5, 2, 2, 9, 0, 3, 5, 4, 8};

GptqOptions options(bool desc_act, bool static_groups, bool act_group_aware) {
  GptqOptions result;
  result.desc_act = desc_act;
  result.static_groups = static_groups;
  result.act_group_aware = act_group_aware;
  return result;
}

TEST(ColumnOrder, PlainIsTheOrderOfTheFile) {
  const ColumnOrder order = column_order(kDiagonal, 4, options(false, false, false));
  EXPECT_EQ(order.columns, (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
  EXPECT_EQ(order.groups, (std::vector<int32_t>{0, 0, 0, 0, 1, 1, 1, 1, 2, 2}));
  EXPECT_TRUE(order.groups_are_runs);
  EXPECT_FALSE(order.is_scattered);
}

TEST(ColumnOrder, DescActFallsAndFormsGroupsAlongTheWay) {
  const ColumnOrder order = column_order(kDiagonal, 4, options(true, false, false));
  EXPECT_EQ(order.columns, (std::vector<int32_t>{4, 9, 1, 7, 8, 6, 2, 3, 0, 5}));
  EXPECT_EQ(order.groups, (std::vector<int32_t>{0, 0, 0, 0, 1, 1, 1, 1, 2, 2}));
  EXPECT_TRUE(order.is_scattered);
  EXPECT_EQ(order.position(3), 3);
}

TEST(ColumnOrder, StaticGroupsStayWhereTheyAre) {
  const ColumnOrder order = column_order(kDiagonal, 4, options(true, true, false));
  EXPECT_EQ(order.columns, (std::vector<int32_t>{4, 9, 1, 7, 8, 6, 2, 3, 0, 5}));
  EXPECT_EQ(order.groups, (std::vector<int32_t>{1, 2, 0, 1, 2, 1, 0, 0, 0, 1}));
  EXPECT_FALSE(order.groups_are_runs);
  EXPECT_EQ(order.position(3), 7);
}

TEST(ColumnOrder, GroupAwareSortsGroupsAndInsideThem) {
  const ColumnOrder order = column_order(kDiagonal, 4, options(false, false, true));
  EXPECT_EQ(order.columns, (std::vector<int32_t>{4, 7, 6, 5, 9, 8, 1, 2, 3, 0}));
  EXPECT_EQ(order.groups, (std::vector<int32_t>{1, 1, 1, 1, 2, 2, 0, 0, 0, 0}));
  EXPECT_TRUE(order.groups_are_runs);
  EXPECT_FALSE(order.is_scattered);
}

TEST(ColumnOrder, OneGroupIsSortedWithoutActOrderFile) {
  for (bool desc_act : {true, false}) {
    const ColumnOrder order = column_order(kDiagonal, 10, options(desc_act, false, !desc_act));
    EXPECT_EQ(order.columns, (std::vector<int32_t>{4, 9, 1, 7, 8, 6, 2, 3, 0, 5}));
    EXPECT_FALSE(order.is_scattered);
  }
}

TEST(BlockStarts, CoverAllStepsAndBeginWithGroups) {
  for (int64_t width : {1, 7, 100, 128, 129, 576, 1000}) {
    for (int64_t group_size : {1, 7, 32, 96, 128, 130, 300, 1000}) {
      std::vector<float> diagonal(static_cast<size_t>(width));
      for (int64_t i = 0; i < width; ++i)
        diagonal[static_cast<size_t>(i)] = static_cast<float>((i * 37) % 101);
      const ColumnOrder order = column_order(diagonal, group_size, options(false, false, true));
      std::vector<int64_t> starts = block_starts(order, 128, true);
      ASSERT_EQ(starts.front(), 0);
      starts.push_back(width);
      for (size_t i = 0; i + 1 < starts.size(); ++i) {
        ASSERT_GT(starts[i + 1], starts[i]);
        ASSERT_LE(starts[i + 1] - starts[i], 128);
      }
      // A group that fits a block is not cut.
      for (size_t i = 1; i + 1 < starts.size(); ++i) {
        const int32_t group = order.groups[static_cast<size_t>(starts[i])];
        if (group == order.groups[static_cast<size_t>(starts[i] - 1)]) {
          ASSERT_GT(std::count(order.groups.begin(), order.groups.end(), group), 128)
              << width << " " << group_size;
        }
      }
    }
  }
  EXPECT_EQ(
      block_starts(column_order(std::vector<float>(300, 1), 96, options(false, false, false)), 128, false),
      (std::vector<int64_t>{0, 128, 256}));
}

}  // namespace
}  // namespace lowbit
