#include "ops/encode.h"

#include "base/fail.h"
#include "ops/parallel.h"
#include "tensor/half.h"

#include <atomic>
#include <cmath>

namespace lowbit {
namespace {

void to_floats(const Tensor& tensor, int64_t first, int64_t count, float* to) {
  const auto* halves = static_cast<const uint16_t*>(tensor.bytes());
  switch (tensor.dtype()) {
    case DType::kBF16:
      for (int64_t i = 0; i < count; ++i) to[i] = bf16_to_float(halves[first + i]);
      return;
    case DType::kF16:
      for (int64_t i = 0; i < count; ++i) to[i] = f16_to_float(halves[first + i]);
      return;
    case DType::kF32:
      std::copy_n(static_cast<const float*>(tensor.bytes()) + first, count, to);
      return;
    default:
      fail(ErrorCode::kUnsupported, "a weight of type {} cannot be quantized, only BF16, F16 and F32",
           dtype_name(tensor.dtype()));
  }
}

}  // namespace

Weight encoded(const OpContext& context, const Tensor& weight, Format format, int64_t group_size) {
  const int64_t out = weight.size(0), in = weight.size(1), elements = out * in,
                groups = (elements + group_size - 1) / group_size;
  std::vector<float> scales(static_cast<size_t>(groups));
  std::vector<uint8_t> bytes(static_cast<size_t>((elements + 1) / 2));
  std::atomic<bool> is_finite = true;
  // Groups are of an even size, so no two share a byte.
  LOWBIT_ASSERT(group_size % 2 == 0);
  split_work(context, groups, chunk_for(group_size, 1 << 16), [&](int64_t begin, int64_t end, int) {
    std::vector<float> values(static_cast<size_t>(group_size));
    std::vector<uint8_t> codes(static_cast<size_t>(group_size) + 1);
    for (int64_t group = begin; group < end; ++group) {
      const int64_t first = group * group_size, count = std::min(group_size, elements - first);
      to_floats(weight, first, count, values.data());
      codes[static_cast<size_t>(count)] = static_cast<uint8_t>(nearest_code(format, 0));
      const float scale =
          encode_group(format, std::span(values.data(), static_cast<size_t>(count)), codes.data(), 1);
      if (!std::isfinite(scale)) is_finite = false;
      scales[static_cast<size_t>(group)] = scale;
      for (int64_t i = 0; i < count; i += 2) {
        bytes[static_cast<size_t>((first + i) / 2)] =
            static_cast<uint8_t>(codes[static_cast<size_t>(i)] << 4 | codes[static_cast<size_t>(i) + 1]);
      }
    }
  });
  if (!is_finite)
    fail(ErrorCode::kInvalidArgument,
         "a weight of shape {} holds values that are not finite: it cannot be quantized",
         shape_text(weight.shape()));
  const FlatCodes flat{format, group_size, out, in, bytes.data()};
  if (std::optional<QuantizedTensor> quantized = from_flat_codes(flat, scales)) return std::move(*quantized);
  return dense_of(flat, scales);
}

}  // namespace lowbit
