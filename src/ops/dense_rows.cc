#include "ops/dense_rows.h"

#include "base/fail.h"
#include "tensor/half.h"

#include <algorithm>

namespace lowbit {

void read_elements(const Tensor& weight, int64_t first, int64_t count, float* to) {
  const auto convert = [&](const auto* from, const auto& as_float) {
    std::transform(from + first, from + first + count, to, as_float);
  };
  switch (weight.dtype()) {
    case DType::kBF16:
      return convert(weight.data<uint16_t>(), [](uint16_t bits) { return bf16_to_float(bits); });
    case DType::kF16:
      return convert(weight.data<uint16_t>(), [](uint16_t bits) { return f16_to_float(bits); });
    case DType::kF32:
      return convert(weight.data<float>(), [](float value) { return value; });
    case DType::kF64:
      return convert(weight.data<double>(), [](double value) { return static_cast<float>(value); });
    default:
      fail(ErrorCode::kUnsupported, "a weight of type {} cannot be used here, expected BF16, F16, F32 or F64",
           dtype_name(weight.dtype()));
  }
}

}  // namespace lowbit
