// Sampling on a GPU, as ops/sampling.h describes it. All pointers are to the GPU's memory; GpuSampling in
// that header takes it.
#pragma once

#include "ops/attention_args.h"
#include "ops/cuda/elementwise_gpu.h"
#include "ops/sampling_args.h"

#include <cstdint>

namespace lowbit {

constexpr int kSamplingBins = 1024;   // of a histogram over the logits of a row
constexpr int kSamplingChunk = 2048;  // logits of a row that a block takes
constexpr int64_t sampling_chunks(int64_t vocab) { return (vocab + kSamplingChunk - 1) / kSamplingChunk; }
constexpr int64_t seen_words(int64_t vocab) { return (vocab + 31) / 32; }

// What a row's blocks tell each other. Zero at first but for `random`, and when a token has been chosen but
// for `random`, `cut` and the bins.
struct GpuSamplingState {
  uint64_t random = 0;
  unsigned long long cut = 0;           // the least rank of a candidate
  uint32_t depth = 0;                   // the smallest finite logit, larger for a smaller one
  uint32_t arrivals[3] = {};            // of blocks in `histogram`, `list` and what chooses the token
  uint32_t listed = 0;                  // ranks in the list
  int32_t first_bin = 0, last_bin = 0;  // whose ranks are to be listed
};

struct GpuSamplingArgs {
  float* logits = nullptr;  // [rows, vocab]; penalties are written into them
  int64_t rows = 0, vocab = 0;
  SamplingRule rule;
  double factor = 0;                   // weight_factor of the temperature, if the rule draws
  unsigned long long* best = nullptr;  // [rows], zero before; then the rank of the token chosen
  GpuSamplingState* states = nullptr;  // [rows]
  uint32_t* seen = nullptr;  // [rows, seen_words(vocab)], bit id % 32 of word id / 32; null: no penalty
  unsigned long long* histograms = nullptr;  // [rows][counts, weights][kSamplingBins], zero before and after
  unsigned long long* list = nullptr;        // [rows, vocab]
  unsigned long long* sums = nullptr;        // [rows, sampling_chunks(vocab)]
};
// best[r]: the rank of the row's token; not finite where its largest logit is not.
void gpu_sample(const GpuSamplingArgs& args, void* stream);

// A token and the step that chose it in one word: who polls this machine's memory for it sees both or
// neither, and needs no event of the queue. The step comes first, from 1 on: zero is no word.
constexpr uint64_t history_word(int64_t step, int32_t token) {
  return static_cast<uint64_t>(step + 1) << 32 | static_cast<uint32_t>(token);
}
constexpr bool is_of_step(uint64_t word, int64_t step) {
  return word >> 32 == (static_cast<uint64_t>(step + 1) & 0xffffffffu);
}
constexpr int32_t token_of(uint64_t word) { return static_cast<int32_t>(static_cast<uint32_t>(word)); }

// From one decoding step to the next, row by row, as soon as a row has its token: the token becomes its id,
// its position moves on, and `hidden` gets the id's embedding. The token is noted among those seen, where
// there is a penalty, and kept at history [step % history_steps][rows], which may be this machine's memory if
// it is pinned: -1 where no logit, or an infinite one, was the largest (the id is 0 then). A sequence at the
// end of its cache stays there.
struct GpuAdvanceArgs {
  int32_t *ids = nullptr, *positions = nullptr;  // [rows]
  AttentionSequence* sequences = nullptr;        // [rows], of the same positions
  uint64_t* history = nullptr;                   // see history_word
  int64_t* steps = nullptr;                      // [rows]; of each row, which others need not wait for
  int64_t history_steps = 1;
  GpuEmbeddingTable table;
  float* hidden = nullptr;  // [rows, table.width], or null: no embedding
};
// The same, and then what GpuAdvanceArgs says; best[r] is zero again.
void gpu_sample(const GpuSamplingArgs& args, const GpuAdvanceArgs& next, void* stream);

// As argmax in ops/softmax.h; with only_finite also -1 where the largest is infinite.
void gpu_argmax(const float* x, int64_t rows, int64_t vocab, int32_t* out, bool only_finite, void* stream);

}  // namespace lowbit
