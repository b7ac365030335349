// In which order GPTQ works through the columns of a matrix, and which group of columns each step belongs to.
#pragma once

#include "lowbit/quantize.h"

#include <cstdint>
#include <span>
#include <vector>

namespace lowbit {

// A step is a position in the order of work.
struct ColumnOrder {
  std::vector<int32_t> columns;  // step -> column
  std::vector<int32_t> groups;   // step -> group
  bool groups_are_runs = true;   // the steps of a group are consecutive
  bool is_scattered = false;  // groups were formed along the steps: stored position = step (act-order file)

  // Where the code of a step is stored: the step itself in an act-order file, else its column.
  int64_t position(int64_t step) const { return is_scattered ? step : columns[static_cast<size_t>(step)]; }
};

// diagonal: of the Hessian. Without desc_act and act_group_aware columns stand in their own order.
//   desc_act                  columns by falling diagonal, groups formed along that order (scattered)
//   desc_act + static_groups  the same order, groups of neighbouring columns; their parameters must be chosen
//   beforehand act_group_aware           groups by their largest diagonal, and the columns inside each by
//   falling diagonal
//                             (Gafni et al., arXiv 2505.14638); a row that is one group is simply sorted
// Sorting is stable.
ColumnOrder column_order(std::span<const float> diagonal, int64_t group_size, const GptqOptions& options);

// Cuts the steps into blocks of at most `most` columns. With runs a block begins where a group begins, or
// inside a group that is larger than a block: so the parameters of every group can be chosen from weights
// that are fully updated. `aligned` false: blocks of exactly `most`.
std::vector<int64_t> block_starts(const ColumnOrder& order, int64_t most, bool aligned);

}  // namespace lowbit
