// Quantizing without data: a dense matrix, rounded to the nearest codes of a format.
#pragma once

#include "format/codebook.h"
#include "ops/context.h"

namespace lowbit {

// The matrix [out, in] (any floating type) in a codebook's format, in groups of the flattened matrix as
// bitsandbytes counts them; the dense matrix, as F32, where from_flat_codes has no form for it. On the CPU.
// kInvalidArgument when a value is not finite.
Weight encoded(const OpContext& context, const Tensor& weight, Format format, int64_t group_size);

}  // namespace lowbit
