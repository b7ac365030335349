// Prompts in, answers out: prefill in bounded chunks, then one token per sequence and step until all have
// ended.
#include "lowbit/generate.h"

#include "base/fail.h"
#include "ops/sampling.h"
#include "runtime/answer.h"
#include "runtime/forward.h"
#include "runtime/gpu_decoder.h"
#include "runtime/language_model.h"
#include "runtime/options.h"
#include "runtime/sampler.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <memory>
#include <numeric>

namespace lowbit {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_between(Clock::time_point start, Clock::time_point end) {
  return std::chrono::duration<double>(end - start).count();
}

class Generation {
 public:
  Generation(const LanguageModel::State& state, const std::vector<std::vector<int32_t>>& prompts,
             const GenerateOptions& options, const StreamSink& stream)
      : state_(state),
        ops_(state.ops()),
        prompts_(prompts),
        options_(options),
        rule_(sampling_rule(options)),
        context_(state.model.config().max_positions),
        capacity_(capacity()),
        cache_(state.model.config(), static_cast<int64_t>(prompts.size()), capacity_, state.cache_dtype,
               ops_.gpu),
        rope_(state.model.rope_tables(ops_, capacity_)) {
    for (size_t i = 0; i < prompts.size(); ++i) {
      answers_.emplace_back(state.tokenizer ? &*state.tokenizer : nullptr, options, i, stream);
      answers_.back().result().prompt_tokens = static_cast<int64_t>(prompts[i].size());
      random_.push_back(random_stream(options.seed, i));
    }
    next_.resize(prompts.size());
  }

  void run(GenerateSpeed& speed) {
    const Clock::time_point start = Clock::now();
    prepare_to_decode();
    prefill();
    const Clock::time_point first_tokens = Clock::now();
    speed.prefill_seconds += seconds_between(start, first_tokens);
    for (const auto& prompt : prompts_) speed.prefill_tokens += static_cast<int64_t>(prompt.size());
    while (ops_.gpu ? decode_on_gpu(speed.decode_tokens) : decode_step(speed.decode_tokens)) {
    }
    speed.decode_seconds += seconds_between(first_tokens, std::max(first_tokens, last_token_));
  }

  std::vector<GenerateResult> results() {
    std::vector<GenerateResult> results;
    for (Answer& answer : answers_) results.push_back(std::move(answer.result()));
    return results;
  }

 private:
  int64_t capacity() const {
    size_t longest = 0;
    for (const auto& prompt : prompts_) longest = std::max(longest, prompt.size());
    return std::min(context_, static_cast<int64_t>(longest) + options_.max_new_tokens);
  }

  // Chunks of bounded rows, taken from as many prompts as fit.
  void prefill() {
    const int64_t width = state_.model.config().hidden_size, most = ops_.gpu ? kGpuPrefillRows : kPrefillRows;
    const size_t row_bytes = static_cast<size_t>(width) * sizeof(float);
    std::vector<size_t> done(prompts_.size(), 0);
    for (size_t first = 0; first < prompts_.size();) {
      std::vector<SequenceTokens> batch;
      int64_t rows = 0;
      for (size_t i = first; i < prompts_.size() && rows < most; ++i) {
        const size_t count = std::min(prompts_[i].size() - done[i], static_cast<size_t>(most - rows));
        batch.push_back({static_cast<int64_t>(i), std::span(prompts_[i]).subspan(done[i], count)});
        rows += static_cast<int64_t>(count);
        done[i] += count;
      }
      const GpuPhase phase(ops_.gpu, forward_purpose(rows));
      const Scratch hidden = ops_.workspace->take(static_cast<size_t>(rows * width) * sizeof(float));
      forward(state_.model, ops_, rope_, batch, MatmulMode::kPrefill, cache_, hidden.as<float>());
      // The last rows of the prompts that end here, side by side.
      const Scratch last = ops_.workspace->take(batch.size() * row_bytes);
      std::vector<size_t> ended;
      int64_t row = 0;
      for (const SequenceTokens& tokens : batch) {
        row += static_cast<int64_t>(tokens.ids.size());
        const size_t i = static_cast<size_t>(tokens.sequence);
        if (done[i] < prompts_[i].size()) continue;
        copy(ops_, last.as<float>() + static_cast<int64_t>(ended.size()) * width,
             hidden.as<float>() + (row - 1) * width, row_bytes);
        ended.push_back(i);
      }
      if (ended.empty()) continue;
      choose(ended, last.as<float>());
      first = ended.back() + 1;
    }
  }

