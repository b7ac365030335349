// Every operator on a GPU beside the reference on the CPU, on the numbers that BF16 leaves of the inputs.
#include "ops/attention.h"
#include "ops/cuda/gpu_test_support.h"
#include "ops/cuda/kernel_list.h"
#include "ops/cuda/libraries.h"
#include "ops/cuda/limits.h"
#include "ops/cuda/matmul_gpu.h"
#include "ops/cuda/weights_gpu.h"
#include "ops/elementwise.h"
#include "ops/fused.h"
#include "ops/ops_test_support.h"
#include "ops/softmax.h"
#include "tensor/half.h"

#include <algorithm>
#include <atomic>
#include <future>
#include <optional>

namespace lowbit {
namespace {

using testing::Bench;
using testing::make_quantized;
using testing::Numbers;

using GpuOps = testing::GpuTest;

// Within a share of the largest magnitude, and of the value itself, which BF16 rounds.
void expect_near(const std::vector<float>& got, const std::vector<float>& expected, double share,
                 const std::string& what) {
  double scale = 0;
  for (float value : expected) scale = std::max(scale, std::abs(double{value}));
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_NEAR(got[i], expected[i], share * scale + std::abs(double{expected[i]}) / 128)
        << what << ", element " << i;
  }
}

TEST_F(GpuOps, RmsNormOfFloatsAndOfHalvesInPlace) {
  Numbers numbers(1);
  for (int64_t width : {1, 48, 100, 1536, 4097}) {
    for (int64_t rows : {1, 3}) {
      std::vector<float> x = numbers.normals(rows * width, 3), weight = numbers.normals(width),
                         expected(x.size());
      const Tensor norm = Tensor::borrow(nullptr, weight.data(), DType::kF32, {width});
      const Tensor norm_there = copied_to(*queue_, norm);
      rms_norm(cpu_, x.data(), rows, norm, 1e-6f, expected.data());
      Tensor y = room(DType::kBF16, rows * width);
      rms_norm(gpu_, ConstActivations(there(x).data<float>()), rows, norm_there, 1e-6f, of(y));
      expect_near(back(y), expected, 1e-6, "F32 to BF16");
      Tensor in_place = rounded(x);
      rms_norm(cpu_, x.data(), rows, norm, 1e-6f, expected.data());
      rms_norm(gpu_, of(in_place), rows, norm_there, 1e-6f, of(in_place));
      expect_near(back(in_place), expected, 1e-6, "BF16 in place");
    }
  }
}

TEST_F(GpuOps, RopeAndSwiglu) {
  Numbers numbers(2);
  for (auto [heads, head_dim, half] :
       {std::array<int64_t, 3>{3, 64, 32}, {2, 128, 64}, {1, 48, 16}, {5, 6, 3}}) {
    const int64_t tokens = 7, length = 20;
    std::vector<float> cosines = numbers.normals(length * half), sines = numbers.normals(length * half);
    const RopeTable table{Tensor::borrow(nullptr, cosines.data(), DType::kF32, {length, half}),
                          Tensor::borrow(nullptr, sines.data(), DType::kF32, {length, half})};
    const RopeTable table_there{copied_to(*queue_, table.cosines), copied_to(*queue_, table.sines)};
    std::vector<int32_t> positions;
    for (int64_t i = 0; i < tokens; ++i)
      positions.push_back(static_cast<int32_t>(numbers.between(0, length - 1)));
    std::vector<float> x = numbers.normals(tokens * heads * head_dim);
    Tensor x_there = rounded(x);
    const Tensor positions_there =
        copied_to(*queue_, Tensor::borrow(nullptr, positions.data(), DType::kI32, {tokens}));
    rope(cpu_, x.data(), tokens, heads, head_dim, positions.data(), table);
    rope(gpu_, of(x_there), tokens, heads, head_dim, positions_there.data<int32_t>(), table_there);
    expect_near(back(x_there), x, 1e-6, "rope");
  }
  for (int64_t count : {1, 255, 1000}) {
    std::vector<float> gate = numbers.normals(count, 8), up = numbers.normals(count), expected(gate.size());
    Tensor gate_there = rounded(gate);
    const Tensor up_there = rounded(up);
    swiglu(cpu_, gate.data(), up.data(), count, expected.data());
    swiglu(gpu_, of(gate_there), ConstActivations(up_there.bytes(), DType::kBF16), count, of(gate_there));
    expect_near(back(gate_there), expected, 1e-5, "swiglu");
  }
}

std::vector<Weight> make_weights(int64_t out, int64_t in, Numbers& numbers) {
  std::vector<Weight> weights;
  std::vector<float> values = numbers.normals(out * in, 0.1f);
  Tensor dense = Tensor::allocate(DType::kF32, {out, in});
  for (size_t i = 0; i < values.size(); ++i)
    dense.mutable_data<float>()[i] = bf16_to_float(float_to_bf16(values[i]));
  weights.push_back(dense);
  weights.push_back(converted(dense, DType::kBF16));
  for (int bits : {2, 3, 4, 8}) {
    for (int64_t group_size : {int64_t{16}, int64_t{32}, int64_t{96}, int64_t{128}, in}) {
      weights.push_back(make_quantized(out, in, bits, group_size, bits % 2 == 0, group_size == 128, numbers));
    }
  }
  return weights;
}

std::string name_of(const Weight& weight) {
  const auto* q = std::get_if<QuantizedTensor>(&weight);
  return q ? fmt::format("{} bits, groups of {}, {}", q->bits, q->group_size,
                         shape_text({q->out_features, q->in_features}))
           : "dense " + shape_text(std::get<Tensor>(weight).shape());
}

TEST_F(GpuOps, MatmulOfEveryWeightForFewAndManyRows) {
  Numbers numbers(3);
  for (auto [out, in] : {std::array<int64_t, 2>{40, 576}, {17, 100}, {256, 1536}}) {
    for (const Weight& weight : make_weights(out, in, numbers)) {
      const Weight moved = to_gpu(gpu_, weight);
      const std::vector<float> bias = numbers.normals(out);
      const Tensor bias_here = Tensor::borrow(nullptr, bias.data(), DType::kF32, {out});
      const Tensor bias_there = copied_to(*queue_, bias_here);
      for (auto [tokens, mode] : {std::pair{1, MatmulMode::kDecode},
                                  {9, MatmulMode::kDecode},
                                  {40, MatmulMode::kDecode},
                                  {5, MatmulMode::kPrefill},
                                  {70, MatmulMode::kPrefill}}) {
        std::vector<float> x = numbers.normals(tokens * in), expected(static_cast<size_t>(tokens * out)),
                           sums = numbers.normals(tokens * out);
        const Tensor x_there = rounded(x);
        Tensor y = room(DType::kBF16, tokens * out), sums_there = there(sums);
        matmul(cpu_, x.data(), tokens, weight, &bias_here, expected.data(), MatmulMode::kDecode);
        const ConstActivations given(x_there.bytes(), DType::kBF16);
        const MatmulOutput outputs[] = {{&moved, &bias_there, of(y)},
                                        {&moved, &bias_there, {}, sums_there.mutable_data<float>()}};
        matmul(gpu_, given, tokens, outputs, mode);
        // Prefill rounds what codes stand for to BF16.
        const std::string what = fmt::format("{}, {} rows", name_of(weight), tokens);
        expect_near(back(y), expected, 2e-3, what);
        for (size_t i = 0; i < sums.size(); ++i) sums[i] += expected[i];
        expect_near(back(sums_there), sums, 2e-3, what + ", added");
      }
    }
  }
}

TEST_F(GpuOps, NormedAndGatedProductsAndTheEmbedding) {
  Numbers numbers(4);
  const int64_t out = 200, in = 576;
  for (const Weight& weight : make_weights(out, in, numbers)) {
    const Weight moved = to_gpu(gpu_, weight);
    const std::vector<float> norm = numbers.normals(in);
    const Tensor norm_here = Tensor::borrow(nullptr, norm.data(), DType::kF32, {in});
    const Tensor norm_there = copied_to(*queue_, norm_here);
    constexpr int64_t kMost = 40;
    const std::vector<float> hidden = numbers.normals(kMost * in, 4);
    const Tensor hidden_there = there(hidden);
    std::vector<float> expected(static_cast<size_t>(kMost * out)), gated(expected.size());
    const MatmulOutput here{&weight, nullptr, expected.data()};
    matmul_normed(cpu_, {hidden.data(), &norm_here, 1e-6f}, kMost, std::span(&here, 1), MatmulMode::kDecode);
    matmul_gated(cpu_, {hidden.data(), &norm_here, 1e-6f}, kMost, {&weight, nullptr, {}},
                 {&weight, nullptr, {}}, gated.data(), MatmulMode::kDecode);
    std::vector<float> whole, whole_gated;
    for (int64_t tokens : {kMost, int64_t{1}, int64_t{3}, int64_t{12}, int64_t{20}}) {
      Tensor y = room(DType::kBF16, tokens * out), z = room(DType::kBF16, tokens * out);
      const NormedRows rows{hidden_there.data<float>(), &norm_there, 1e-6f};
      const MatmulOutput output{&moved, nullptr, of(y)};
      matmul_normed(gpu_, rows, tokens, std::span(&output, 1), MatmulMode::kDecode);
      matmul_gated(gpu_, rows, tokens, {&moved, nullptr, {}}, {&moved, nullptr, {}}, of(z),
                   MatmulMode::kDecode);
      const std::string what = fmt::format("{}, {} rows", name_of(weight), tokens);
      if (tokens == kMost) {
        whole = back(y), whole_gated = back(z);
        expect_near(whole, expected, 4e-3, what);
        expect_near(whole_gated, gated, 1e-2, what + ", gated");
        continue;
      }
      const auto count = static_cast<size_t>(tokens * out);
      EXPECT_EQ(back(y), std::vector(whole.begin(), whole.begin() + count)) << what;
      EXPECT_EQ(back(z), std::vector(whole_gated.begin(), whole_gated.begin() + count)) << what << ", gated";
    }
    const std::vector<int32_t> ids = {0, 199, 7, 7};
    std::vector<float> embedded(ids.size() * static_cast<size_t>(in));
    embedding(cpu_, weight, ids, embedded.data());
    Tensor rows = room(DType::kF32, static_cast<int64_t>(embedded.size()));
    embedding(gpu_, moved, ids, rows.mutable_data<float>());
    EXPECT_EQ(back(rows), embedded) << name_of(weight);
  }
}

class GpuAttention : public testing::GpuTest {
 protected:
  struct Case {
    int64_t heads, kv_heads, head_dim, window;
    std::vector<std::pair<int64_t, int64_t>> lengths;  // cached, new
    AttentionMode mode;
    int64_t half = -1;  // of what RoPE turns: 0 without it, -1 for all of a head
    bool has_slopes = false, is_causal = true;
  };

