// Attention on a GPU: what ops/attention.h promises, for BF16 q, k, v and a BF16 cache in the GPU's memory.
#pragma once

#include "ops/attention_args.h"

#include <cstdint>

namespace lowbit {

struct GpuAttentionArgs {
  const AttentionSequence* sequences = nullptr;  // [count], on the GPU
  int64_t count = 0;
  int64_t most_tokens = 0;    // new ones of a sequence
  int64_t most_keys = 0;      // that a sequence may have, its capacity: sizes what is launched
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  int64_t window = 0;
  int64_t layer_offset = 0;
  float scale = 1;
  const uint16_t* q = nullptr;  // [tokens, heads * head_dim]
  uint16_t* out = nullptr;      // like q
  bool decode = false;          // keys in pieces of kGpuAttentionKeys, merged in their order
  float* partial = nullptr;     // decode: gpu_attention_partial_floats
  int64_t tokens = 0;           // of all sequences
};

constexpr int64_t kGpuAttentionKeys = 64;

// [tokens * heads][chunks][head_dim + 2]
constexpr int64_t gpu_attention_partial_floats(const GpuAttentionArgs& args) {
  return args.tokens * args.heads * ((args.most_keys + kGpuAttentionKeys - 1) / kGpuAttentionKeys) * (args.head_dim + 2);
}

void gpu_attention(const GpuAttentionArgs& args, void* stream);

// rope of q and k, then kv_append. half 0: q and k are what they are.
struct GpuAppendArgs {
  const AttentionSequence* sequences = nullptr;  // [count], on the GPU
  int64_t count = 0, tokens = 0;                 // tokens: most new ones of a sequence
  int64_t heads = 0, kv_heads = 0, head_dim = 0, half = 0;
  int64_t layer_offset = 0;
  uint16_t* q = nullptr;                  // BF16 [tokens, heads * head_dim]
  const uint16_t *k = nullptr, *v = nullptr;  // BF16 [tokens, kv_heads * head_dim]
  const float *cosines = nullptr, *sines = nullptr;
};
void gpu_rope_append(const GpuAppendArgs& args, void* stream);

}  // namespace lowbit
