// Quantizing without data: a dense matrix, rounded to the nearest codes of a format.
#pragma once

#include "format/codebook.h"
#include "ops/context.h"

#include <vector>

namespace lowbit {

// A matrix [out, in] (any floating type) in a codebook's format, in groups of the flattened matrix as
// bitsandbytes counts them; their size is even. On the CPU. kInvalidArgument when a value is not finite.
struct FlatEncoded {
  Tensor bytes;               // U8 [ceil(out * in / 2), 1], see FlatCodes
  std::vector<float> scales;  // of each group
};
FlatEncoded encode_flat(const OpContext& context, const Tensor& weight, Format format, int64_t group_size);
// |dW| / |W| (Frobenius) of what rounding changed; 0 of zeros. The same for any number of threads.
double rounding_error(const OpContext& context, const Tensor& weight, const FlatCodes& codes,
                      std::span<const float> scales);
// Its scales alone.
std::vector<float> flat_scales(const OpContext& context, const Tensor& weight, int64_t group_size);

// As layers hold it; the dense matrix, as F32, where from_flat_codes has no form for it.
Weight encoded(const OpContext& context, const Tensor& weight, Format format, int64_t group_size);

}  // namespace lowbit
