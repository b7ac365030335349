// Sampling on a GPU gives the very tokens that it gives on the CPU.
#include "ops/cuda/gpu_test_support.h"
#include "ops/cuda/weights_gpu.h"
#include "ops/elementwise.h"
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

  template <class T>
  std::vector<T> read(const T* from, int64_t count) {
    std::vector<T> values(static_cast<size_t>(count));
    queue_->copy_out(values.data(), from, values.size() * sizeof(T));
    return values;
  }

  // What sampling moves on: of sequences at position 7, one for each capacity.
  struct Decoding {
    Tensor ids, positions, sequences, history, steps;
    GpuAdvanceArgs args;
  };
  Decoding decoding(const std::vector<int64_t>& capacities, int64_t history_steps) {
    const size_t rows = capacities.size();
    std::vector<AttentionSequence> sequences(rows);
    for (size_t row = 0; row < rows; ++row)
      sequences[row].position = 7, sequences[row].capacity = capacities[row];
    Decoding made{bytes_there(std::vector<int32_t>(rows, -2)),
                  bytes_there(std::vector<int32_t>(rows, 7)),
                  bytes_there(sequences),
                  bytes_there(std::vector<uint64_t>(rows * static_cast<size_t>(history_steps))),
                  bytes_there(std::vector<int64_t>(rows)),
                  {}};
    made.args = {.ids = static_cast<int32_t*>(made.ids.mutable_bytes()),
                 .positions = static_cast<int32_t*>(made.positions.mutable_bytes()),
                 .sequences = static_cast<AttentionSequence*>(made.sequences.mutable_bytes()),
                 .history = static_cast<uint64_t*>(made.history.mutable_bytes()),
                 .steps = static_cast<int64_t*>(made.steps.mutable_bytes()),
                 .history_steps = history_steps};
    return made;
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
    GpuSampling sampling(gpu_, rule, scores, kVocab, static_cast<int64_t>(rows.size()));
    sampling.begin(gpu_, rows);
    const Decoding next = decoding({100, 10, 100}, kSteps);
    std::vector<int32_t> expected;
    for (int64_t i = 0; i < kSteps; ++i) {
      queue_->copy_in(scores, logits.data(), logits.size() * sizeof(float));
      gpu_sample(sampling.args(), next.args, queue_->stream());
      std::vector<float> here = logits;
      std::vector<int32_t> chosen(kRows);
      for (size_t row = 0; row < kRows; ++row) rows[row].previous = previous[row];
      sample(cpu_, rule, here.data(), kVocab, rows, chosen.data());
      for (size_t row = 0; row < kRows; ++row) previous[row].push_back(chosen[row]);
      expected.insert(expected.end(), chosen.begin(), chosen.end());
    }
    const std::vector<uint64_t> words = read(next.args.history, kRows * kSteps);
    std::vector<int32_t> got;
    for (size_t i = 0; i < words.size(); ++i) {
      EXPECT_TRUE(is_of_step(words[i], static_cast<int64_t>(i) / kRows)) << i;
      got.push_back(token_of(words[i]));
    }
    EXPECT_EQ(got, expected) << "temperature " << rule.temperature << ", top_k " << rule.top_k;
    EXPECT_EQ(read(next.args.positions, kRows), (std::vector<int32_t>{19, 9, 19}))
        << "a sequence stays inside its cache";
    const std::vector<GpuSamplingState> states = read(sampling.args().states, kRows);
    for (size_t row = 0; row < kRows; ++row) EXPECT_EQ(states[row].random, rule.draws() ? random[row] : 0);
  }
}

