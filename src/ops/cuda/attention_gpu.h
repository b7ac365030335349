// Attention on a GPU: what ops/attention.h promises, for BF16 q, k, v and a BF16 cache in the GPU's memory.
#pragma once

#include "ops/attention_args.h"

#include <cstdint>

namespace lowbit {

struct GpuAttentionArgs {
  const AttentionSequence* sequences = nullptr;  // [count], on the GPU
  int64_t count = 0;
  int64_t most_tokens = 0;  // new ones of a sequence
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  int64_t window = 0;
  int64_t layer_offset = 0;
  float scale = 1;
  const float* slopes = nullptr;  // [heads], as in AttentionShape
  bool is_causal = true;
  const uint16_t* q = nullptr;  // [tokens, heads * head_dim]
  uint16_t* out = nullptr;      // like q
  int32_t* arrivals = nullptr;  // [1], zero before and after; without it gpu_prompt_attention cannot run
};
void gpu_attention(const GpuAttentionArgs& args, void* stream);
// What it chooses from: where it fits, wgmma of compute capability 9.0; everywhere, mma.sync, or plain loops
// for heads of other sizes up to 256.
bool has_prompt_attention();  // this GPU can run it
bool fits_prompt_attention(const GpuAttentionArgs& args);
void gpu_prompt_attention(const GpuAttentionArgs& args, void* stream);
void gpu_any_attention(const GpuAttentionArgs& args, void* stream);

// One new token for each sequence (or none): rope of q and k, kv_append and attention. half 0: no rope.
struct GpuDecodeAttentionArgs {
  const AttentionSequence* sequences = nullptr;  // [count], on the GPU
  int64_t count = 0;
  int64_t most_chunks = 0;  // of keys, that a sequence's capacity has
  int64_t heads = 0, kv_heads = 0, head_dim = 0, half = 0;
  int64_t window = 0;
  int64_t layer_offset = 0;
  float scale = 1;
  const uint16_t *q = nullptr, *k = nullptr, *v = nullptr;  // BF16 [tokens, heads or kv_heads * head_dim]
  const float *cosines = nullptr, *sines = nullptr;         // [positions, half]
  uint16_t* out = nullptr;                                  // like q
  float* partial = nullptr;                                 // decode_partial_floats
  int32_t* arrivals = nullptr;                              // [count, kv_heads], zero before and after
};

constexpr int64_t kGpuDecodeKeys = 128;

constexpr bool fits_decode_attention(int64_t heads, int64_t kv_heads, int64_t head_dim) {
  return heads / kv_heads <= 16 &&
         (head_dim == 32 || head_dim == 64 || head_dim == 80 || head_dim == 96 || head_dim == 128);
}
// Floats of what a chunk of keys comes to for one head: values, maximum, total; whole 16 bytes.
constexpr int gpu_attention_state(int64_t head_dim) { return static_cast<int>(head_dim) + 4; }
constexpr int64_t decode_partial_floats(const GpuDecodeAttentionArgs& args) {
  return args.count * args.heads * args.most_chunks * gpu_attention_state(args.head_dim);
}
void gpu_decode_attention(const GpuDecodeAttentionArgs& args, void* stream);

// rope of q and k, then kv_append. half 0: q and k are what they are.
struct GpuAppendArgs {
  const AttentionSequence* sequences = nullptr;  // [count], on the GPU
  int64_t count = 0, tokens = 0;                 // tokens: most new ones of a sequence
  int64_t heads = 0, kv_heads = 0, head_dim = 0, half = 0;
  int64_t layer_offset = 0;
  uint16_t* q = nullptr;                      // BF16 [tokens, heads * head_dim]
  const uint16_t *k = nullptr, *v = nullptr;  // BF16 [tokens, kv_heads * head_dim]
  const float *cosines = nullptr, *sines = nullptr;
};
void gpu_rope_append(const GpuAppendArgs& args, void* stream);

}  // namespace lowbit