  // One new token for sequences of several lengths, and prompts behind cached keys.
  static Case step_of(int64_t head_dim) {
    return {6, 2, head_dim, 0, {{0, 1}, {130, 1}, {127, 1}, {500, 1}}, AttentionMode::kDecode};
  }
  static Case prompt_of(int64_t head_dim) {
    return {3, 3, head_dim, 0, {{0, 70}, {64, 3}, {200, 65}, {5, 0}}, AttentionMode::kPrefill};
  }

  void compare(const Case& c) {
    const int64_t half = c.half < 0 ? c.head_dim / 2 : c.half;
    int64_t tokens = 0, capacity = 0;
    for (auto [position, count] : c.lengths)
      tokens += count, capacity = std::max(capacity, position + count + 3);
    const int64_t length = capacity, pairs = std::max<int64_t>(half, 1);
    std::vector<float> cosines, sines;
    for (int64_t i = 0; i < length * pairs; ++i) {
      const float angle = numbers_.normal(3);
      cosines.push_back(std::cos(angle)), sines.push_back(std::sin(angle));
    }
    const RopeTable table{Tensor::borrow(nullptr, cosines.data(), DType::kF32, {length, pairs}),
                          Tensor::borrow(nullptr, sines.data(), DType::kF32, {length, pairs})};
    const RopeTable table_there{copied_to(*queue_, table.cosines), copied_to(*queue_, table.sines)};
    std::vector<float> q = numbers_.normals(tokens * c.heads * c.head_dim, 2),
                       k = numbers_.normals(tokens * c.kv_heads * c.head_dim, 2),
                       v = numbers_.normals(tokens * c.kv_heads * c.head_dim), out(q.size());
    Tensor q_there = rounded(q), k_there = rounded(k), v_there = rounded(v),
           out_there = room(DType::kBF16, static_cast<int64_t>(q.size()));

    const int64_t part = c.kv_heads * capacity * c.head_dim;
    std::vector<std::vector<uint16_t>> caches;
    std::vector<Tensor> caches_there;
    std::vector<AttentionSequence> here, moved;
    std::vector<int32_t> positions;
    int64_t row = 0;
    for (auto [position, count] : c.lengths) {
      std::vector<uint16_t> cache;
      for (int64_t i = 0; i < 2 * part; ++i) cache.push_back(float_to_bf16(numbers_.normal()));
      caches.push_back(cache);
      caches_there.push_back(
          copied_to(*queue_, Tensor::borrow(nullptr, cache.data(), DType::kBF16, {2 * part})));
      here.push_back({row, count, position, capacity, nullptr, nullptr});
      uint16_t* const base = caches_there.back().mutable_data<uint16_t>();
      moved.push_back({row, count, position, capacity, base, base + part});
      for (int64_t i = 0; i < count; ++i) positions.push_back(static_cast<int32_t>(position + i));
      row += count;
    }
    for (size_t i = 0; i < here.size(); ++i)
      here[i].keys = caches[i].data(), here[i].values = caches[i].data() + part;
    std::vector<float> slopes;
    for (int64_t head = 0; head < c.heads; ++head) slopes.push_back(std::exp2(-static_cast<float>(head + 1)));
    const Tensor slopes_there = there(slopes);
    AttentionShape shape{.heads = c.heads,
                         .kv_heads = c.kv_heads,
                         .head_dim = c.head_dim,
                         .cache_dtype = DType::kBF16,
                         .scale = 0.1f,
                         .window = c.window,
                         .slopes = c.has_slopes ? slopes.data() : nullptr,
                         .is_causal = c.is_causal};
    const int64_t bytes = static_cast<int64_t>(moved.size() * sizeof moved[0]);
    Tensor sequences = copied_to(*queue_, Tensor::borrow(nullptr, moved.data(), DType::kU8, {bytes}));
    Tensor positions_there = copied_to(*queue_, Tensor::borrow(nullptr, positions.data(), DType::kI32,
                                                               {static_cast<int64_t>(positions.size())}));
    const std::vector<int32_t> zeros(moved.size() * static_cast<size_t>(c.kv_heads));
    Tensor arrivals = copied_to(
        *queue_, Tensor::borrow(nullptr, zeros.data(), DType::kI32, {static_cast<int64_t>(zeros.size())}));

    rope_attention(cpu_, shape, here, positions.data(), half > 0 ? &table : nullptr, q.data(), k.data(),
                   v.data(), out.data(), c.mode);
    if (c.has_slopes) shape.slopes = slopes_there.data<float>();
    const AttentionBatch batch(moved, static_cast<const AttentionSequence*>(sequences.bytes()),
                               arrivals.mutable_data<int32_t>());
    rope_attention(gpu_, shape, batch, positions_there.data<int32_t>(), half > 0 ? &table_there : nullptr,
                   of(q_there), of(k_there), ConstActivations(v_there.bytes(), DType::kBF16), of(out_there),
                   c.mode);
    const std::string what =
        fmt::format("head_dim {}, half {}, window {}, {} tokens{}{}", c.head_dim, half, c.window, tokens,
                    c.has_slopes ? ", ALiBi" : "", c.is_causal ? "" : ", not causal");
    expect_near(back(out_there), out, 1e-2, what);
    for (size_t i = 0; i < caches.size(); ++i) {
      std::vector<float> cached;
      for (uint16_t value : caches[i]) cached.push_back(bf16_to_float(value));
      expect_near(back(caches_there[i]), cached, 1e-6, what + ", cache");
    }
    std::vector<int32_t> arrived(zeros.size(), -1);
    queue_->copy_out(arrived.data(), arrivals.bytes(), arrivals.byte_count());
    EXPECT_EQ(arrived, zeros) << what << ": counters go back to zero";
  }