// After each step all is as the next one wants it, also for rows that have no token.
TEST_F(GpuSamplingTest, EachStepLeavesWhatTheNextOneBeginsWith) {
  constexpr int64_t kRows = 4, kVocab = 4100, kSteps = 5, kHistory = 2;
  Numbers numbers(4);
  const auto dense = [&](int64_t width) {
    const std::vector<float> values = numbers.normals(kVocab * width);
    return converted(Tensor::borrow(nullptr, values.data(), DType::kF32, {kVocab, width}), DType::kBF16);
  };
  const Weight tables[] = {dense(2056), dense(100),
                           testing::make_quantized(kVocab, 576, 4, 128, true, true, numbers),
                           testing::make_quantized(kVocab, 1152, 8, 32, false, false, numbers)};
  for (const Weight& table : tables) {
    const int64_t width = in_features(table);
    const Weight table_there = to_gpu(gpu_, table);
    for (const SamplingRule& rule :
         {SamplingRule{},
          {.repetition_penalty = 1.5f},
          {.temperature = 1},
          {.temperature = 1, .top_k = 40, .top_p = 0.9f, .repetition_penalty = 1.3f}}) {
      std::vector<std::vector<int32_t>> previous = {{1, 2, 3}, {}, {4099, 4099, 32, 31}, {0}};
      std::vector<uint64_t> random = {11, 22, 33, 44};
      std::vector<SamplingRow> rows;
      for (size_t row = 0; row < kRows; ++row) rows.push_back({previous[row], &random[row]});
      Tensor scores_there = room(DType::kF32, kRows * kVocab), hidden = room(DType::kF32, kRows * width);
      float* const scores = scores_there.mutable_data<float>();
      GpuSampling sampling(gpu_, rule, scores, kVocab, static_cast<int64_t>(rows.size()));
      sampling.begin(gpu_, rows);
      Decoding next = decoding({100, 9, 100, 11}, kHistory);
      next.args.table = gpu_embedding_table(table_there);
      next.args.hidden = hidden.mutable_data<float>();
      for (int64_t step = 0; step < kSteps; ++step) {
        std::vector<float> logits = numbers.normals(kRows * kVocab, 2);
        if (step == 1) std::fill_n(logits.begin() + kVocab, kVocab, NAN);
        if (step == 1) logits[2 * kVocab + 5] = INFINITY;
        if (step == 3) std::fill_n(logits.begin() + 2 * kVocab, 2 * kVocab, -INFINITY);
        queue_->copy_in(scores, logits.data(), logits.size() * sizeof(float));
        gpu_sample(sampling.args(), next.args, queue_->stream());
        std::vector<int32_t> chosen(kRows), ids;
        for (size_t row = 0; row < kRows; ++row) rows[row].previous = previous[row];
        sample(cpu_, rule, logits.data(), kVocab, rows, chosen.data());
        for (size_t row = 0; row < kRows; ++row) {
          ids.push_back(std::max(0, chosen[row]));
          if (chosen[row] >= 0) previous[row].push_back(chosen[row]);
        }
        const std::string what = fmt::format("width {}, temperature {}, penalty {}, step {}", width,
                                             rule.temperature, rule.repetition_penalty, step);
        const auto at = [&](int64_t capacity) {
          return static_cast<int32_t>(std::min(8 + step, capacity - 1));
        };
        const std::vector<int32_t> positions = {at(100), at(9), at(100), at(11)};
        EXPECT_EQ(read(next.args.ids, kRows), ids) << what;
        EXPECT_EQ(read(next.args.positions, kRows), positions) << what;
        EXPECT_EQ(read(next.args.steps, kRows), std::vector<int64_t>(kRows, step + 1)) << what;
        EXPECT_EQ(read(sampling.args().best, kRows), std::vector<unsigned long long>(kRows)) << what;
        const auto words = read(next.args.history + step % kHistory * kRows, kRows);
        const auto sequences = read(next.args.sequences, kRows);
        const auto states = read(sampling.args().states, kRows);
        for (size_t row = 0; row < kRows; ++row) {
          EXPECT_EQ(words[row], history_word(step, chosen[row])) << what;
          EXPECT_EQ(sequences[row].position, positions[row]) << what;
          EXPECT_EQ(states[row].random, rule.draws() ? random[row] : 0) << what;
          EXPECT_EQ(states[row].depth, 0u) << what;
          EXPECT_EQ(states[row].listed, 0u) << what;
          for (const uint32_t arrivals : states[row].arrivals) EXPECT_EQ(arrivals, 0u) << what;
        }
        if (const auto* histograms = sampling.args().histograms) {
          for (const auto word : read(histograms, kRows * 2 * kSamplingBins)) ASSERT_EQ(word, 0u) << what;
        }
        if (sampling.args().seen) {
          std::vector<uint32_t> seen(static_cast<size_t>(kRows * seen_words(kVocab)));
          for (size_t row = 0; row < kRows; ++row) {
            for (const int32_t id : previous[row])
              seen[row * static_cast<size_t>(seen_words(kVocab)) + static_cast<size_t>(id / 32)] |=
                  1u << id % 32;
          }
          EXPECT_EQ(read(sampling.args().seen, kRows * seen_words(kVocab)), seen) << what;
        }
        Tensor embedded = room(DType::kF32, kRows * width);
        embedding(gpu_, table_there, ids, embedded.mutable_data<float>());
        EXPECT_TRUE(testing::same_bits(back(hidden), back(embedded))) << what;
        std::vector<float> here(static_cast<size_t>(kRows * width));
        embedding(cpu_, table, ids, here.data());
        EXPECT_EQ(back(hidden), here) << what;
      }
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
