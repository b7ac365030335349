#include "format/codebook.h"
#include "format/int8.h"
#include "ops/dense_rows.h"
#include "ops/encode_args.h"
#include "tensor/half.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace lowbit {

void encode_groups_ref(const EncodeGroupsArgs& args, int64_t begin, int64_t end, void* scratch) noexcept {
  float* const values = static_cast<float*>(scratch);
  auto* const codes = reinterpret_cast<uint8_t*>(values + args.group_size);
  for (int64_t group = begin; group < end; ++group) {
    const int64_t first = group * args.group_size,
                  count = std::min(args.group_size, args.values.count - first);
    read_elements(*args.values.tensor, first, count, values);
    codes[count] = args.levels->code_of_zero;
    args.scales[group] = encode_group(*args.levels, {values, static_cast<size_t>(count)}, codes, 1);
    for (int64_t i = 0; i < count; i += 2)
      args.bytes[(first + i) / 2] = static_cast<uint8_t>(codes[i] << 4 | codes[i + 1]);
  }
}

void encode_rows_ref(const EncodeRowsArgs& args, int64_t begin, int64_t end, void* scratch) noexcept {
  float* const values = static_cast<float*>(scratch);
  const std::span<const float> row_values(values, static_cast<size_t>(args.columns));
  for (int64_t row = begin; row < end; ++row) {
    read_elements(*args.values.tensor, row * args.columns, args.columns, values);
    for (int64_t i = 0; i < args.columns; ++i) values[i] = f16_to_float(float_to_f16(values[i]));
    const float largest = largest_magnitude(row_values);
    args.scales[row] = std::numeric_limits<float>::quiet_NaN();
    if (!std::isfinite(largest)) continue;
    float factor;
    args.set_grid(largest, &args.scales[row], &factor);
    encode_int8(row_values, factor, args.codes + row * args.columns);
  }
}

}  // namespace lowbit