  // Chooses the next token of each sequence from its last hidden row; ends sequences.
  void choose(const std::vector<size_t>& sequences, const float* hidden) {
    const int64_t vocab = state_.model.config().vocab_size, rows = static_cast<int64_t>(sequences.size());
    const Scratch logits = ops_.workspace->take(static_cast<size_t>(rows * vocab) * sizeof(float));
    state_.model.logits(ops_, hidden, rows, MatmulMode::kDecode, logits.as<float>());
    std::vector<int32_t> chosen(sequences.size());
    const SampledRows sampled = sampled_rows(sequences);
    sample(ops_, rule_, logits.as<float>(), vocab, sampled.rows, chosen.data());
    for (size_t row = 0; row < sequences.size(); ++row)
      take_token(sequences[row], checked_token(chosen[row]));
  }

  struct SampledRows {
    std::vector<SamplingRow> rows;
    std::deque<std::vector<int32_t>> previous;  // what rows refer to
  };
  SampledRows sampled_rows(const std::vector<size_t>& sequences) {
    SampledRows sampled;
    for (const size_t i : sequences) {
      sampled.rows.push_back({{}, &random_[i]});
      if (rule_.repetition_penalty == 1) continue;
      std::vector<int32_t>& previous = sampled.previous.emplace_back(prompts_[i]);
      const std::vector<int32_t>& new_ids = answers_[i].result().token_ids;
      previous.insert(previous.end(), new_ids.begin(), new_ids.end());
      sampled.rows.back().previous = previous;
    }
    return sampled;
  }

  // The next token of sequence i; may end it.
  void take_token(size_t i, int32_t id) {
    Answer& answer = answers_[i];
    last_token_ = Clock::now();
    if (!options_.ignore_eos &&
        std::find(state_.eos_ids.begin(), state_.eos_ids.end(), id) != state_.eos_ids.end()) {
      answer.end("eos");
      return;
    }
    answer.push(id);
    next_[i] = id;
    if (static_cast<int64_t>(answer.token_count()) >= options_.max_new_tokens) answer.end("length");
    if (cache_.length(static_cast<int64_t>(i)) >= context_) answer.end("context");
  }

  // Those that go on, each with its next token.
  std::vector<SequenceTokens> active_batch() const {
    std::vector<SequenceTokens> batch;
    for (size_t i = 0; i < answers_.size(); ++i) {
      if (!answers_[i].is_done()) batch.push_back({static_cast<int64_t>(i), std::span(&next_[i], 1)});
    }
    return batch;
  }

  static std::vector<size_t> sequences_of(const std::vector<SequenceTokens>& batch) {
    std::vector<size_t> sequences;
    for (const SequenceTokens& tokens : batch) sequences.push_back(static_cast<size_t>(tokens.sequence));
    return sequences;
  }

  // One token for every sequence that goes on; false when none does.
  bool decode_step(int64_t& tokens) {
    const std::vector<SequenceTokens> batch = active_batch();
    if (batch.empty()) return false;
    const std::vector<size_t> active = sequences_of(batch);
    const int64_t width = state_.model.config().hidden_size;
    const GpuPhase phase(ops_.gpu, forward_purpose(static_cast<int64_t>(active.size())));
    const Scratch hidden = ops_.workspace->take(active.size() * static_cast<size_t>(width) * sizeof(float));
    forward(state_.model, ops_, rope_, batch, MatmulMode::kDecode, cache_, hidden.as<float>());
    choose(active, hidden.as<float>());
    tokens += static_cast<int64_t>(active.size());
    return true;
  }

  // The most decoding steps that one of them can still take.
  int64_t most_steps(const std::vector<size_t>& sequences) const {
    int64_t most = 0;
    for (const size_t i : sequences) {
      if (answers_[i].is_done()) continue;
      most =
          std::max(most, std::min(options_.max_new_tokens - static_cast<int64_t>(answers_[i].token_count()),
                                  context_ - cache_.length(static_cast<int64_t>(i))));
    }
    return most;
  }

