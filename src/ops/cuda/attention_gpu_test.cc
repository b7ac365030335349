// Attention of prompts: the kernel for compute capability 9.0 beside the one for every GPU and the reference.
#include "ops/cuda/attention_gpu.h"

#include "ops/attention.h"
#include "ops/cuda/gpu_test_support.h"

#include <algorithm>
#include <cmath>
#include <fmt/format.h>

namespace lowbit {
namespace {

using testing::Numbers;

struct Case {
  int64_t group, kv_heads, head_dim, window;
  std::vector<std::pair<int64_t, int64_t>> lengths;  // cached, new

  std::string what() const {
    std::string text = fmt::format("group {}, head_dim {}, window {}:", group, head_dim, window);
    for (auto [position, count] : lengths) text += fmt::format(" {}+{}", position, count);
    return text;
  }
};

class GpuPromptAttention : public testing::GpuTest {
 protected:
  // Queries, and caches that hold NaN behind their keys.
  struct Input {
    std::vector<float> q;
    std::vector<std::vector<uint16_t>> caches;
    std::vector<AttentionSequence> sequences;
  };

  static Input input_of(const Case& c, uint32_t seed) {
    Numbers numbers(seed);
    Input input;
    int64_t row = 0;
    for (auto [position, count] : c.lengths) {
      const int64_t capacity = position + count + 3, part = c.kv_heads * capacity * c.head_dim;
      std::vector<uint16_t> cache;
      for (int64_t i = 0; i < 2 * part; ++i) {
        const bool is_there = i / c.head_dim % capacity < position + count;
        cache.push_back(is_there ? float_to_bf16(numbers.normal()) : uint16_t{0xffff});
      }
      input.caches.push_back(std::move(cache));
      input.sequences.push_back({row, count, position, capacity, nullptr, nullptr});
      row += count;
    }
    for (float value : numbers.normals(row * c.group * c.kv_heads * c.head_dim, 3))
      input.q.push_back(bf16_to_float(float_to_bf16(value)));
    return input;
  }

  std::vector<float> reference(const Case& c, Input& input) {
    for (size_t i = 0; i < input.caches.size(); ++i) {
      input.sequences[i].keys = input.caches[i].data();
      input.sequences[i].values = input.caches[i].data() + input.caches[i].size() / 2;
    }
    const AttentionShape shape{.heads = c.group * c.kv_heads,
                               .kv_heads = c.kv_heads,
                               .head_dim = c.head_dim,
                               .cache_dtype = DType::kBF16,
                               .scale = kScale,
                               .window = c.window};
    std::vector<float> out(input.q.size());
    attention(cpu_, shape, input.sequences, input.q.data(), out.data(), AttentionMode::kPrefill);
    return out;
  }

  // Nothing where the kernel does not run on this GPU.
  std::vector<float> computed(const Case& c, const Input& input,
                              void (*kernel)(const GpuAttentionArgs&, void*)) {
    std::vector<Tensor> caches;
    std::vector<AttentionSequence> sequences = input.sequences;
    int64_t most_tokens = 0;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const std::vector<uint16_t>& cache = input.caches[i];
      const auto size = static_cast<int64_t>(cache.size());
      caches.push_back(copied_to(*queue_, Tensor::borrow(nullptr, cache.data(), DType::kBF16, {size})));
      uint16_t* const base = caches.back().mutable_data<uint16_t>();
      sequences[i].keys = base, sequences[i].values = base + size / 2;
      most_tokens = std::max(most_tokens, sequences[i].count);
    }
    const auto bytes = static_cast<int64_t>(sequences.size() * sizeof sequences[0]);
    const Tensor moved = copied_to(*queue_, Tensor::borrow(nullptr, sequences.data(), DType::kU8, {bytes}));
    std::vector<float> q = input.q;
    Tensor q_there = rounded(q), out = room(DType::kBF16, static_cast<int64_t>(q.size()));
    Tensor arrivals = there(std::vector<int32_t>{0});
    const GpuAttentionArgs args{.sequences = static_cast<const AttentionSequence*>(moved.bytes()),
                                .count = static_cast<int64_t>(sequences.size()),
                                .most_tokens = most_tokens,
                                .heads = c.group * c.kv_heads,
                                .kv_heads = c.kv_heads,
                                .head_dim = c.head_dim,
                                .window = c.window,
                                .scale = kScale,
                                .q = q_there.data<uint16_t>(),
                                .out = out.mutable_data<uint16_t>(),
                                .arrivals = arrivals.mutable_data<int32_t>()};
    if (kernel == gpu_prompt_attention && !fits_prompt_attention(args)) return {};
    kernel(args, queue_->stream());
    queue_->wait("attention");
    EXPECT_EQ(taken<int32_t>(arrivals), std::vector<int32_t>{0}) << c.what();
    return back(out);
  }

