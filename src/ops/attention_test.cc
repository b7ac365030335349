#include "ops/attention.h"

#include "ops/ops_test_support.h"
#include "support.h"
#include "tensor/half.h"

namespace lowbit {
namespace {

using testing::Bench;
using testing::Numbers;

struct Cache {
  std::vector<float> keys, values;
  std::vector<uint16_t> keys16, values16;
};

struct Problem {
  AttentionShape shape;
  std::vector<AttentionSequence> sequences;
  std::vector<Cache> caches;
  std::vector<float> q, slopes;
  int64_t tokens = 0;

  // lengths: {keys already cached, new tokens}
  Problem(int64_t kv_heads, int64_t group, int64_t head_dim, std::vector<std::pair<int64_t, int64_t>> lengths,
          DType dtype, int64_t window, uint32_t seed) {
    Numbers numbers(seed);
    shape = {
        kv_heads * group, kv_heads, head_dim, dtype, 1 / std::sqrt(static_cast<float>(head_dim)), window};
    caches.resize(lengths.size());
    for (size_t s = 0; s < lengths.size(); ++s) {
      const auto [position, count] = lengths[s];
      Cache& cache = caches[s];
      const int64_t capacity = position + count + numbers.between(0, 9);
      const int64_t elements = kv_heads * capacity * head_dim;
      cache.keys = numbers.normals(elements, 2);
      cache.values = numbers.normals(elements);
      // What lies behind the sequence must never be read: stale memory may hold anything.
      for (int64_t head = 0; head < kv_heads; ++head) {
        for (int64_t i = (head * capacity + position + count) * head_dim;
             i < (head + 1) * capacity * head_dim; ++i) {
          cache.keys[static_cast<size_t>(i)] = cache.values[static_cast<size_t>(i)] = NAN;
        }
      }
      for (float value : cache.keys) cache.keys16.push_back(float_to_bf16(value));
      for (float value : cache.values) cache.values16.push_back(float_to_bf16(value));
      if (dtype == DType::kBF16) {
        for (size_t i = 0; i < cache.keys.size(); ++i) {
          cache.keys[i] = bf16_to_float(cache.keys16[i]);
          cache.values[i] = bf16_to_float(cache.values16[i]);
        }
      }
      AttentionSequence sequence{tokens, count, position, capacity, cache.keys.data(), cache.values.data()};
      if (dtype == DType::kBF16) sequence.keys = cache.keys16.data(), sequence.values = cache.values16.data();
      sequences.push_back(sequence);
      tokens += count;
    }
    q = numbers.normals(tokens * shape.heads * head_dim);
  }

  std::vector<float> run(OpContext context, AttentionMode mode = AttentionMode::kDecode) const {
    std::vector<float> out(q.size(), NAN);
    attention(context, shape, sequences, q.data(), out.data(), mode);
    return out;
  }

