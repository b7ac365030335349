#include "ops/elementwise.h"

#include "format/bits.h"
#include "format/codebook.h"
#include "ops/cuda/matmul_gpu.h"
#include "ops/dense_rows.h"
#include "ops/elementwise_args.h"
#include "ops/parallel.h"
#include "tensor/half.h"

#include <cstring>
#include <optional>

namespace lowbit {
namespace {

constexpr Kernel<RmsNormArgs> kRmsNormTable[] = {
    {"avx2", Isa::kAvx2, nullptr, rms_norm_avx2},
    {"ref", Isa::kRef, nullptr, rms_norm_ref},
};
constexpr Kernel<RopeArgs> kRopeTable[] = {
    {"avx2", Isa::kAvx2, nullptr, rope_avx2},
    {"ref", Isa::kRef, nullptr, rope_ref},
};
constexpr Kernel<LayerNormArgs> kLayerNormTable[] = {
    {"avx2", Isa::kAvx2, nullptr, layer_norm_avx2},
    {"ref", Isa::kRef, nullptr, layer_norm_ref},
};
constexpr Kernel<ActivateArgs> kActivateTable[] = {
    {"avx512", Isa::kAvx512, nullptr, activate_avx512},
    {"avx2", Isa::kAvx2, nullptr, activate_avx2},
    {"ref", Isa::kRef, nullptr, activate_ref},
};

// Elementary steps below which a second thread does not pay.
constexpr int64_t kChunk = 1 << 14;

// One row of codes in the order of the columns.
void decode_row(const QuantizedTensor& table, int64_t row, uint8_t* codes, float* out) {
  const int64_t rows = table.out_features, columns = table.in_features;
  unpack_bits(table.codes.data<uint32_t>() + row, rows, columns, table.bits, codes, 1);
  const uint16_t* scales = table.scales.data<uint16_t>();
  const uint8_t* zeros = table.zero_points.empty() ? nullptr : table.zero_points.data<uint8_t>();
  const int32_t* order = table.column_order.empty() ? nullptr : table.column_order.data<int32_t>();
  for (int64_t group = 0, position = 0; position < columns; ++group) {
    const float scale = f16_to_float(scales[group * rows + row]);
    const int zero_point = zeros ? zeros[group * rows + row] : 1 << (table.bits - 1);
    const int64_t end = std::min(columns, position + table.group_size);
    for (; position < end; ++position) {
      out[order ? order[position] : position] = scale * static_cast<float>(codes[position] - zero_point);
    }
  }
}

void embed_on_gpu(const OpContext& context, const Weight& table, const TokenIds& tokens, float* out) {
  if constexpr (kHasCuda) {
    if (tokens.ids.empty()) return;
    std::optional<Scratch> copied;
    if (!tokens.on_gpu) {
      copied.emplace(context.workspace->take(tokens.ids.size_bytes()));
      context.gpu->copy_in(copied->as<void>(), tokens.ids.data(), tokens.ids.size_bytes());
    }
    gpu_embedding({.table = gpu_embedding_table(table),
                   .ids = copied ? copied->as<int32_t>() : tokens.on_gpu,
                   .count = static_cast<int64_t>(tokens.ids.size()),
                   .out = out},
                  context.gpu->stream());
  }
}

}  // namespace

void rms_norm(const OpContext& context, ConstActivations x, int64_t rows, const Tensor& weight, float epsilon,
              Activations y) {
  if (weight.dtype() != DType::kF32) {
    fail(ErrorCode::kInvalidArgument, "rms_norm: a weight of type {} cannot be used, expected F32",
         dtype_name(weight.dtype()));
  }
  const int64_t width = weight.element_count();
  if constexpr (kHasCuda) {
    if (context.gpu) {
      if (rows > 0) gpu_rms_norm({x, y, weight.data<float>(), rows, width, epsilon}, context.gpu->stream());
      return;
    }
  }
  const RmsNormArgs args{floats(x), weight.data<float>(), floats(y), width, epsilon};
  const auto& kernel = choose_kernel<RmsNormArgs>(context, "rms_norm", kRmsNormTable, args);
  run_kernel(context, kernel, args, rows, chunk_for(width, kChunk));
}

void rope(const OpContext& context, Activations x, int64_t tokens, int64_t heads, int64_t head_dim,
          const int32_t* positions, const RopeTable& table) {
  const int64_t length = table.cosines.size(0), half = table.cosines.size(1);
  if (2 * half > head_dim || table.sines.shape() != table.cosines.shape()) {
    fail(ErrorCode::kInvalidArgument, "rope: cosines {} and sines {} do not fit heads of {} elements",
         shape_text(table.cosines.shape()), shape_text(table.sines.shape()), head_dim);
  }
  if constexpr (kHasCuda) {
    if (context.gpu) {
      const GpuRopeArgs args{
          halves(x), positions, table.cosines.data<float>(), table.sines.data<float>(), tokens, heads,
          head_dim,  half};
      if (tokens > 0) gpu_rope(args, context.gpu->stream());
      return;
    }
  }
  for (int64_t token = 0; token < tokens; ++token) {
    if (positions[token] < 0 || positions[token] >= length) {
      fail(ErrorCode::kInvalidArgument, "rope: position {} of token {} is outside the table of {} positions",
           positions[token], token, length);
    }
  }
  const RopeArgs args{floats(x), positions, table.cosines.data<float>(), table.sines.data<float>(), heads,
                      head_dim,  half};
  const auto& kernel = choose_kernel<RopeArgs>(context, "rope", kRopeTable, args);
  run_kernel(context, kernel, args, tokens, chunk_for(heads * head_dim, kChunk));
}

namespace {

void activate_on_cpu(const OpContext& context, const ActivateArgs& args, int64_t count) {
  const auto& kernel = choose_kernel<ActivateArgs>(context, "activate", kActivateTable, args);
  run_kernel(context, kernel, args, count, kChunk / 2);
}

}  // namespace

void activate(const OpContext& context, Activation f, ConstActivations x, int64_t count, Activations out) {
  if constexpr (kHasCuda) {
    if (context.gpu) {
      if (count > 0) gpu_activate({f, halves(x), nullptr, halves(out), count}, context.gpu->stream());
      return;
    }
  }
  activate_on_cpu(context, {floats(x), nullptr, floats(out), f}, count);
}

void activate_gated(const OpContext& context, Activation f, ConstActivations gate, ConstActivations up,
                    int64_t count, Activations out) {
  if constexpr (kHasCuda) {
    if (context.gpu) {
      if (count <= 0) return;
      if (f == Activation::kSilu) {
        gpu_swiglu(halves(gate), halves(up), halves(out), count, context.gpu->stream());
      } else {
        gpu_activate({f, halves(gate), halves(up), halves(out), count}, context.gpu->stream());
      }
      return;
    }
  }
  activate_on_cpu(context, {floats(gate), floats(up), floats(out), f}, count);
}

void layer_norm(const OpContext& context, ConstActivations x, int64_t rows, const Tensor& weight,
                const Tensor& bias, float epsilon, Activations y) {
  const int64_t width = weight.element_count();
  if (weight.dtype() != DType::kF32 || bias.dtype() != DType::kF32 || bias.element_count() != width) {
    fail(ErrorCode::kInvalidArgument, "layer_norm: weight {} {} and bias {} {}, expected F32 of one length",
         dtype_name(weight.dtype()), shape_text(weight.shape()), dtype_name(bias.dtype()),
         shape_text(bias.shape()));
  }
  if constexpr (kHasCuda) {
    if (context.gpu) {
      if (rows <= 0) return;
      gpu_layer_norm({x, y, weight.data<float>(), bias.data<float>(), rows, width, epsilon},
                     context.gpu->stream());
      return;
    }
  }
  const LayerNormArgs args{floats(x), weight.data<float>(), bias.data<float>(), floats(y), width, epsilon};
  const auto& kernel = choose_kernel<LayerNormArgs>(context, "layer_norm", kLayerNormTable, args);
  run_kernel(context, kernel, args, rows, chunk_for(width, kChunk));
}

void split_columns(const OpContext& context, ConstActivations x, int64_t tokens, int64_t repeats,
                   std::span<const ColumnPart> parts) {
  if (parts.size() > static_cast<size_t>(GpuSplitArgs::kMost)) {
    fail(ErrorCode::kInternal, "split_columns: {} parts, at most {} are possible", parts.size(),
         GpuSplitArgs::kMost);
  }
  int64_t stride = 0;
  for (const ColumnPart& part : parts) stride += part.width;
  if constexpr (kHasCuda) {
    if (context.gpu) {
      GpuSplitArgs args{.x = halves(x), .rows = tokens * repeats, .stride = stride};
      for (const ColumnPart& part : parts) args.part[args.parts++] = {part.width, halves(part.out)};
      if (args.rows > 0) gpu_split_columns(args, context.gpu->stream());
      return;
    }
  }
  split_work(context, tokens * repeats, chunk_for(stride, kChunk), [&](int64_t begin, int64_t end, int) {
    const float* from = floats(x) + begin * stride;
    for (int64_t i = begin; i < end; ++i) {
      for (const ColumnPart& part : parts) {
        std::memcpy(floats(part.out) + i * part.width, from, static_cast<size_t>(part.width) * sizeof(float));
        from += part.width;
      }
    }
  });
}

void add(const OpContext& context, ConstActivations x, int64_t count, float* to) {
  if constexpr (kHasCuda) {
    if (context.gpu) {
      if (count > 0) gpu_add(x, count, to, context.gpu->stream());
      return;
    }
  }
  const float* from = floats(x);
  split_work(context, count, kChunk, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) to[i] += from[i];
  });
}

