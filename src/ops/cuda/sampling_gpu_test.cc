// Sampling on a GPU gives the very tokens that it gives on the CPU.
#include "ops/cuda/gpu_test_support.h"
#include "ops/sampling.h"

#include <functional>

namespace lowbit {
namespace {

using testing::Numbers;

class GpuSamplingTest : public testing::GpuTest {
 protected:
  template <class T>
  Tensor bytes_there(const std::vector<T>& values) {
    const int64_t bytes = static_cast<int64_t>(values.size() * sizeof(T));
    return copied_to(*queue_, Tensor::borrow(nullptr, values.data(), DType::kU8, {bytes}));
  }

  // Some draws in a row from the same logits.
  void compare(const SamplingRule& rule, const std::vector<float>& logits, int64_t rows,
               const std::string& what) {
    const int64_t vocab = static_cast<int64_t>(logits.size()) / rows;
    std::vector<uint64_t> random_cpu, random_gpu;
    std::vector<int32_t> previous;
    for (int64_t id = 0; id < vocab; id += 1 + vocab / 40) previous.push_back(static_cast<int32_t>(id));
    for (int64_t row = 0; row < rows; ++row) random_cpu.push_back(static_cast<uint64_t>(row) * 77 + 5);
    random_gpu = random_cpu;
    std::vector<SamplingRow> on_cpu, on_gpu;
    for (size_t row = 0; row < random_cpu.size(); ++row) {
      on_cpu.push_back({previous, &random_cpu[row]});
      on_gpu.push_back({previous, &random_gpu[row]});
    }
    for (int draw = 0; draw < 2; ++draw) {
      std::vector<float> scores = logits;
      Tensor scores_there = bytes_there(logits);
      std::vector<int32_t> expected(static_cast<size_t>(rows), -2), got(expected);
      sample(cpu_, rule, scores.data(), vocab, on_cpu, expected.data());
      sample(gpu_, rule, static_cast<float*>(scores_there.mutable_bytes()), vocab, on_gpu, got.data());
      EXPECT_EQ(got, expected) << what << ", vocab " << vocab << ", temperature " << rule.temperature
                               << ", top_k " << rule.top_k << ", top_p " << rule.top_p << ", penalty "
                               << rule.repetition_penalty;
      EXPECT_EQ(random_gpu, random_cpu) << what;
    }
  }
};

std::vector<SamplingRule> rules() {
  std::vector<SamplingRule> all = {{}, {.repetition_penalty = 1.5f}, {.temperature = 1, .top_k = 1}};
  for (float temperature : {1e-3f, 0.7f, 1000.0f}) {
    for (int64_t top_k : {0, 2, 50, 1024, 5000, 1000000000}) {
      for (float top_p : {1.0f, 0.999999f, 0.9f, 0.1f, 1e-30f})
        all.push_back({temperature, top_k, top_p, all.size() % 3 == 0 ? 1.3f : 1.0f});
    }
  }
  return all;
}

// Makes a row; the name says what is special about it.
struct Kind {
  const char* name;
  std::function<void(std::vector<float>&, Numbers&)> make;
};
std::vector<Kind> kinds() {
  auto fill = [](std::vector<float>& x, Numbers& numbers, float deviation) {
    for (float& value : x) value = numbers.normal(deviation);
  };
  return {{"normal", [=](auto& x, auto& n) { fill(x, n, 4); }},
          {"flat", [=](auto& x, auto& n) { fill(x, n, 0.01f); }},
          {"equal", [](auto& x, auto&) { std::fill(x.begin(), x.end(), -1.25f); }},
          {"zeros of both signs",
           [](auto& x, auto&) {
             for (size_t i = 0; i < x.size(); ++i) x[i] = i % 3 ? -0.0f : 0.0f;
           }},
          {"few values",
           [](auto& x, auto& n) {
             for (float& value : x) value = std::round(n.normal(2));
           }},
          {"one finite",
           [](auto& x, auto&) {
             std::fill(x.begin(), x.end(), -INFINITY);
             x[x.size() / 2] = -3;
           }},
          {"NaN and infinities",
           [=](auto& x, auto& n) {
             fill(x, n, 3);
             for (size_t i = 0; i < x.size(); i += 7) x[i] = i % 2 ? NAN : -INFINITY;
             x.back() = 1;
           }},
          {"outlier below", [=](auto& x, auto& n) { fill(x, n, 2), x[0] = -1e30f; }},
          {"outlier above", [=](auto& x, auto& n) { fill(x, n, 2), x[x.size() - 1] = 1e30f; }},
          {"huge", [=](auto& x, auto& n) { fill(x, n, 8e37f); }},
          {"denormal", [=](auto& x, auto& n) { fill(x, n, 1e-41f); }},
          {"all NaN", [](auto& x, auto&) { std::fill(x.begin(), x.end(), NAN); }},
          {"infinite", [=](auto& x, auto& n) { fill(x, n, 1), x[x.size() / 2] = INFINITY; }}};
}

TEST_F(GpuSamplingTest, GivesTheTokensOfTheCpuForEveryRule) {
  Numbers numbers(1);
  const std::vector<Kind> all = kinds();
  for (const SamplingRule& rule : rules()) {
    for (int64_t vocab : {1, 31, 2048, 2049, 6000}) {
      std::vector<float> logits;
      for (const Kind& kind : all) {
        std::vector<float> row(static_cast<size_t>(vocab));
        kind.make(row, numbers);
        logits.insert(logits.end(), row.begin(), row.end());
      }
      compare(rule, logits, static_cast<int64_t>(all.size()), "rows of every kind");
    }
  }
}

TEST_F(GpuSamplingTest, GivesTheTokensOfTheCpuForLargeVocabularies) {
  Numbers numbers(2);
  const std::vector<Kind> all = kinds();
  const std::vector<SamplingRule> every = rules();
  for (int64_t vocab : {151936, 262144}) {
    for (size_t kind = 0; kind < 5; ++kind) {
      std::vector<float> row(static_cast<size_t>(vocab));
      all[kind].make(row, numbers);
      for (size_t i = kind; i < every.size(); i += 5) compare(every[i], row, 1, all[kind].name);
    }
  }
}

// A GPU's state from step to step: random streams, the tokens seen, histograms that begin at zero again.
TEST_F(GpuSamplingTest, StepsWithoutTheHostGiveWhatTheHostGives) {
  constexpr int64_t kRows = 3, kVocab = 5000, kSteps = 12;
  Numbers numbers(3);
  for (const SamplingRule& rule :
       {SamplingRule{},
        {.repetition_penalty = 3},
        {.temperature = 1},
        {.temperature = 1, .top_k = 40, .repetition_penalty = 1.3f},
        {.temperature = 1, .top_p = 0.9f},
        {.temperature = 0.8f, .top_k = 40, .top_p = 0.9f, .repetition_penalty = 1.3f}}) {
    std::vector<std::vector<int32_t>> previous = {{1, 2, 3}, {}, {4999, 4999, 32, 31}};
    std::vector<uint64_t> random = {11, 22, 33};
    std::vector<SamplingRow> rows;
    for (size_t row = 0; row < kRows; ++row) rows.push_back({previous[row], &random[row]});
    const std::vector<float> logits = numbers.normals(kRows * kVocab, 2);  // the same ones at every step
    Tensor logits_there = bytes_there(logits);
    float* const scores = static_cast<float*>(logits_there.mutable_bytes());
    const GpuSampling sampling(gpu_, rule, scores, kVocab, rows);
    Tensor ids = bytes_there(std::vector<int32_t>(kRows)),
           positions = bytes_there(std::vector<int32_t>(kRows, 7)),
           step = bytes_there(std::vector<int64_t>(1)),
           history = bytes_there(std::vector<uint64_t>(kRows * kSteps));
    std::vector<AttentionSequence> sequences(kRows);
    for (AttentionSequence& sequence : sequences) sequence.position = 7, sequence.capacity = 100;
    sequences[1].capacity = 10;
    Tensor sequences_there = bytes_there(sequences);
    std::vector<int32_t> expected;
    for (int64_t i = 0; i < kSteps; ++i) {
      queue_->copy_in(scores, logits.data(), logits.size() * sizeof(float));
      if constexpr (kHasCuda) {
        gpu_sample(sampling.args(), queue_->stream());
        gpu_advance({.best = sampling.args().best,
                     .seen = sampling.args().seen,
                     .vocab = kVocab,
                     .ids = static_cast<int32_t*>(ids.mutable_bytes()),
                     .positions = static_cast<int32_t*>(positions.mutable_bytes()),
                     .sequences = static_cast<AttentionSequence*>(sequences_there.mutable_bytes()),
                     .history = static_cast<uint64_t*>(history.mutable_bytes()),
                     .step = static_cast<int64_t*>(step.mutable_bytes()),
                     .count = kRows,
                     .history_steps = kSteps},
                    queue_->stream());
      }
      std::vector<float> here = logits;
      std::vector<int32_t> chosen(kRows);
      for (size_t row = 0; row < kRows; ++row) rows[row].previous = previous[row];
      sample(cpu_, rule, here.data(), kVocab, rows, chosen.data());
      for (size_t row = 0; row < kRows; ++row) previous[row].push_back(chosen[row]);
      expected.insert(expected.end(), chosen.begin(), chosen.end());
    }
    std::vector<uint64_t> words(expected.size());
    std::vector<int32_t> got, moved(kRows);
    queue_->copy_out(words.data(), history.bytes(), history.byte_count());
    for (size_t i = 0; i < words.size(); ++i) {
      EXPECT_TRUE(is_of_step(words[i], static_cast<int64_t>(i) / kRows)) << i;
      got.push_back(token_of(words[i]));
    }
    EXPECT_EQ(got, expected) << "temperature " << rule.temperature << ", top_k " << rule.top_k;
    queue_->copy_out(moved.data(), positions.bytes(), positions.byte_count());
    EXPECT_EQ(moved, (std::vector<int32_t>{19, 9, 19})) << "a sequence stays inside its cache";
    std::vector<GpuSamplingState> states(kRows);
    queue_->copy_out(states.data(), sampling.args().states, states.size() * sizeof states[0]);
    for (size_t row = 0; row < kRows; ++row) {
      EXPECT_EQ(states[row].listed, 0u);
      EXPECT_EQ(states[row].depth, 0u);
      EXPECT_EQ(states[row].random, rule.draws() ? random[row] : 0);
    }
  }
}

TEST_F(GpuSamplingTest, MoreTokensThanSumsHoldAreRefused) {
  uint64_t random = 1;
  const SamplingRow row{{}, &random};
  int32_t chosen = -1;
  const auto draw = [&](int64_t vocab) {
    sample(gpu_, {.temperature = 1}, nullptr, vocab, std::span(&row, 1), &chosen);
  };
  EXPECT_THROW(draw(kMostSampledTokens + 1), Error);
}

}  // namespace
}  // namespace lowbit
