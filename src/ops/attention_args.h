// What attention kernels get. Plain data only: files of special instruction sets include this.
#pragma once

#include <cstdint>

namespace lowbit {

// One sequence of a ragged batch. Its new tokens are rows [row, row + count) of q, k, v and out; their
// positions begin at `position`, and keys 0 ... position + count - 1 are in the cache once kv_append ran.
//   keys, values: [kv_heads, capacity, head_dim] of the cache's dtype, in its first layer
struct AttentionSequence {
  int64_t row = 0;
  int64_t count = 0;
  int64_t position = 0;
  int64_t capacity = 0;
  void* keys = nullptr;
  void* values = nullptr;
};

// The shape of the arithmetic, the same for every kernel call whatever is split how: keys are taken in blocks
// of kAttentionKeys (counted from key 0) by a streamed softmax, and every kAttentionChunk keys its state
// (maximum, sum, weighted values) is merged into the state of the chunks before. So chunks may be computed
// apart, in any order.
constexpr int64_t kAttentionRows = 64;  // most rows of an item
constexpr int64_t kAttentionKeys = 64;
constexpr int64_t kAttentionChunk = 256;

// Rows of one KV head: row r is query head kv_head * group + r % group of token r / group, group = heads /
// kv_heads.
struct AttentionItem {
  int64_t sequence = 0, kv_head = 0;
  int64_t first_row = 0, rows = 0;
  int64_t first_chunk = 0, chunks = 0;
  float* partial =
      nullptr;  // [chunks][rows][head_dim + 2]: weighted values, maximum, sum; null: straight to out
};

// A unit of the kernels' work is one item.
struct AttentionArgs {
  const AttentionSequence* sequences;
  const AttentionItem* items;
  const float* q;  // [tokens, heads * head_dim]
  float* out;      // like q
  int64_t heads, kv_heads, head_dim;
  int64_t window;
  int64_t layer_offset;  // bytes from the first layer's keys and values to those meant
  float scale;
  const float* slopes;  // [heads], see AttentionShape; or null
  bool causal;
  bool bf16_cache;
  bool prefill;
  bool combine;  // second phase of split items: merge `partial` into out
};

// Static: each file has its own, of its own instruction set.
static inline const void* keys_of(const AttentionArgs& args, const AttentionSequence& sequence) {
  return static_cast<const char*>(sequence.keys) + args.layer_offset;
}
static inline const void* values_of(const AttentionArgs& args, const AttentionSequence& sequence) {
  return static_cast<const char*>(sequence.values) + args.layer_offset;
}
// The first key that the new token `token` of a sequence does not see.
static inline int64_t seen_end(const AttentionArgs& args, const AttentionSequence& sequence, int64_t token) {
  return sequence.position + (args.causal ? token + 1 : sequence.count);
}

// Floats of scratch per worker. Kernels pad head_dim to 32.
constexpr int64_t attention_scratch_floats(int64_t head_dim) {
  const int64_t padded = (head_dim + 31) / 32 * 32;
  return kAttentionRows * kAttentionChunk + (2 * kAttentionKeys + 4 * kAttentionRows) * padded +
         8 * kAttentionRows;
}

void attention_ref(const AttentionArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void attention_avx2(const AttentionArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void attention_avx512(const AttentionArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void attention_amx_bf16(const AttentionArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;

}  // namespace lowbit
