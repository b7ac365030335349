// Moving columns of packed codes.
#pragma once

#include "tensor/tensor.h"

#include <cstdint>
#include <vector>

namespace lowbit {

// codes: I32 [packed_words(columns, bits), out]. Position p of the result holds position from[p] of `codes`.
Tensor reordered_codes(const Tensor& codes, int bits, const std::vector<int32_t>& from);

}  // namespace lowbit
