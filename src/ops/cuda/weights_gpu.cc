#include "ops/cuda/weights_gpu.h"

#include "base/fail.h"
#include "format/codebook.h"
#include "ops/cuda/elementwise_gpu.h"
#include "ops/cuda/fragments.h"
#include "ops/cuda/fragments_gpu.h"
#include "ops/cuda/matmul_gpu.h"

#include <algorithm>
#include <optional>
#include <span>

namespace lowbit {
namespace {

// Of a dense matrix that is converted on its way: so much at a time.
constexpr size_t kConvertBytes = size_t{16} << 20;

// Vectors (norms, biases) are small and stay exact; matrices are BF16.
DType dtype_there(const Tensor& tensor) {
  if (!is_floating(tensor.dtype())) return tensor.dtype();
  return tensor.shape().size() < 2 ? DType::kF32 : DType::kBF16;
}

Tensor layout(const Tensor& tensor, TakeTensor take) { return take(dtype_there(tensor), tensor.shape()); }

QuantizedTensor layout(const QuantizedTensor& weight, TakeTensor take) {
  const int bits = fragment_bits(weight.bits);
  const int64_t out = weight.out_features, in = weight.in_features;
  QuantizedTensor there = weight;
  there.group_size = kept_group_size(in, weight.group_size, has_codebook(weight.format));
  const Shape groups = {tile_count(out), kept_groups(in, there.group_size), kTileOutputs};
  there.codes = take(DType::kI32, {tile_count(out), piece_count(in, bits), kPieceBytes / 4});
  there.scales = take(DType::kF16, groups);
  if (!weight.zero_points.empty()) there.zero_points = take(DType::kU16, groups);
  if (!weight.column_order.empty()) there.column_order = layout(weight.column_order, take);
  if (!weight.input_offsets.empty()) there.input_offsets = layout(weight.input_offsets, take);
  return there;
}

void fill(const OpContext& context, const Tensor& tensor, Tensor& there, CopyIn copy) {
  if (there.dtype() == tensor.dtype() || there.dtype() == DType::kF32) {
    const Tensor same = there.dtype() == tensor.dtype() ? tensor : converted(tensor, there.dtype());
    copy(there.mutable_bytes(), same.bytes(), same.byte_count());
    return;
  }
  const size_t bytes = tensor.byte_count(), size = dtype_size(tensor.dtype());
  const Scratch given = context.workspace->take(fill_scratch_bytes(tensor));
  for (size_t at = 0; at < bytes; at += kConvertBytes) {
    const size_t count = std::min(kConvertBytes, bytes - at);
    copy(given.as<void>(), static_cast<const char*>(tensor.bytes()) + at, count);
    gpu_convert_to_bf16({given.as<void>(), tensor.dtype()}, static_cast<int64_t>(count / size),
                        there.mutable_data<uint16_t>() + at / size, context.gpu->stream());
  }
}

// F32, which become F16.
void check_range(const Tensor& scales, float factor) {
  const float most_there = 65504 / factor;
  const std::span<const float> values(scales.data<float>(), static_cast<size_t>(scales.element_count()));
  if (const float most = std::ranges::max(values); most > most_there)
    fail(ErrorCode::kUnsupported,
         "a weight has a scale of {}, and on a GPU scales are F16, here at most {}: use --device cpu", most,
         most_there);
}

void fill(const OpContext& context, const QuantizedTensor& weight, QuantizedTensor& there, CopyIn copy) {
  auto copied = [&](const Tensor& tensor) {
    Scratch scratch = context.workspace->take(std::max<size_t>(1, tensor.byte_count()));
    copy(scratch.as<void>(), tensor.bytes(), tensor.byte_count());
    return scratch;
  };
  const float factor = kept_scale_factor(weight.format);
  if (scale_dtype(weight.format) == DType::kF32) check_range(weight.scales, factor);
  const Scratch words = copied(weight.codes), scales = copied(weight.scales);
  std::optional<Scratch> zero_points;
  if (!weight.zero_points.empty()) zero_points.emplace(copied(weight.zero_points));
  if (!weight.column_order.empty()) fill(context, weight.column_order, there.column_order, copy);
  if (!weight.input_offsets.empty()) fill(context, weight.input_offsets, there.input_offsets, copy);
  gpu_pack_fragments(
      {.out = weight.out_features,
       .in = weight.in_features,
       .group_size = weight.group_size,
       .kept_group_size = there.group_size,
       .bits = weight.bits,
       .has_table = has_codebook(weight.format),
       .has_wide_scales = scale_dtype(weight.format) == DType::kF32,
       .scale_factor = factor,
       .words = words.as<void>(),
       .scales = scales.as<void>(),
       .zero_points = zero_points ? zero_points->as<void>() : nullptr,
       .fragments = there.codes.mutable_bytes(),
       .fragment_scales = there.scales.mutable_bytes(),
       .fragment_zero_points = there.zero_points.empty() ? nullptr : there.zero_points.mutable_bytes()},
      context.gpu->stream());
}

void encode(const OpContext& context, const Tensor& tensor, QuantizedTensor& there, CopyIn copy,
            const GpuEncoding& encoding) {
  const Scratch given = context.workspace->take(tensor.byte_count());
  copy(given.as<void>(), tensor.bytes(), tensor.byte_count());
  gpu_encode_fragments({.out = there.out_features,
                        .in = there.in_features,
                        .levels = there.format == Format::kInt8 ? nullptr : &levels_of(there.format),
                        .from = {given.as<void>(), tensor.dtype()},
                        .fragments = there.codes.mutable_bytes(),
                        .fragment_scales = there.scales.mutable_bytes(),
                        .failed = const_cast<unsigned*>(encoding.failed.data<uint32_t>()),
                        .index = static_cast<unsigned>(encoding.indices.at(tensor.bytes()))},
                       context.gpu->stream());
}

}  // namespace

void check_encoding(const OpContext& context, const GpuEncoding& encoding) {
  uint32_t failed = 0;
  context.gpu->copy_out(&failed, encoding.failed.bytes(), sizeof failed);
  if (failed < encoding.modules.size())
    fail(ErrorCode::kInvalidArgument,
         "{}: a value is not finite, or beyond 65504: it cannot be rounded to {}", encoding.modules[failed],
         format_name(encoding.format));
}

Weight gpu_layout(const Weight& weight, TakeTensor take, const GpuEncoding* encoding) {
  if (becomes_codes(encoding, weight)) {
    const bool is_int8 = encoding->format == Format::kInt8;
    return layout(
        QuantizedTensor{
            .format = encoding->format,
            .bits = is_int8 ? 8 : 4,
            .group_size = is_int8 ? in_features(weight) : kTableGroup,
            .out_features = out_features(weight),
            .in_features = in_features(weight),
            .activations = is_int8 ? ActivationFormat::kInt8Dynamic : ActivationFormat::kNone,
            .outlier_threshold = encoding->outlier_threshold,
        },
        take);
  }
  return std::visit([&](const auto& kind) -> Weight { return layout(kind, take); }, weight);
}

void fill_gpu_weight(const OpContext& context, const Weight& weight, Weight& there, CopyIn copy,
                     const GpuEncoding* encoding) {
  if (becomes_codes(encoding, weight))
    return encode(context, std::get<Tensor>(weight), std::get<QuantizedTensor>(there), copy, *encoding);
  std::visit([&]<class Kind>(const Kind& kind) { fill(context, kind, std::get<Kind>(there), copy); }, weight);
}

size_t fill_scratch_bytes(const Weight& weight, const GpuEncoding* encoding) {
  const Tensor* dense = std::get_if<Tensor>(&weight);
  if (!dense || becomes_codes(encoding, weight)) return weight_bytes(weight);
  const bool is_converted = dtype_there(*dense) == DType::kBF16 && dense->dtype() != DType::kBF16;
  return is_converted ? std::min(kConvertBytes, dense->byte_count()) : 0;
}

namespace {

Weight moved(const OpContext& context, const Weight& weight, CopyIn copy) {
  Weight there = gpu_layout(weight, [&](DType dtype, Shape shape) {
    return Tensor::allocate_on(context.gpu, dtype, std::move(shape));
  });
  fill_gpu_weight(context, weight, there, copy);
  return there;
}

}  // namespace

Weight to_gpu(const OpContext& context, const Weight& weight) {
  return moved(context, weight,
               [&](void* to, const void* from, size_t bytes) { context.gpu->copy_in(to, from, bytes); });
}

Weight WeightMover::operator()(const Weight& weight) {
  return moved(context_, weight,
               [&](void* to, const void* from, size_t bytes) { copies_.copy_in(to, from, bytes); });
}

}  // namespace lowbit
