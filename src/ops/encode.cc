#include "ops/encode.h"

#include "base/fail.h"
#include "format/nested_scales.h"
#include "ops/dense_rows.h"
#include "ops/encode_args.h"
#include "ops/parallel.h"
#include "tensor/half.h"

#include <atomic>
#include <cmath>
#include <numeric>

namespace lowbit {
namespace {

void require_finite(bool is_finite, const Tensor& weight) {
  if (is_finite) return;
  fail(ErrorCode::kInvalidArgument,
       "a weight of shape {} holds values that are not finite (or, for int8, beyond F16): it cannot be "
       "quantized",
       shape_text(weight.shape()));
}

void require_finite(std::span<const float> scales, const Tensor& weight) {
  require_finite(std::all_of(scales.begin(), scales.end(), [](float scale) { return std::isfinite(scale); }),
                 weight);
}

template <class Args>
bool is_not_f64(const Args& args) {
  return args.values.type != Elements::kF64;
}

constexpr Kernel<EncodeGroupsArgs> kGroups[] = {
    {"avx512", Isa::kAvx512, is_not_f64, encode_groups_avx512},
    {"avx2", Isa::kAvx2, is_not_f64, encode_groups_avx2},
    {"ref", Isa::kRef, nullptr, encode_groups_ref},
};
constexpr Kernel<EncodeRowsArgs> kRows[] = {
    {"avx512", Isa::kAvx512, is_not_f64, encode_rows_avx512},
    {"avx2", Isa::kAvx2, is_not_f64, encode_rows_avx2},
    {"ref", Isa::kRef, nullptr, encode_rows_ref},
};

Elements elements_of(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return Elements::kBF16;
    case DType::kF16:
      return Elements::kF16;
    case DType::kF32:
      return Elements::kF32;
    case DType::kF64:
      return Elements::kF64;
    default:
      fail(ErrorCode::kUnsupported, "a weight of type {} cannot be quantized, expected BF16, F16, F32 or F64",
           dtype_name(dtype));
  }
}
DenseValues values_of(const Tensor& weight) {
  return {&weight, weight.bytes(), elements_of(weight.dtype()), weight.element_count()};
}

template <DType kScales>
void set_grid(float largest, float* scale, float* factor) {
  const Int8Grid grid = int8_grid(largest, kScales);
  *scale = grid.scale;
  *factor = grid.factor;
}
auto grid_setter(DType scale_dtype) {
  return scale_dtype == DType::kF32   ? set_grid<DType::kF32>
         : scale_dtype == DType::kF16 ? set_grid<DType::kF16>
                                      : set_grid<DType::kBF16>;
}

// body(group, values) for all groups of the flattened matrix.
template <class Body>
void for_each_group(const OpContext& context, const Tensor& weight, int64_t group_size, const Body& body) {
  const int64_t elements = weight.element_count(), groups = (elements + group_size - 1) / group_size;
  split_work(context, groups, chunk_for(group_size, 1 << 16), [&](int64_t begin, int64_t end, int) {
    std::vector<float> values(static_cast<size_t>(group_size));
    for (int64_t group = begin; group < end; ++group) {
      const int64_t first = group * group_size, count = std::min(group_size, elements - first);
      read_elements(weight, first, count, values.data());
      body(group, std::span<const float>(values.data(), static_cast<size_t>(count)));
    }
  });
}

// |dW| / |W|, decode(group, i) being what value i of a group became.
template <class Decode>
double relative_change(const OpContext& context, const Tensor& weight, int64_t group_size,
                       const Decode& decode) {
  const auto groups = static_cast<size_t>((weight.element_count() + group_size - 1) / group_size);
  std::vector<double> errors(groups), sizes(groups);
  for_each_group(context, weight, group_size, [&](int64_t group, std::span<const float> values) {
    const auto at = static_cast<size_t>(group);
    int64_t i = 0;
    for (const double value : values) {
      const double change = value - decode(group, i++);
      errors[at] += change * change;
      sizes[at] += value * value;
    }
  });
  const double error = std::accumulate(errors.begin(), errors.end(), 0.0),
               size = std::accumulate(sizes.begin(), sizes.end(), 0.0);
  return size > 0 ? std::sqrt(error / size) : 0;
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
  const EncodeGroupsArgs args = {values_of(weight), group_size, &levels_of(format),
                                 result.bytes.mutable_data<uint8_t>(), result.scales.data()};
  const auto& kernel = choose_kernel<EncodeGroupsArgs>(context, "encode_codebook", kGroups, args);
  run_kernel(context, kernel, args, groups, chunk_for(group_size, 1 << 16),
             static_cast<size_t>(encode_scratch_bytes(group_size)));
  require_finite(result.scales, weight);
  return result;
}

double rounding_error(const OpContext& context, const Tensor& weight, const FlatCodes& codes,
                      std::span<const float> scales) {
  const Codebook codebook = codebook_of(codes.format);
  return relative_change(context, weight, codes.group_size, [&](int64_t group, int64_t i) {
    return decode_code(codebook, code_at(codes, group * codes.group_size + i),
                       scales[static_cast<size_t>(group)]);
  });
}

std::vector<float> int8_row_sizes(const OpContext& context, const Tensor& weight) {
  std::vector<float> sizes = flat_scales(context, weight, weight.size(1));
  bool is_finite = true;
  for (float& size : sizes) {
    size = f16_to_float(float_to_f16(size));
    is_finite = is_finite && std::isfinite(size);
  }
  require_finite(is_finite, weight);
  return sizes;
}

Int8Rows encode_int8_rows(const OpContext& context, const Tensor& weight, DType scale_dtype) {
  const int64_t in = weight.size(1);
  Int8Rows rows{Tensor::allocate(DType::kI8, weight.shape()),
                std::vector<float>(static_cast<size_t>(weight.size(0)))};
  const EncodeRowsArgs args = {values_of(weight), in, grid_setter(scale_dtype),
                               rows.codes.mutable_data<int8_t>(), rows.scales.data()};
  const auto& kernel = choose_kernel<EncodeRowsArgs>(context, "encode_int8", kRows, args);
  run_kernel(context, kernel, args, weight.size(0), chunk_for(in, 1 << 16),
             static_cast<size_t>(encode_scratch_bytes(in)));
  require_finite(rows.scales, weight);
  return rows;
}

double rounding_error(const OpContext& context, const Tensor& weight, const Int8Rows& rows) {
  const int64_t in = weight.size(1);
  const auto* codes = static_cast<const int8_t*>(rows.codes.bytes());
  return relative_change(context, weight, in, [&](int64_t row, int64_t i) {
    return rows.scales[static_cast<size_t>(row)] * static_cast<float>(codes[row * in + i]);
  });
}

namespace {

// encode(part, first, room, scratch) for parts of a matrix, rows `first` and following, whose codes have
// room_bytes in each row: they stay in a cache until they lie where layers want them.
template <class Encode>
void encode_parts(const OpContext& context, const Tensor& weight, int64_t room_bytes, int64_t scratch_bytes,
                  const Encode& encode) {
  constexpr int64_t kRows = 64;
  const int64_t room = (kRows * room_bytes + 63) / 64 * 64, stride = room + (scratch_bytes + 63) / 64 * 64;
  const OpScratch scratch(context, static_cast<size_t>(stride) * static_cast<size_t>(worker_count(context)));
  split_work(context, weight.size(0), kRows, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t first = begin; first < end; first += kRows) {
      uint8_t* const at = scratch.as<uint8_t>() + stride * worker;
      encode(weight.rows(first, std::min(kRows, end - first)), first, at, at + room);
    }
  });
}

