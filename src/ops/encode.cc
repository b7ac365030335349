#include "ops/encode.h"

#include "base/fail.h"
#include "ops/parallel.h"
#include "tensor/half.h"

#include <atomic>
#include <cmath>
#include <numeric>

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

void require_finite(bool is_finite, const Tensor& weight) {
  if (is_finite) return;
  fail(ErrorCode::kInvalidArgument,
       "a weight of shape {} holds values that are not finite: it cannot be quantized",
       shape_text(weight.shape()));
}

// body(group, values) for all groups of the flattened matrix.
template <class Body>
void for_each_group(const OpContext& context, const Tensor& weight, int64_t group_size, const Body& body) {
  const int64_t elements = weight.element_count(), groups = (elements + group_size - 1) / group_size;
  split_work(context, groups, chunk_for(group_size, 1 << 16), [&](int64_t begin, int64_t end, int) {
    std::vector<float> values(static_cast<size_t>(group_size));
    for (int64_t group = begin; group < end; ++group) {
      const int64_t first = group * group_size, count = std::min(group_size, elements - first);
      to_floats(weight, first, count, values.data());
      body(group, std::span<const float>(values.data(), static_cast<size_t>(count)));
    }
  });
}

}  // namespace

std::vector<float> flat_scales(const OpContext& context, const Tensor& weight, int64_t group_size) {
  std::vector<float> scales(static_cast<size_t>((weight.element_count() + group_size - 1) / group_size));
  std::atomic<bool> is_finite = true;
  for_each_group(context, weight, group_size, [&](int64_t group, std::span<const float> values) {
    float scale = 0;
    for (const float value : values) {
      scale = std::max(scale, std::abs(value));
      if (!std::isfinite(value)) is_finite = false;
    }
    scales[static_cast<size_t>(group)] = scale;
  });
  require_finite(is_finite, weight);
  return scales;
}

FlatEncoded encode_flat(const OpContext& context, const Tensor& weight, Format format, int64_t group_size) {
  LOWBIT_ASSERT(group_size % 2 == 0);  // no two groups share a byte
  const int64_t elements = weight.element_count(), groups = (elements + group_size - 1) / group_size;
  FlatEncoded result{Tensor::allocate(DType::kU8, {(elements + 1) / 2, 1}),
                     std::vector<float>(static_cast<size_t>(groups))};
  uint8_t* const bytes = result.bytes.mutable_data<uint8_t>();
  const Levels& levels = levels_of(format);
  std::atomic<bool> is_finite = true;
  for_each_group(context, weight, group_size, [&](int64_t group, std::span<const float> values) {
    const size_t at = static_cast<size_t>(group), count = values.size();
    std::vector<uint8_t> codes(count + 1, levels.code_of_zero);
    const float scale = encode_group(levels, values, codes.data(), 1);
    if (!std::isfinite(scale)) is_finite = false;
    result.scales[at] = scale;
    uint8_t* const to = bytes + group * group_size / 2;
    for (size_t i = 0; i < count; i += 2) to[i / 2] = static_cast<uint8_t>(codes[i] << 4 | codes[i + 1]);
  });
  require_finite(is_finite, weight);
  return result;
}

double rounding_error(const OpContext& context, const Tensor& weight, const FlatCodes& codes,
                      std::span<const float> scales) {
  const Codebook codebook = codebook_of(codes.format);
  std::vector<double> errors(scales.size()), sizes(scales.size());
  for_each_group(context, weight, codes.group_size, [&](int64_t group, std::span<const float> values) {
    const size_t at = static_cast<size_t>(group);
    int64_t i = group * codes.group_size;
    for (const double value : values) {
      const double change = value - decode_code(codebook, code_at(codes, i++), scales[at]);
      errors[at] += change * change;
      sizes[at] += value * value;
    }
  });
  const double error = std::accumulate(errors.begin(), errors.end(), 0.0),
               size = std::accumulate(sizes.begin(), sizes.end(), 0.0);
  return size > 0 ? std::sqrt(error / size) : 0;
}

Weight encoded(const OpContext& context, const Tensor& weight, Format format, int64_t group_size) {
  const FlatEncoded flat = encode_flat(context, weight, format, group_size);
  const FlatCodes codes{format, group_size, weight.size(0), weight.size(1), flat.bytes.data<uint8_t>()};
  if (std::optional<QuantizedTensor> quantized = from_flat_codes(codes, flat.scales))
    return std::move(*quantized);
  return dense_of(codes, flat.scales);
}

}  // namespace lowbit
