// Quantizing without data: a dense matrix, rounded to the nearest codes of a format.
#pragma once

#include "format/codebook.h"
#include "format/int8.h"
#include "ops/context.h"
#include "ops/kernel_table.h"

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

// The same in rows of int8 (format/int8.h). Values are rounded to F16 first, as bitsandbytes does; one that
// F16 cannot hold counts as not finite. scale_dtype: in which a file keeps scales.
struct Int8Rows {
  Tensor codes;               // I8 [out, in]
  std::vector<float> scales;  // value = scale * code
};
Int8Rows encode_int8_rows(const OpContext& context, const Tensor& weight, DType scale_dtype = DType::kF32);
// The largest magnitude of each row, rounded so: what its scale follows from.
std::vector<float> int8_row_sizes(const OpContext& context, const Tensor& weight);
double rounding_error(const OpContext& context, const Tensor& weight, const Int8Rows& rows);

struct Rounding {
  Format format = Format::kNf4;
  int64_t group_size = 64;  // kInt8 has none
  // Scales become what they would be in a file that encodes them (format/nested_scales.h); codes are chosen
  // before.
  bool use_double_quant = false;
};
// As layers hold it; the dense matrix, as F32, where from_flat_codes has no form for it.
Weight encoded(const OpContext& context, const Tensor& weight, const Rounding& rounding);

std::vector<KernelListing> encode_kernels();

}  // namespace lowbit
