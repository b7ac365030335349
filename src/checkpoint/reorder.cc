#include "checkpoint/reorder.h"

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

}  // namespace lowbit
