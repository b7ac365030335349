#include "quantize/column_order.h"

#include <algorithm>
#include <numeric>

namespace lowbit {
namespace {

void sort_by_fall(std::span<int32_t> items, std::span<const float> key) {
  std::stable_sort(items.begin(), items.end(), [&](int32_t a, int32_t b) {
    return key[static_cast<size_t>(a)] > key[static_cast<size_t>(b)];
  });
}

}  // namespace

ColumnOrder column_order(std::span<const float> diagonal, int64_t group_size, const GptqOptions& options) {
  const int64_t count = static_cast<int64_t>(diagonal.size());
  const int64_t group_total = (count + group_size - 1) / group_size;
  ColumnOrder order;
  order.columns.resize(diagonal.size());
  order.groups.resize(diagonal.size());
  std::iota(order.columns.begin(), order.columns.end(), 0);
  auto group_of_column = [&](int32_t column) { return static_cast<int32_t>(column / group_size); };
  if (options.desc_act) {
    sort_by_fall(order.columns, diagonal);
    if (options.static_groups || group_total == 1) {
      for (size_t step = 0; step < order.columns.size(); ++step)
        order.groups[step] = group_of_column(order.columns[step]);
      order.groups_are_runs = group_total == 1;
    } else {
      for (size_t step = 0; step < order.columns.size(); ++step)
        order.groups[step] = group_of_column(static_cast<int32_t>(step));
      order.is_scattered = true;
    }
    return order;
  }
  if (options.act_group_aware) {
    std::vector<float> largest(static_cast<size_t>(group_total), 0);
    for (int64_t column = 0; column < count; ++column) {
      float& most = largest[static_cast<size_t>(column / group_size)];
      most = std::max(most, diagonal[static_cast<size_t>(column)]);
    }
    std::vector<int32_t> groups(static_cast<size_t>(group_total));
    std::iota(groups.begin(), groups.end(), 0);
    sort_by_fall(groups, largest);
    size_t step = 0;
    for (int32_t group : groups) {
      const int64_t begin = group * group_size, end = std::min(count, begin + group_size);
      const std::span<int32_t> run(order.columns.data() + step, static_cast<size_t>(end - begin));
      std::iota(run.begin(), run.end(), static_cast<int32_t>(begin));
      sort_by_fall(run, diagonal);
      step += run.size();
    }
  }
  for (size_t step = 0; step < order.columns.size(); ++step)
    order.groups[step] = group_of_column(order.columns[step]);
  return order;
}

std::vector<int64_t> block_starts(const ColumnOrder& order, int64_t most, bool aligned) {
  const int64_t count = static_cast<int64_t>(order.columns.size());
  std::vector<int64_t> starts;
  if (!aligned || !order.groups_are_runs) {
    for (int64_t step = 0; step < count; step += most) starts.push_back(step);
    return starts;
  }
  int64_t block = 0;
  for (int64_t begin = 0; begin < count;) {
    int64_t end = begin + 1;
    while (end < count && order.groups[static_cast<size_t>(end)] == order.groups[static_cast<size_t>(begin)])
      ++end;
    if (starts.empty() || end - block > most) {
      for (int64_t step = begin; step < end; step += most) starts.push_back(block = step);
    }
    begin = end;
  }
  return starts;
}

}  // namespace lowbit