void scale(const OpContext& context, float factor, int64_t count, float* x) {
  if constexpr (kHasCuda) {
    if (context.gpu) {
      if (count > 0) gpu_scale(factor, count, x, context.gpu->stream());
      return;
    }
  }
  split_work(context, count, kChunk, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) x[i] *= factor;
  });
}

void convert(const OpContext& context, ConstActivations x, int64_t count, Activations y) {
  if (x.dtype == y.dtype) {
    if (x.data != y.data && count > 0)
      copy(context, y.data, x.data, static_cast<size_t>(count) * dtype_size(x.dtype));
    return;
  }
  if constexpr (kHasCuda) {
    if (context.gpu && x.dtype == DType::kF32) {
      if (count > 0) gpu_convert_to_bf16(x, count, halves(y), context.gpu->stream());
      return;
    }
  }
  fail(ErrorCode::kInternal, "convert: from {} to {} is not possible here", dtype_name(x.dtype),
       dtype_name(y.dtype));
}

void add_positions(const OpContext& context, const Tensor& table, int64_t offset, const int32_t* positions,
                   int64_t tokens, float* hidden) {
  const int64_t width = table.size(1);
  if constexpr (kHasCuda) {
    if (context.gpu) {
      const GpuAddRowsArgs args{.table = halves({table.bytes(), table.dtype()}),
                                .rows = positions,
                                .offset = offset,
                                .count = tokens,
                                .width = width,
                                .to = hidden};
      if (tokens > 0) gpu_add_rows(args, context.gpu->stream());
      return;
    }
  }
  auto position_of = [&](int64_t token) { return positions ? positions[token] : 0; };
  for (int64_t token = 0; token < tokens; ++token) {
    if (position_of(token) < 0 || position_of(token) >= table.size(0) - offset) {
      fail(ErrorCode::kInvalidArgument, "position {} of token {} is beyond the {} that the model has learned",
           position_of(token), token, table.size(0) - offset);
    }
  }
  const OpScratch rows(context, static_cast<size_t>(width * worker_count(context)) * sizeof(float));
  split_work(context, tokens, chunk_for(width, kChunk), [&](int64_t begin, int64_t end, int worker) {
    float* row = rows.as<float>() + worker * width;
    for (int64_t token = begin; token < end; ++token) {
      read_elements(table, (position_of(token) + offset) * width, width, row);
      for (int64_t i = 0; i < width; ++i) hidden[token * width + i] += row[i];
    }
  });
}

