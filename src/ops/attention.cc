#include "ops/attention.h"

#include "ops/cuda/attention_gpu.h"
#include "ops/parallel.h"
#include "tensor/half.h"

#include <cstring>

namespace lowbit {
namespace {

bool fits_tiles(const AttentionArgs& args) { return args.prefill && args.head_dim % 32 == 0; }

constexpr Kernel<AttentionArgs> kTable[] = {
    {"amx_bf16", Isa::kAmxBf16, fits_tiles, attention_amx_bf16},
    {"avx512", Isa::kAvx512, nullptr, attention_avx512},
    {"avx2", Isa::kAvx2, nullptr, attention_avx2},
    {"ref", Isa::kRef, nullptr, attention_ref},
};

void check(const AttentionShape& shape, std::span<const AttentionSequence> sequences) {
  if (shape.kv_heads <= 0 || shape.head_dim <= 0 || shape.heads <= 0 || shape.heads % shape.kv_heads != 0) {
    fail(ErrorCode::kInvalidArgument, "attention: {} heads of {} elements over {} KV heads are not possible",
         shape.heads, shape.head_dim, shape.kv_heads);
  }
  if (shape.cache_dtype != DType::kF32 && shape.cache_dtype != DType::kBF16) {
    fail(ErrorCode::kInvalidArgument, "attention: the cache is {}, expected F32 or BF16",
         dtype_name(shape.cache_dtype));
  }
  if (!shape.is_causal && (shape.window > 0 || shape.slopes)) {
    fail(ErrorCode::kInvalidArgument,
         "attention: a window and slopes are for causal attention; here tokens see all of their sequence");
  }
  for (const AttentionSequence& sequence : sequences) {
    if (sequence.count < 0 || sequence.position < 0 ||
        sequence.position > sequence.capacity - sequence.count) {
      fail(ErrorCode::kInvalidArgument, "attention: {} tokens from position {} do not fit into a cache of {}",
           sequence.count, sequence.position, sequence.capacity);
    }
  }
}

// Multiplications below which another thread does not pay.
constexpr int64_t kSmall = 1 << 15;

void store_row(const float* from, int64_t count, DType dtype, void* cache, int64_t offset) {
  if (dtype == DType::kF32) {
    std::memcpy(static_cast<float*>(cache) + offset, from, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  uint16_t* to = static_cast<uint16_t*>(cache) + offset;
  for (int64_t i = 0; i < count; ++i) to[i] = float_to_bf16(from[i]);
}

// The rows of one KV head in blocks, and the chunks of keys that a block sees.
template <class Visit>
void for_each_block(const AttentionShape& shape, std::span<const AttentionSequence> sequences, Visit visit) {
  const int64_t group = shape.heads / shape.kv_heads;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const AttentionSequence& sequence = sequences[s];
    const int64_t rows = sequence.count * group;
    for (int64_t first = 0; first < rows; first += kAttentionRows) {
      AttentionItem item;
      item.sequence = static_cast<int64_t>(s);
      item.first_row = first;
      item.rows = std::min(kAttentionRows, rows - first);
      const int64_t last_key =
          sequence.position + (shape.is_causal ? (first + item.rows - 1) / group : sequence.count - 1);
      const int64_t first_token = sequence.position + first / group;
      const int64_t first_key = shape.window > 0 ? std::max<int64_t>(0, first_token - shape.window + 1) : 0;
      item.first_chunk = first_key / kAttentionChunk;
      item.chunks = last_key / kAttentionChunk - item.first_chunk + 1;
      for (item.kv_head = 0; item.kv_head < shape.kv_heads; ++item.kv_head) visit(item);
    }
  }
}

void check_for_gpu(const AttentionShape& shape, const AttentionBatch& batch) {
  if (shape.cache_dtype != DType::kBF16) {
    fail(ErrorCode::kUnsupported,
         "attention on a GPU: the cache is {}, only BF16 is possible; set kv_cache_dtype to "
         "bfloat16",
         dtype_name(shape.cache_dtype));
  }
  if (shape.head_dim > 256) {
    fail(ErrorCode::kUnsupported,
         "attention on a GPU: heads have {} elements, at most 256 are possible; use the CPU", shape.head_dim);
  }
  if (!batch.on_gpu) fail(ErrorCode::kInternal, "attention on a GPU: the sequences are not there");
}

int64_t most_tokens(std::span<const AttentionSequence> sequences) {
  int64_t most = 0;
  for (const AttentionSequence& sequence : sequences) most = std::max(most, sequence.count);
  return most;
}

// With a table, q and k are rotated.
void append_on_gpu(const OpContext& context, const AttentionShape& shape, const AttentionBatch& batch,
                   uint16_t* q, ConstActivations k, ConstActivations v, const RopeTable* table) {
  GpuAppendArgs args{.sequences = batch.on_gpu,
                     .count = static_cast<int64_t>(batch.sequences.size()),
                     .tokens = most_tokens(batch.sequences),
                     .heads = q ? shape.heads : 0,
                     .kv_heads = shape.kv_heads,
                     .head_dim = shape.head_dim,
                     .layer_offset = shape.layer_offset,
                     .q = q,
                     .k = halves(k),
                     .v = halves(v)};
  if (table) {
    args.half = table->cosines.size(1);
    args.cosines = table->cosines.data<float>();
    args.sines = table->sines.data<float>();
  }
  if constexpr (kHasCuda) {
    if (args.tokens > 0) gpu_rope_append(args, context.gpu->stream());
  }
}

void attend_on_gpu(const OpContext& context, const AttentionShape& shape, const AttentionBatch& batch,
                   const uint16_t* q, uint16_t* out) {
  check_for_gpu(shape, batch);
  const GpuAttentionArgs args{.sequences = batch.on_gpu,
                              .count = static_cast<int64_t>(batch.sequences.size()),
                              .most_tokens = most_tokens(batch.sequences),
                              .heads = shape.heads,
                              .kv_heads = shape.kv_heads,
                              .head_dim = shape.head_dim,
                              .window = shape.window,
                              .layer_offset = shape.layer_offset,
                              .scale = shape.scale,
                              .slopes = shape.slopes,
                              .is_causal = shape.is_causal,
                              .q = q,
                              .out = out,
                              .arrivals = batch.arrivals};
  if constexpr (kHasCuda) {
    if (args.most_tokens > 0) gpu_attention(args, context.gpu->stream());
  }
}

// rope_attention in one kernel; false where there is none.
bool decode_on_gpu(const OpContext& context, const AttentionShape& shape, const AttentionBatch& batch,
                   const RopeTable* table, const uint16_t* q, const uint16_t* k, const uint16_t* v,
                   uint16_t* out) {
  if (!batch.arrivals || shape.slopes || !shape.is_causal || most_tokens(batch.sequences) != 1 ||
      !fits_decode_attention(shape.heads, shape.kv_heads, shape.head_dim)) {
    return false;
  }
  int64_t capacity = 0;
  for (const AttentionSequence& sequence : batch.sequences) capacity = std::max(capacity, sequence.capacity);
  GpuDecodeAttentionArgs args{.sequences = batch.on_gpu,
                              .count = static_cast<int64_t>(batch.sequences.size()),
                              .most_chunks = (capacity + kGpuDecodeKeys - 1) / kGpuDecodeKeys,
                              .heads = shape.heads,
                              .kv_heads = shape.kv_heads,
                              .head_dim = shape.head_dim,
                              .half = table ? table->cosines.size(1) : 0,
                              .window = shape.window,
                              .layer_offset = shape.layer_offset,
                              .scale = shape.scale,
                              .q = q,
                              .k = k,
                              .v = v,
                              .cosines = table ? table->cosines.data<float>() : nullptr,
                              .sines = table ? table->sines.data<float>() : nullptr,
                              .out = out,
                              .arrivals = batch.arrivals};
  const OpScratch partial(context, static_cast<size_t>(decode_partial_floats(args)) * sizeof(float));
  args.partial = partial.as<float>();
  if constexpr (kHasCuda) gpu_decode_attention(args, context.gpu->stream());
  return true;
}

}  // namespace

void kv_append(const OpContext& context, const AttentionShape& shape, const AttentionBatch& batch,
               ConstActivations k, ConstActivations v) {
  const std::span<const AttentionSequence> sequences = batch.sequences;
  check(shape, sequences);
  if constexpr (kHasCuda) {
    if (context.gpu) {
      check_for_gpu(shape, batch);
      append_on_gpu(context, shape, batch, nullptr, k, v, nullptr);
      return;
    }
  }
  const int64_t width = shape.kv_heads * shape.head_dim;
  const float *keys = floats(k), *values = floats(v);
  for (const AttentionSequence& sequence : sequences) {
    split_work(context, sequence.count, chunk_for(width, 1 << 15), [&](int64_t begin, int64_t end, int) {
      for (int64_t token = begin; token < end; ++token) {
        for (int64_t head = 0; head < shape.kv_heads; ++head) {
          const int64_t from = (sequence.row + token) * width + head * shape.head_dim;
          const int64_t to = (head * sequence.capacity + sequence.position + token) * shape.head_dim;
          store_row(keys + from, shape.head_dim, shape.cache_dtype,
                    static_cast<char*>(sequence.keys) + shape.layer_offset, to);
          store_row(values + from, shape.head_dim, shape.cache_dtype,
                    static_cast<char*>(sequence.values) + shape.layer_offset, to);
        }
      }
    });
  }
}

void attention(const OpContext& context, const AttentionShape& shape, const AttentionBatch& batch,
               ConstActivations q, Activations out, AttentionMode mode) {
  const std::span<const AttentionSequence> sequences = batch.sequences;
  check(shape, sequences);
  if constexpr (kHasCuda) {
    if (context.gpu) {
      attend_on_gpu(context, shape, batch, halves(q), halves(out));
      return;
    }
  }
  int64_t whole = 0, pieces = 0, partial_rows = 0;
  for_each_block(shape, sequences, [&](const AttentionItem& item) {
    ++whole;
    pieces += item.chunks;
    if (item.chunks > 1) partial_rows += item.chunks * item.rows;
  });
  if (whole == 0) return;
  // Few items: the chunks of an item go to several threads. The arithmetic is the same.
  const int64_t workers = worker_count(context);
  const bool split = workers > 1 && whole < 4 * workers && pieces > whole;
  if (!split) pieces = whole, partial_rows = 0;

  const int64_t partial_width = shape.head_dim + 2;
  const size_t partial_bytes = static_cast<size_t>(partial_rows * partial_width) * sizeof(float);
  const OpScratch memory(context,
                         partial_bytes + static_cast<size_t>(pieces + whole) * sizeof(AttentionItem));
  AttentionItem* items = memory.as<AttentionItem>();
  AttentionItem* merges = items + pieces;
  int64_t item_count = 0, merge_count = 0;
  float* partial = reinterpret_cast<float*>(merges + whole);
  for_each_block(shape, sequences, [&](const AttentionItem& item) {
    if (!split || item.chunks == 1) {
      items[item_count++] = item;
      return;
    }
    AttentionItem merge = item;
    merge.partial = partial;
    merges[merge_count++] = merge;
    for (int64_t chunk = 0; chunk < item.chunks; ++chunk) {
      AttentionItem piece = item;
      piece.first_chunk += chunk;
      piece.chunks = 1;
      piece.partial = partial;
      items[item_count++] = piece;
      partial += item.rows * partial_width;
    }
  });

  AttentionArgs args{sequences.data(),
                     items,
                     floats(q),
                     floats(out),
                     shape.heads,
                     shape.kv_heads,
                     shape.head_dim,
                     shape.window,
                     shape.layer_offset,
                     shape.scale,
                     shape.slopes,
                     shape.is_causal,
                     shape.cache_dtype == DType::kBF16,
                     mode == AttentionMode::kPrefill,
                     false};
  const auto& kernel = choose_kernel<AttentionArgs>(context, "attention", kTable, args);
  const size_t scratch = static_cast<size_t>(attention_scratch_floats(shape.head_dim)) * sizeof(float);
  // A short context stays on this thread, and so does what is left to do for a split one.
  int64_t keys = 0;
  for (const AttentionItem* item = items; item < items + item_count; ++item) {
    const int64_t end = seen_end(args, sequences[static_cast<size_t>(item->sequence)],
                                 (item->first_row + item->rows - 1) * shape.kv_heads / shape.heads);
    keys += std::min(end - item->first_chunk * kAttentionChunk, item->chunks * kAttentionChunk) * item->rows;
  }
  run_kernel(context, kernel, args, item_count, chunk_for(2 * shape.head_dim * keys / item_count, kSmall),
             scratch);
  if (merge_count > 0) {
    args.items = merges;
    args.combine = true;
    run_kernel(context, kernel, args, merge_count,
               chunk_for(partial_rows * partial_width / merge_count, kSmall), scratch);
  }
}

void rope_attention(const OpContext& context, const AttentionShape& shape, const AttentionBatch& batch,
                    const int32_t* positions, const RopeTable* table, Activations q, Activations k,
                    ConstActivations v, Activations out, AttentionMode mode) {
  if constexpr (kHasCuda) {
    if (context.gpu) {
      check(shape, batch.sequences);
      check_for_gpu(shape, batch);
      if (mode == AttentionMode::kDecode &&
          decode_on_gpu(context, shape, batch, table, halves(q), halves(k), halves(v), halves(out))) {
        return;
      }
      append_on_gpu(context, shape, batch, table ? halves(q) : nullptr, k, v, table);
      attend_on_gpu(context, shape, batch, halves(q), halves(out));
      return;
    }
  }
  if (table) {
    int64_t tokens = 0;
    for (const AttentionSequence& sequence : batch.sequences) tokens += sequence.count;
    rope(context, q, tokens, shape.heads, shape.head_dim, positions, *table);
    rope(context, k, tokens, shape.kv_heads, shape.head_dim, positions, *table);
  }
  kv_append(context, shape, batch, k, v);
  attention(context, shape, batch, q, out, mode);
}

std::vector<KernelListing> attention_kernels() {
  std::vector<KernelListing> list;
  append_listing<AttentionArgs>(list, "attention", kTable);
  return list;
}

}  // namespace lowbit