  static void expect_near(const std::vector<float>& got, const std::vector<float>& expected,
                          const std::string& what) {
    ASSERT_EQ(got.size(), expected.size()) << what;
    for (size_t i = 0; i < got.size(); ++i) {
      if (!(std::abs(got[i] - expected[i]) <= 2e-2f + std::abs(expected[i]) / 64)) {
        ADD_FAILURE() << what << ", element " << i << ": " << got[i] << ", expected " << expected[i];
        return;
      }
    }
  }

  static constexpr float kScale = 0.1f;
};

TEST_F(GpuPromptAttention, OfRaggedSequencesIsThatOfTheReference) {
  for (int64_t head_dim : {64, 128}) {
    for (int64_t group : {1, 2, 6, 8}) {
      for (int64_t window : {0, 1, 17, 64, 100, 300}) {
        const Case c{
            group, 2, head_dim, window, {{0, 1}, {1, 5}, {63, 64}, {64, 0}, {64, 65}, {100, 129}, {300, 2}}};
        Input input = input_of(c, 1);
        const std::vector<float> expected = reference(c, input);
        expect_near(computed(c, input, gpu_any_attention), expected, "any, " + c.what());
        const std::vector<float> got = computed(c, input, gpu_prompt_attention);
        if (!got.empty()) expect_near(got, expected, c.what());
      }
    }
  }
}

TEST_F(GpuPromptAttention, OfLongSequencesIsThatOfTheKernelForEveryGpu) {
  for (int64_t head_dim : {64, 128}) {
    for (int64_t group : {1, 2, 6, 8, 150}) {
      for (int64_t position : {0, 1, 63, 64, 100, 1000}) {
        if (group != 6 && position % 100 != 0) continue;
        Case c{group, group > 8 ? 1 : 2, head_dim, 0, {}};
        for (int64_t count :
             group > 8 ? std::vector<int64_t>{20, 0, 1} : std::vector<int64_t>{63, 128, 0, 200, 700})
          c.lengths.emplace_back(position, count);
        const Input input = input_of(c, 2);
        for (int64_t window : {0, 1, 17, 64, 100, 300}) {
          if (group != 6 && window % 100 != 0) continue;
          c.window = window;
          const std::vector<float> got = computed(c, input, gpu_prompt_attention);
          if (got.empty()) GTEST_SKIP() << "needs compute capability 9.0";
          expect_near(got, computed(c, input, gpu_any_attention), c.what());
        }
      }
    }
  }
}

// More sequences than are looked through at once, and more items than blocks.
TEST_F(GpuPromptAttention, OfManySequences) {
  Case c{6, 2, 128, 0, {}};
  for (int64_t i = 0; i < 75; ++i) c.lengths.emplace_back(i * 7 % 50, i % 5 == 3 ? 0 : i * 37 % 130);
  Input input = input_of(c, 3);
  const std::vector<float> got = computed(c, input, gpu_prompt_attention);
  if (got.empty()) GTEST_SKIP() << "needs compute capability 9.0";
  expect_near(got, reference(c, input), c.what());
}

// The bytes of a row, whatever else is in the call and wherever its sequence was cut.
TEST_F(GpuPromptAttention, OfARowDependsOnNothingElse) {
  for (int64_t head_dim : {64, 128}) {
    for (int64_t window : {0, 100}) {
      const Case c{6, 2, head_dim, window, {{200, 333}, {0, 0}, {0, 150}, {17, 40}}};
      const Input input = input_of(c, 4);
      const std::vector<float> together = computed(c, input, gpu_prompt_attention);
      if (together.empty()) GTEST_SKIP() << "needs compute capability 9.0";
      const int64_t width = c.group * c.kv_heads * head_dim;
      for (size_t i = 0; i < c.lengths.size(); ++i) {
        for (int64_t cut : {int64_t{0}, c.lengths[i].second / 3}) {
          const int64_t row = input.sequences[i].row + cut, count = c.lengths[i].second - cut;
          if (count == 0) continue;
          Input alone;
          alone.caches = {input.caches[i]};
          alone.sequences = {input.sequences[i]};
          alone.sequences[0].row = 0;
          alone.sequences[0].count = count;
          alone.sequences[0].position += cut;
          alone.q.assign(input.q.begin() + row * width, input.q.begin() + (row + count) * width);
          EXPECT_EQ(
              computed(c, alone, gpu_prompt_attention),
              std::vector<float>(together.begin() + row * width, together.begin() + (row + count) * width))
              << c.what() << ", sequence " << i << " from token " << cut;
        }
      }
    }
  }
}

}  // namespace
}  // namespace lowbit