void embedding(const OpContext& context, const Weight& table, const TokenIds& tokens, float* out) {
  const std::span<const int32_t> ids = tokens.ids;
  const int64_t vocab = out_features(table), width = in_features(table);
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab) {
      fail(ErrorCode::kInvalidArgument, "embedding: token id {} at place {} is outside the vocabulary of {}",
           ids[i], i, vocab);
    }
  }
  const auto* codes_of_table = std::get_if<QuantizedTensor>(&table);
  if (codes_of_table && codes_of_table->format != Format::kAffine) {
    fail(ErrorCode::kUnsupported, "embedding: a table in {} cannot be used, only affine codes and floats",
         format_name(codes_of_table->format));
  }
  if constexpr (kHasCuda) {
    if (context.gpu) {
      embed_on_gpu(context, table, tokens, out);
      return;
    }
  }
  const OpScratch codes(context, static_cast<size_t>(width) * static_cast<size_t>(worker_count(context)));
  split_work(context, static_cast<int64_t>(ids.size()), chunk_for(width, kChunk),
             [&](int64_t begin, int64_t end, int worker) {
               for (int64_t i = begin; i < end; ++i) {
                 const int64_t row = ids[static_cast<size_t>(i)];
                 if (codes_of_table) {
                   decode_row(*codes_of_table, row, codes.as<uint8_t>() + worker * width, out + i * width);
                 } else {
                   read_elements(std::get<Tensor>(table), row * width, width, out + i * width);
                 }
               }
             });
}

GpuEmbeddingTable gpu_embedding_table(const Weight& table) {
  if constexpr (kHasCuda) {
    const GpuWeightKind kind = kind_of(table);
    return {.matrix = matrix_of({.weight = &table}),
            .bits = kind.bits,
            .group_size = kind.group_size,
            .has_table = has_codebook(kind.format),
            .table = kind.table,
            .column_order = kind.column_order,
            .width = in_features(table)};
  }
  return {};
}

std::vector<KernelListing> elementwise_kernels() {
  std::vector<KernelListing> list;
  append_listing<RmsNormArgs>(list, "rms_norm", kRmsNormTable);
  append_listing<RopeArgs>(list, "rope", kRopeTable);
  append_listing<LayerNormArgs>(list, "layer_norm", kLayerNormTable);
  append_listing<ActivateArgs>(list, "activate", kActivateTable);
  return list;
}

}  // namespace lowbit