QuantizedTensor encoded_int8(const OpContext& context, const Tensor& weight) {
  const int64_t in = weight.size(1);
  QuantizedTensor result = room_for_int8_rows(weight.size(0), in);
  std::vector<float> scales(static_cast<size_t>(weight.size(0)));
  const EncodeRowsArgs all = {values_of(weight), in, grid_setter(DType::kF32), nullptr, scales.data()};
  const auto& kernel = choose_kernel<EncodeRowsArgs>(context, "encode_int8", kRows, all);
  encode_parts(context, weight, in, encode_scratch_bytes(in),
               [&](const Tensor& part, int64_t first, uint8_t* room, uint8_t* scratch) {
                 EncodeRowsArgs args = all;
                 args.values = values_of(part);
                 args.codes = reinterpret_cast<int8_t*>(room);
                 args.scales += first;
                 kernel.run(args, 0, part.size(0), scratch);
                 place_int8_rows(args.codes, first, part.size(0), result);
               });
  require_finite(scales, weight);
  place_int8_scales(scales, result);
  return result;
}

// Of rows that are whole groups; result: room_for_flat_codes.
Weight encoded_groups(const OpContext& context, const Tensor& weight, const Rounding& rounding,
                      QuantizedTensor result) {
  const int64_t in = weight.size(1), row_groups = in / rounding.group_size;
  std::vector<float> scales(static_cast<size_t>(weight.size(0) * row_groups));
  const EncodeGroupsArgs all = {values_of(weight), rounding.group_size, &levels_of(rounding.format), nullptr,
                                scales.data()};
  const auto& kernel = choose_kernel<EncodeGroupsArgs>(context, "encode_codebook", kGroups, all);
  encode_parts(context, weight, in / 2, encode_scratch_bytes(rounding.group_size),
               [&](const Tensor& part, int64_t first, uint8_t* room, uint8_t* scratch) {
                 EncodeGroupsArgs args = all;
                 args.values = values_of(part);
                 args.bytes = room;
                 args.scales += first * row_groups;
                 kernel.run(args, 0, part.size(0) * row_groups, scratch);
                 place_flat_codes(room, first, part.size(0), result);
               });
  require_finite(scales, weight);
  if (rounding.use_double_quant) scales = unnested(nested(scales, mean_of(scales)));
  place_flat_scales(scales, rounding.group_size, result);
  return result;
}

}  // namespace

Weight encoded(const OpContext& context, const Tensor& weight, const Rounding& rounding) {
  if (rounding.format == Format::kInt8) return encoded_int8(context, weight);
  FlatCodes codes{rounding.format, rounding.group_size, weight.size(0), weight.size(1)};
  if (weight.size(1) % rounding.group_size == 0) {
    if (std::optional<QuantizedTensor> room = room_for_flat_codes(codes))
      return encoded_groups(context, weight, rounding, std::move(*room));
  }
  FlatEncoded flat = encode_flat(context, weight, rounding.format, rounding.group_size);
  if (rounding.use_double_quant) flat.scales = unnested(nested(flat.scales, mean_of(flat.scales)));
  codes.bytes = flat.bytes.data<uint8_t>();
  if (std::optional<QuantizedTensor> quantized = from_flat_codes(codes, flat.scales))
    return std::move(*quantized);
  return dense_of(codes, flat.scales);
}

std::vector<KernelListing> encode_kernels() {
  std::vector<KernelListing> list;
  append_listing<EncodeGroupsArgs>(list, "encode_codebook", kGroups);
  append_listing<EncodeRowsArgs>(list, "encode_int8", kRows);
  return list;
}

}  // namespace lowbit
