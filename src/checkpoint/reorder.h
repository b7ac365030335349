// Moving columns of packed codes.
#pragma once

#include "format/weight.h"
#include "tensor/tensor.h"

#include <cstdint>
#include <string_view>
#include <vector>

namespace lowbit {

// codes: I32 [packed_words(columns, bits), out]. Position p of the result holds position from[p] of `codes`.
Tensor reordered_codes(const Tensor& codes, int bits, const std::vector<int32_t>& from);

// What g_idx, the group of each column, says.
enum class GroupIndex { kSequential, kUnfilled, kActOrder };
// Of a file whose columns stand in their own order: where they are of scattered groups, moves them together,
// so that weight.column_order says where they came from. weight.codes: as the file has them. Unfilled: zeros
// alone, or -1, as old writers left it without act-order; every loader reads that as sequential. Errors name
// `name`: kCorruptFile, and kUnsupported for groups of unequal size.
GroupIndex apply_group_index(std::string_view name, const Tensor& g_idx, QuantizedTensor& weight);

// Scales [any shape] as F16, and whether they are what they were. kUnsupported where F16 cannot hold one.
Tensor half_scales(std::string_view name, const Tensor& scales, bool& is_exact);

}  // namespace lowbit
