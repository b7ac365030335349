// Quantizing without data: a dense matrix, rounded to the nearest codes of a format.
#pragma once

#include "format/codebook.h"
#include "ops/context.h"

#include <vector>

namespace lowbit {

// A matrix [out, in] (any floating type) in a codebook's format, in groups of the flattened matrix as
// bitsandbytes counts them; their size is even. On the CPU. kInvalidArgument when a value is not finite.
struct FlatEncoded {
  Tensor bytes;                // U8 [ceil(out * in / 2), 1], see FlatCodes
  std::vector<float> scales;   // of each group
  double error = 0, size = 0;  // sums of squares: of what rounding changed, of the matrix
};
FlatEncoded encode_flat(const OpContext& context, const Tensor& weight, Format format, int64_t group_size);
// Its scales alone.
std::vector<float> flat_scales(const OpContext& context, const Tensor& weight, int64_t group_size);

// As layers hold it; the dense matrix, as F32, where from_flat_codes has no form for it.
Weight encoded(const OpContext& context, const Tensor& weight, Format format, int64_t group_size);

}  // namespace lowbit