  // Before the prompts are computed. For many it waits until then: what it takes might be missing meanwhile.
  void prepare_to_decode() {
    constexpr size_t kMost = 8;
    const int64_t steps = options_.max_new_tokens - 1;
    if (!ops_.gpu || prompts_.size() > kMost || !state_.model.has_fixed_weights() ||
        steps < GpuDecoder::kLeastRecorded)
      return;
    const GpuPhase phase(ops_.gpu, forward_purpose(static_cast<int64_t>(prompts_.size())));
    std::vector<size_t> all(prompts_.size());
    std::iota(all.begin(), all.end(), 0);
    prepared_ = std::make_unique<GpuDecoder>(state_.model, ops_, rope_, all, cache_, rule_, steps);
  }

  // Decoding on a GPU, where the tokens stay whatever the options are: until all have ended, or so many that
  // what goes on is worth a smaller batch, behind the steps that are queued already.
  bool decode_on_gpu(int64_t& tokens) {
    const std::vector<SequenceTokens> batch = active_batch();
    if (batch.empty()) return false;
    const GpuPhase phase(ops_.gpu, forward_purpose(static_cast<int64_t>(batch.size())));
    const std::vector<size_t> sequences = sequences_of(batch);
    std::unique_ptr<GpuDecoder> decoder = std::move(prepared_);
    if (!decoder || batch.size() < prompts_.size()) {
      decoder.reset();
      decoder = std::make_unique<GpuDecoder>(state_.model, ops_, rope_, sequences, cache_, rule_,
                                             most_steps(sequences));
    }
    decoder->begin(batch, sampled_rows(sequences).rows);
    for (size_t left = batch.size(); left > 0;) {
      const int64_t wanted = 2 * left > batch.size() ? most_steps(sequences) : decoder->queued();
      if (wanted == 0) break;
      const std::span<const int32_t> chosen = decoder->next(wanted);
      for (size_t row = 0; row < batch.size(); ++row) {
        const size_t i = sequences[row];
        if (answers_[i].is_done()) continue;
        cache_.set_length(batch[row].sequence, cache_.length(batch[row].sequence) + 1);
        if (rule_.draws()) next_random(random_[i]);
        take_token(i, checked_token(chosen[row]));
        ++tokens;
        if (answers_[i].is_done()) --left;
      }
    }
    return true;
  }

  const LanguageModel::State& state_;
  OpContext ops_;
  const std::vector<std::vector<int32_t>>& prompts_;
  const GenerateOptions& options_;
  SamplingRule rule_;
  int64_t context_, capacity_;
  KvCache cache_;
  RopeTables rope_;
  std::deque<Answer> answers_;
  std::vector<uint64_t> random_;  // a stream for each prompt
  std::vector<int32_t> next_;
  Clock::time_point last_token_;
  std::unique_ptr<GpuDecoder> prepared_;  // last: it ends before what it works with
};

}  // namespace

std::vector<GenerateResult> LanguageModel::generate(const std::vector<std::vector<int32_t>>& prompts,
                                                    const GenerateOptions& options, const StreamSink& stream,
                                                    GenerateSpeed* speed) const {
  validate(options);
  require_text_generation(*state_);
  const int64_t vocab = vocab_size();
  for (size_t i = 0; i < prompts.size(); ++i) {
    if (prompts[i].empty())
      fail(ErrorCode::kInvalidArgument, "prompt {} is empty: a model needs at least one token", i);
    if (static_cast<int64_t>(prompts[i].size()) > context_length()) {
      fail(ErrorCode::kInvalidArgument, "prompt {} has {} tokens, the model's context {}: shorten it", i,
           prompts[i].size(), context_length());
    }
    for (int32_t id : prompts[i]) {
      if (id < 0 || id >= vocab) {
        fail(ErrorCode::kInvalidArgument, "prompt {} holds token id {}, the model's vocabulary has {}", i, id,
             vocab);
      }
    }
  }
  if (prompts.empty()) return {};
  GenerateSpeed unused;
  Generation generation(*state_, prompts, options, stream);
  generation.run(speed ? *speed : unused);
  return generation.results();
}

}  // namespace lowbit
