// Elements of a dense weight as floats.
#pragma once

#include "tensor/tensor.h"

#include <cstdint>

namespace lowbit {

// [first, first + count) of the flattened tensor, in this machine's memory. kUnsupported: another type than
// F64, F32, F16 or BF16.
void read_elements(const Tensor& weight, int64_t first, int64_t count, float* to);

}  // namespace lowbit
