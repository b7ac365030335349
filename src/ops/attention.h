// Causal attention with grouped queries over a KV cache, for ragged batches.
// Softmax in FP32, streamed over the keys (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135).
#pragma once

#include <span>

#include "ops/context.h"
#include "tensor/dtype.h"

namespace lowbit {

// One sequence of a ragged batch. Its new tokens are rows [row, row + count) of q, k, v and out; their positions
// begin at `position`, and keys 0 ... position + count - 1 are in the cache once kv_append ran.
//   keys, values: [kv_heads, capacity, head_dim] of the cache's dtype
struct AttentionSequence {
  int64_t row = 0;
  int64_t count = 0;
  int64_t position = 0;
  int64_t capacity = 0;
  void* keys = nullptr;
  void* values = nullptr;
};

struct AttentionShape {
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  DType cache_dtype = DType::kF32;  // F32 or BF16
  float scale = 1;                  // of the scores, usually 1 / sqrt(head_dim)
  int64_t window = 0;               // > 0: a token sees itself and the window - 1 before it
};

// Writes the rows of k and v ([tokens, kv_heads * head_dim], after RoPE) behind the cached ones.
void kv_append(const OpContext& context, const AttentionShape& shape, std::span<const AttentionSequence> sequences,
               const float* k, const float* v);

// out[t, h] = softmax(scale * q[t, h] K^T) V over the keys that token t may see. q, out: [tokens, heads * head_dim].
// A row's result does not depend on the other rows of the call, on `count`, or on the number of threads.
void attention(const OpContext& context, const AttentionShape& shape, std::span<const AttentionSequence> sequences,
               const float* q, float* out);

}  // namespace lowbit