  Numbers numbers_{5};
};

constexpr int64_t kHeadDims[] = {32, 64, 80, 96, 128, 48, 256, 14};

TEST_F(GpuAttention, RopeAttentionOfRaggedSequences) {
  std::vector<Case> cases;
  for (int64_t head_dim : kHeadDims) {
    for (Case c : {step_of(head_dim), prompt_of(head_dim)}) {
      for (int64_t window : {0, 100}) {
        c.window = window;
        cases.push_back(c);
      }
    }
  }
  cases.push_back({20, 1, 64, 0, {{300, 1}}, AttentionMode::kDecode});  // more heads than a tile has rows
  // Keys enough for several passes of a cluster's blocks, and for several clusters.
  cases.push_back({12, 2, 128, 0, {{1000, 1}, {1023, 1}, {1024, 1}, {2500, 1}}, AttentionMode::kDecode});
  for (int64_t window : {0, 1500, 9000})
    cases.push_back({4, 2, 64, window, {{17000, 1}, {8191, 1}, {8192, 1}, {900, 1}}, AttentionMode::kDecode});
  for (const Case& c : cases) compare(c);
}

TEST_F(GpuAttention, WithoutRopeOrOfAPartWithSlopesAndNotCausal) {
  for (int64_t head_dim : kHeadDims) {
    for (Case c : {step_of(head_dim), prompt_of(head_dim)}) {
      for (int64_t half : {5, 0}) {
        c.half = half;
        compare(c);
      }
      c.has_slopes = true;
      compare(c);
      c.has_slopes = false, c.is_causal = false;
      if (c.mode == AttentionMode::kPrefill) compare(c);
    }
  }
}

TEST_F(GpuOps, RowStatisticsOfLogits) {
  Numbers numbers(6);
  for (int64_t vocab : {1, 7, 1000, 151936}) {
    const int64_t rows = 5;
    std::vector<float> x = numbers.normals(rows * vocab, 4), reference = numbers.normals(rows * vocab, 4);
    x[0] = 50;
    if (vocab > 6) {
      x[static_cast<size_t>(vocab + 2)] = x[static_cast<size_t>(vocab + 5)] = 60;  // the first of equal ones
      x[static_cast<size_t>(2 * vocab + 3)] = NAN;
      x[static_cast<size_t>(3 * vocab + 1)] = INFINITY;
      for (int64_t i = 0; i < vocab; ++i) x[static_cast<size_t>(4 * vocab + i)] = NAN;
    }
    std::vector<int32_t> targets;
    for (int64_t row = 0; row < rows; ++row)
      targets.push_back(static_cast<int32_t>(numbers.between(0, vocab - 1)));
    const Tensor x_there = there(x), reference_there = there(reference);
    const auto compare = [&](auto run, double tolerance, const char* what) {
      std::vector<double> expected(static_cast<size_t>(rows)), got(expected);
      run(cpu_, x.data(), reference.data(), expected.data());
      run(gpu_, x_there.data<float>(), reference_there.data<float>(), got.data());
      for (size_t i = 0; i < got.size(); ++i) {
        if (std::isfinite(expected[i])) {
          EXPECT_NEAR(got[i], expected[i], tolerance * (1 + std::abs(expected[i])))
              << what << " " << vocab << " " << i;
        } else {
          EXPECT_FALSE(std::isfinite(got[i])) << what << " " << vocab << " " << i;
        }
      }
    };
    compare([&](auto& c, auto* a, auto*, double* out) { log_sum_exp(c, a, rows, vocab, out); }, 1e-6,
            "log_sum_exp");
    compare([&](auto& c, auto* a, auto*, double* out) { token_nll(c, a, targets.data(), rows, vocab, out); },
            1e-6, "nll");
    compare([&](auto& c, auto* a, auto* b, double* out) { divergence(c, b, a, rows, vocab, out); }, 1e-5,
            "divergence");
    std::vector<int32_t> best(static_cast<size_t>(rows)), best_there(best);
    argmax(cpu_, x.data(), rows, vocab, best.data());
    argmax(gpu_, x_there.data<float>(), rows, vocab, best_there.data());
    EXPECT_EQ(best_there, best);
    finite_argmax(cpu_, x.data(), rows, vocab, best.data());
    finite_argmax(gpu_, x_there.data<float>(), rows, vocab, best_there.data());
    EXPECT_EQ(best_there, best);
  }
}

// Of any card that can be used at all, and of none that there will be soon.
TEST_F(GpuOps, TheMatrixRateIsThatOfTensorCores) {
  if (!libraries_->gemm_problem().empty()) GTEST_SKIP() << libraries_->gemm_problem();
  const double rate = measure_matrix_rate(*queue_, *libraries_);
  EXPECT_GT(rate, 5);
  EXPECT_LT(rate, 5000);
}

// Qwen2-1.5B's layers over a batch of prompts.
TEST_F(GpuOps, CodeOfProductsIsLoadedBesideOtherProducts) {
  if (!libraries_->gemm_problem().empty()) GTEST_SKIP() << libraries_->gemm_problem();
  const std::vector<GpuLibraries::Kind> kinds = {{5600, 1536, 1536, true, false},
                                                 {5600, 1536, 256, true, false},
                                                 {5600, 1536, 1536, false, true},
                                                 {5600, 1536, 8960, false, false},
                                                 {5600, 8960, 1536, false, true}};
  std::atomic<bool> is_enough = false;
  auto loading = std::async(std::launch::async, [&] { return libraries_->load_code(kinds, is_enough); });
  Numbers numbers(12);
  constexpr int64_t kSize = 256;
  std::vector<float> x = numbers.normals(kSize * kSize, 1);
  const Tensor x_there = rounded(x);
  Tensor y = room(DType::kF32, kSize * kSize);
  auto product = [&] {
    libraries_->multiply({.rows = kSize,
                          .in = kSize,
                          .out = kSize,
                          .x = x_there.data<uint16_t>(),
                          .w = x_there.data<uint16_t>(),
                          .y = of(y)});
    return back(y);
  };
  const std::vector<float> meanwhile = product();
  EXPECT_EQ(loading.get(), static_cast<int64_t>(kinds.size()))
      << "what the library does not try with few rows";
  EXPECT_EQ(product(), meanwhile);
  is_enough = true;
  EXPECT_EQ(libraries_->load_code(kinds, is_enough), 0);
}

TEST_F(GpuOps, TheListOfKernelsSaysWhichLibraryIsMissing) {
  for (const GpuKernelListing& kernel : list_gpu_kernels(*libraries_)) {
    EXPECT_FALSE(kernel.op.empty() || kernel.used_for.empty());
    if (kernel.kernel == "cublaslt") {
      EXPECT_EQ(kernel.available, libraries_->gemm_problem().empty());
    }
    if (kernel.kernel == "cusolver") {
      EXPECT_EQ(kernel.available, libraries_->solver_problem().empty());
    }
  }
}

}  // namespace
}  // namespace lowbit
