// The tensors of one module of a compressed-tensors checkpoint, as the file has them, checked against each
// other.
#pragma once

#include "checkpoint/compressed.h"

#include <string>

namespace lowbit {

class CompressedParts {
 public:
  CompressedParts(const TensorFolder& files, std::string module)
      : files_(files), module_(std::move(module)) {}

  std::string name(std::string_view ending) const { return module_ + std::string(ending); }
  const Tensor* find(std::string_view ending) const;
  const Tensor& get(std::string_view ending) const;  // kCorruptFile when it is missing

  struct Sizes {
    int64_t out = 0, in = 0;
  };
  // What weight_shape says of weight_packed. kCorruptFile: another type, or other sizes than it has.
  Sizes packed_sizes(int bits) const;
  // F32 [out, groups], finite; a single scale of the file is repeated.
  Tensor scales(int64_t out, int64_t groups) const;

 private:
  const TensorFolder& files_;
  std::string module_;
};

struct CompressedWeight {
  QuantizedTensor weight;
  bool has_rounded_scales = false;  // F16 does not hold them all
};
// Where the settings say kAffine or kFp8.
CompressedWeight read_compressed_packed(const CompressedParts& parts, const AffineOptions& affine);
QuantizedTensor read_compressed_fp8(const CompressedParts& parts);

}  // namespace lowbit
