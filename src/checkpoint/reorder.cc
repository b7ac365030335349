#include "checkpoint/reorder.h"

#include "base/fail.h"
#include "tensor/half.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace lowbit {

Tensor reordered_codes(const Tensor& codes, int bits, const std::vector<int32_t>& from) {
  const int64_t out = codes.size(1);
  Tensor result = Tensor::zeros(DType::kI32, codes.shape());
  const uint32_t* source = codes.data<uint32_t>();
  uint32_t* target = result.mutable_data<uint32_t>();
  const uint32_t mask = (1u << bits) - 1u;
  for (size_t position = 0; position < from.size(); ++position) {
    // A 3-bit code may begin in one word and end in the next; its words lie `out` elements apart.
    const int64_t from_bit = int64_t{from[position]} * bits, to_bit = static_cast<int64_t>(position) * bits;
    const uint32_t* low = source + from_bit / 32 * out;
    uint32_t* to_low = target + to_bit / 32 * out;
    const int from_shift = static_cast<int>(from_bit % 32), to_shift = static_cast<int>(to_bit % 32);
    const bool from_straddles = from_shift + bits > 32, to_straddles = to_shift + bits > 32;
    for (int64_t row = 0; row < out; ++row) {
      uint32_t code = low[row] >> from_shift;
      if (from_straddles) code |= low[out + row] << (32 - from_shift);
      code &= mask;
      to_low[row] |= code << to_shift;
      if (to_straddles) to_low[out + row] |= code >> (32 - to_shift);
    }
  }
  return result;
}

GroupIndex apply_group_index(std::string_view name, const Tensor& g_idx, QuantizedTensor& weight) {
  const int64_t columns = weight.in_features, groups = weight.groups(), size = weight.group_size;
  std::vector<int32_t> group_of(static_cast<size_t>(columns));
  std::memcpy(group_of.data(), g_idx.bytes(), group_of.size() * sizeof(int32_t));
  if (std::ranges::all_of(group_of, [](int32_t group) { return group == -1; })) return GroupIndex::kUnfilled;
  bool is_sequential = true, is_all_zero = true;
  std::vector<int64_t> count(static_cast<size_t>(groups), 0);
  for (int64_t column = 0; column < columns; ++column) {
    const int32_t group = group_of[static_cast<size_t>(column)];
    if (group < 0 || group >= groups) {
      fail(ErrorCode::kCorruptFile, "{} says that column {} is of group {}, but there are {} groups", name,
           column, group, groups);
    }
    ++count[static_cast<size_t>(group)];
    is_sequential = is_sequential && group == column / size;
    is_all_zero = is_all_zero && group == 0;
  }
  if (is_sequential) return GroupIndex::kSequential;
  if (is_all_zero) return GroupIndex::kUnfilled;
  std::vector<int64_t> next(static_cast<size_t>(groups), 0);
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t expected = std::min(size, columns - group * size);
    if (count[static_cast<size_t>(group)] != expected) {
      fail(ErrorCode::kUnsupported,
           "{} gives group {} {} columns, expected {}: act-order with groups of unequal size cannot be read",
           name, group, count[static_cast<size_t>(group)], expected);
    }
    next[static_cast<size_t>(group)] = group * size;
  }
  std::vector<int32_t> from(static_cast<size_t>(columns));
  for (int64_t column = 0; column < columns; ++column) {
    const auto group = static_cast<size_t>(group_of[static_cast<size_t>(column)]);
    from[static_cast<size_t>(next[group]++)] = static_cast<int32_t>(column);
  }
  weight.codes = reordered_codes(weight.codes, weight.bits, from);
  weight.column_order = Tensor::allocate(DType::kI32, {columns});
  std::memcpy(weight.column_order.mutable_bytes(), from.data(), from.size() * sizeof(int32_t));
  return GroupIndex::kActOrder;
}

Tensor half_scales(std::string_view name, const Tensor& scales, bool& is_exact) {
  is_exact = true;
  if (scales.dtype() == DType::kF16) return scales;
  Tensor halves = converted(scales, DType::kF16);
  const uint16_t* half = halves.data<uint16_t>();
  for (int64_t i = 0; i < halves.element_count(); ++i) {
    const float wanted = float_at(scales, i), kept = f16_to_float(half[i]);
    if (!std::isfinite(kept) || (wanted != 0 && kept == 0)) {
      fail(ErrorCode::kUnsupported, "{} has the {} value {} at element {}, which F16 cannot hold", name,
           dtype_name(scales.dtype()), wanted, i);
    }
    is_exact = is_exact && kept == wanted;
  }
  return halves;
}

}  // namespace lowbit
