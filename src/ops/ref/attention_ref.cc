#include "ops/attention_args.h"
#include "tensor/half.h"

#include <algorithm>
#include <cmath>

namespace lowbit {
namespace {

float cache_at(const AttentionArgs& args, const void* cache, int64_t index) {
  return args.bf16_cache ? bf16_to_float(static_cast<const uint16_t*>(cache)[index])
                         : static_cast<const float*>(cache)[index];
}

// State of a softmax over part of the keys: values[head_dim], then maximum, then sum.
void merge(float* state, const float* other, int64_t head_dim) {
  const float maximum = std::max(state[head_dim], other[head_dim]);
  if (maximum == -INFINITY) return;
  const float a = std::exp(state[head_dim] - maximum), b = std::exp(other[head_dim] - maximum);
  for (int64_t d = 0; d < head_dim; ++d) state[d] = state[d] * a + other[d] * b;
  state[head_dim] = maximum;
  state[head_dim + 1] = state[head_dim + 1] * a + other[head_dim + 1] * b;
}

// Keys [begin, end) for one query, which is at `position` and loses `slope` per token to a key.
void attend(const AttentionArgs& args, const AttentionSequence& sequence, int64_t kv_head, const float* q,
            int64_t position, float slope, int64_t begin, int64_t end, float* weights, float* state) {
  const int64_t head_dim = args.head_dim;
  std::fill(state, state + head_dim, 0.0f);
  float maximum = -INFINITY, sum = 0;
  for (int64_t key = begin; key < end; ++key) {
    float dot = 0;
    for (int64_t d = 0; d < head_dim; ++d) {
      dot +=
          q[d] * cache_at(args, keys_of(args, sequence), (kv_head * sequence.capacity + key) * head_dim + d);
    }
    weights[key - begin] = dot * args.scale - slope * static_cast<float>(position - key);
    maximum = std::max(maximum, weights[key - begin]);
  }
  for (int64_t key = begin; key < end; ++key) {
    const float weight = std::exp(weights[key - begin] - maximum);
    sum += weight;
    for (int64_t d = 0; d < head_dim; ++d) {
      state[d] += weight * cache_at(args, values_of(args, sequence),
                                    (kv_head * sequence.capacity + key) * head_dim + d);
    }
  }
  state[head_dim] = maximum;
  state[head_dim + 1] = sum;
}

}  // namespace

void attention_ref(const AttentionArgs& args, int64_t begin, int64_t end, void* scratch) noexcept {
  const int64_t head_dim = args.head_dim, width = head_dim + 2, group = args.heads / args.kv_heads;
  float* total = static_cast<float*>(scratch);
  float* part = total + width;
  float* weights = part + width;
  for (int64_t index = begin; index < end; ++index) {
    const AttentionItem& item = args.items[index];
    const AttentionSequence& sequence = args.sequences[item.sequence];
    for (int64_t row = 0; row < item.rows; ++row) {
      const int64_t token = (item.first_row + row) / group,
                    head = item.kv_head * group + (item.first_row + row) % group;
      const int64_t offset = ((sequence.row + token) * args.heads + head) * head_dim;
      const int64_t end = seen_end(args, sequence, token);
      const int64_t seen_begin = args.window > 0 ? std::max<int64_t>(0, end - args.window) : 0;
      for (int64_t c = 0; c < item.chunks; ++c) {
        float* state = c == 0 ? total : part;
        if (args.combine) {
          const float* from = item.partial + (c * item.rows + row) * width;
          std::copy(from, from + width, state);
        } else {
          const int64_t first = (item.first_chunk + c) * kAttentionChunk;
          attend(args, sequence, item.kv_head, args.q + offset, end - 1, args.slopes ? args.slopes[head] : 0,
                 std::max(first, seen_begin), std::min(first + kAttentionChunk, end), weights, state);
        }
        if (c > 0) merge(total, part, head_dim);
      }
      if (item.partial && !args.combine) {
        std::copy(total, total + width, item.partial + row * width);
        continue;
      }
      for (int64_t d = 0; d < head_dim; ++d) args.out[offset + d] = total[d] / total[head_dim + 1];
    }
  }
}

}  // namespace lowbit
