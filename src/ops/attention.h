// Attention with grouped queries over a KV cache, causal or not, for ragged batches.
// Softmax in FP32, streamed over the keys (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv
// 2205.14135).
#pragma once

#include "ops/attention_args.h"
#include "ops/context.h"
#include "ops/elementwise.h"
#include "ops/kernel_table.h"
#include "tensor/activations.h"
#include "tensor/dtype.h"

#include <span>
#include <vector>

namespace lowbit {

struct AttentionShape {
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  DType cache_dtype = DType::kF32;  // F32 or BF16
  float scale = 1;                  // of the scores, usually 1 / sqrt(head_dim)
  int64_t window = 0;               // > 0: a token sees itself and the window - 1 before it
  int64_t layer_offset = 0;         // bytes from a sequence's keys and values to those of the layer
  // ALiBi: F32 [heads], by which a score falls for each token between query and key. Null: none. Press et
  // al., arXiv 2108.12409.
  const float* slopes = nullptr;
  // A token sees itself and those before it; otherwise all of its sequence, without window and slopes.
  bool is_causal = true;
};

// The sequences of a step in this machine's memory, and a copy of them on the GPU where operators compute
// there.
struct AttentionBatch {
  std::span<const AttentionSequence> sequences;
  const AttentionSequence* on_gpu = nullptr;
  int32_t* arrivals = nullptr;  // on the GPU, [sequences, kv_heads], zero: of blocks that wait for each other

  AttentionBatch() = default;
  AttentionBatch(std::span<const AttentionSequence> here, const AttentionSequence* there = nullptr,
                 int32_t* zeros_there = nullptr)
      : sequences(here), on_gpu(there), arrivals(zeros_there) {}
  AttentionBatch(const std::vector<AttentionSequence>& here) : sequences(here) {}
};

// Chosen by the phase, not by the number of tokens, like MatmulMode:
enum class AttentionMode {
  kPrefill,  // may round q, k, v and the softmax's weights to BF16 (AMX)
  kDecode,   // FP32 arithmetic
};

// Writes the rows of k and v ([tokens, kv_heads * head_dim], after RoPE) behind the cached ones.
// kInvalidArgument when a sequence does not fit its capacity, or the cache is neither F32 nor BF16.
void kv_append(const OpContext& context, const AttentionShape& shape, const AttentionBatch& batch,
               ConstActivations k, ConstActivations v);

// out[t, h] = softmax(scale * q[t, h] K^T) V over the keys that token t may see. q, out: [tokens, heads *
// head_dim]. A row's result does not depend on the other rows of the call, on the number of threads, or, with
// causality, on `count`; with an FP32 kernel not on the mode either. (A value that is not finite may spoil
// rows of the same call before its token.) kInvalidArgument as kv_append, and when heads is no multiple of
// kv_heads or a window or slopes are given without causality.
void attention(const OpContext& context, const AttentionShape& shape, const AttentionBatch& batch,
               ConstActivations q, Activations out, AttentionMode mode);

// What a block does with the products of qkv: rope of q and k where there is a table, kv_append, attention. q
// and k may be changed. positions: of the new tokens, where the operators compute; without a table not used.
void rope_attention(const OpContext& context, const AttentionShape& shape, const AttentionBatch& batch,
                    const int32_t* positions, const RopeTable* table, Activations q, Activations k,
                    ConstActivations v, Activations out, AttentionMode mode);

std::vector<KernelListing> attention_kernels();

}  // namespace lowbit