  std::vector<double> expected() const {
    std::vector<double> out(q.size());
    const int64_t group = shape.heads / shape.kv_heads, head_dim = shape.head_dim;
    for (size_t s = 0; s < sequences.size(); ++s) {
      const AttentionSequence& sequence = sequences[s];
      for (int64_t token = 0; token < sequence.count; ++token) {
        for (int64_t head = 0; head < shape.heads; ++head) {
          const int64_t offset = ((sequence.row + token) * shape.heads + head) * head_dim;
          const int64_t end = sequence.position + (shape.is_causal ? token + 1 : sequence.count);
          const int64_t begin = shape.window > 0 ? std::max<int64_t>(0, end - shape.window) : 0;
          const int64_t base = head / group * sequence.capacity;
          std::vector<double> scores;
          double most = -INFINITY, sum = 0;
          for (int64_t key = begin; key < end; ++key) {
            double dot = 0;
            for (int64_t d = 0; d < head_dim; ++d) {
              dot += double{q[static_cast<size_t>(offset + d)]} *
                     double{caches[s].keys[static_cast<size_t>((base + key) * head_dim + d)]};
            }
            const double slope = shape.slopes ? double{shape.slopes[head]} : 0;
            scores.push_back(dot * double{shape.scale} - slope * static_cast<double>(end - 1 - key));
            most = std::max(most, scores.back());
          }
          for (double& score : scores) sum += score = std::exp(score - most);
          for (int64_t key = begin; key < end; ++key) {
            for (int64_t d = 0; d < head_dim; ++d) {
              out[static_cast<size_t>(offset + d)] +=
                  scores[static_cast<size_t>(key - begin)] / sum *
                  double{caches[s].values[static_cast<size_t>((base + key) * head_dim + d)]};
            }
          }
        }
      }
    }
    return out;
  }
};

double bound(const std::string& kernel, AttentionMode mode) {
  return kernel == "amx_bf16" && mode == AttentionMode::kPrefill ? 2e-2 : 2e-5;
}

TEST(Attention, EveryKernelMatchesDoubleForAllShapes) {
  for (const std::string& kernel : testing::available(attention_kernels(), "attention")) {
    Bench bench(kernel);
    uint32_t seed = 1;
    for (int64_t head_dim : {8, 16, 20, 32, 48, 64, 128}) {
      for (int64_t group : {1, 2, 3, 7}) {
        for (DType dtype : {DType::kF32, DType::kBF16}) {
          const Problem problem(2, group, head_dim, {{0, 5}, {70, 1}, {0, 67}, {513, 3}}, dtype, 0, ++seed);
          for (AttentionMode mode : {AttentionMode::kDecode, AttentionMode::kPrefill}) {
            EXPECT_LT(testing::relative_error(problem.run(bench.context(), mode), problem.expected()),
                      bound(kernel, mode))
                << kernel << " head_dim " << head_dim << " group " << group;
          }
        }
      }
    }
  }
}

TEST(Attention, AWindowHidesOlderKeys) {
  for (const std::string& kernel : testing::available(attention_kernels(), "attention")) {
    Bench bench(kernel);
    for (int64_t window : {1, 2, 63, 64, 65, 200, 700}) {
      const Problem problem(1, 3, 32, {{0, 130}, {600, 2}, {1100, 70}}, DType::kF32, window, 7);
      for (AttentionMode mode : {AttentionMode::kDecode, AttentionMode::kPrefill}) {
        EXPECT_LT(testing::relative_error(problem.run(bench.context(), mode), problem.expected()),
                  bound(kernel, mode))
            << kernel << " window " << window;
      }
    }
  }
}

TEST(Attention, SlopesLowerTheScoresOfDistantKeys) {
  for (const std::string& kernel : testing::available(attention_kernels(), "attention")) {
    Bench bench(kernel);
    for (int64_t group : {1, 3}) {
      Problem problem(2, group, 32, {{0, 130}, {600, 2}, {70, 1}, {1100, 70}}, DType::kF32, 0, 7);
      for (int64_t head = 0; head < problem.shape.heads; ++head)
        problem.slopes.push_back(std::exp2(-static_cast<float>(head + 1)));
      problem.shape.slopes = problem.slopes.data();
      for (AttentionMode mode : {AttentionMode::kDecode, AttentionMode::kPrefill}) {
        EXPECT_LT(testing::relative_error(problem.run(bench.context(), mode), problem.expected()),
                  bound(kernel, mode))
            << kernel << " group " << group;
      }
    }
  }
}

TEST(Attention, WithoutCausalityATokenSeesAllOfItsSequence) {
  for (const std::string& kernel : testing::available(attention_kernels(), "attention")) {
    Bench one(kernel, 1), three(kernel, 3);
    for (int64_t head_dim : {12, 32, 64}) {
      for (int64_t group : {1, 3}) {
        // Of few and many items: the longest one is split by chunks of keys.
        for (const auto& lengths : std::vector<std::vector<std::pair<int64_t, int64_t>>>{
                 {{0, 5}, {0, 1}, {0, 67}, {0, 513}}, {{0, 300}}, {{70, 3}}}) {
          Problem problem(1, group, head_dim, lengths, DType::kF32, 0, 7);
          problem.shape.is_causal = false;
          for (AttentionMode mode : {AttentionMode::kDecode, AttentionMode::kPrefill}) {
            const std::vector<float> out = problem.run(one.context(), mode);
            EXPECT_LT(testing::relative_error(out, problem.expected()), bound(kernel, mode))
                << kernel << " head_dim " << head_dim << " group " << group;
            EXPECT_TRUE(testing::same_bits(out, problem.run(three.context(), mode))) << kernel;
          }
        }
      }
    }
  }
}

TEST(Attention, ARowIsTheSameWhateverElseIsInTheCallAndOnAnyNumberOfThreads) {
  for (const std::string& kernel : testing::available(attention_kernels(), "attention")) {
    for (int64_t window : {0, 90}) {
      for (AttentionMode mode : {AttentionMode::kDecode, AttentionMode::kPrefill}) {
        Bench one(kernel, 1), three(kernel, 3);
        const Problem problem(2, 3, 64, {{0, 70}, {1500, 1}, {3, 40}, {1100, 2}}, DType::kF32, window, 3);
        const std::vector<float> together = problem.run(one.context(), mode);
        EXPECT_TRUE(testing::same_bits(together, problem.run(three.context(), mode))) << kernel;
        // Every token in a call of its own, as if decoded one by one.
        std::vector<float> apart(together.size());
        for (const AttentionSequence& sequence : problem.sequences) {
          for (int64_t token = 0; token < sequence.count; ++token) {
            AttentionSequence alone = sequence;
            alone.row += token, alone.position += token, alone.count = 1;
            attention(three.context(), problem.shape, {{&alone, 1}}, problem.q.data(), apart.data(), mode);
          }
        }
        EXPECT_EQ(together, apart) << kernel << " window " << window;
      }
    }
  }
}

TEST(Attention, LargeScoresDoNotOverflow) {
  for (const std::string& kernel : testing::available(attention_kernels(), "attention")) {
    Bench bench(kernel);
    Problem problem(1, 1, 32, {{100, 3}}, DType::kF32, 0, 5);
    for (float& value : problem.q) value *= 300;
    EXPECT_LT(testing::relative_error(problem.run(bench.context()), problem.expected()), 1e-3) << kernel;
  }
}

TEST(Attention, KvAppendWritesBehindTheCachedRows) {
  Bench bench("", 2);
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    Problem problem(2, 1, 8, {{3, 4}, {0, 2}}, dtype, 0, 1);
    Numbers numbers(2);
    const std::vector<float> k = numbers.normals(6 * 16), v = numbers.normals(6 * 16);
    kv_append(bench.context(), problem.shape, problem.sequences, k.data(), v.data());
    for (size_t s = 0; s < 2; ++s) {
      const AttentionSequence& sequence = problem.sequences[s];
      for (int64_t token = 0; token < sequence.count; ++token) {
        for (int64_t head = 0; head < 2; ++head) {
          for (int64_t d = 0; d < 8; ++d) {
            const size_t from = static_cast<size_t>((sequence.row + token) * 16 + head * 8 + d);
            const size_t to =
                static_cast<size_t>((head * sequence.capacity + sequence.position + token) * 8 + d);
            if (dtype == DType::kF32) {
              EXPECT_EQ(problem.caches[s].keys[to], k[from]);
              EXPECT_EQ(problem.caches[s].values[to], v[from]);
            } else {
              EXPECT_EQ(problem.caches[s].keys16[to], float_to_bf16(k[from]));
              EXPECT_EQ(problem.caches[s].values16[to], float_to_bf16(v[from]));
            }
          }
        }
      }
    }
  }
}

TEST(Attention, RefusesWhatDoesNotFit) {
  Bench bench;
  Problem problem(2, 2, 8, {{0, 4}}, DType::kF32, 0, 1);
  problem.sequences[0].capacity = 3;
  EXPECT_NE(testing::error_of(ErrorCode::kInvalidArgument, [&] { problem.run(bench.context()); })
                .find("cache of 3"),
            std::string::npos);
  Problem uneven(2, 2, 8, {{0, 4}}, DType::kF32, 0, 1);
  uneven.shape.heads = 3;
  testing::error_of(ErrorCode::kInvalidArgument, [&] { uneven.run(bench.context()); });
  Problem window(2, 2, 8, {{0, 4}}, DType::kF32, 2, 1);
  window.shape.is_causal = false;
  testing::error_of(ErrorCode::kInvalidArgument, [&] { window.run(bench.context()); });
}

}  // namespace
}  // namespace lowbit
