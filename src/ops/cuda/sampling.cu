// A row is cut into chunks, a block each. Drawing with a cut takes four kernels, each of which leaves what
// the next one needs; where a row must be looked at as a whole, the last of its blocks does it.
//
//   best       penalties; the largest and the smallest logit
//   histogram  numbers and weights of tokens in bins between the two; then which bins hold the cuts
//   list       the ranks in these bins; then the cut itself: the least rank of a candidate
//   draw       the candidates' weights by chunk; then the chunk, and the token in it, where the point lies
//
// Without top-k and top-p only the first and the last run, for the largest logit only the first. All sums are
// of whole numbers, so the order of blocks changes nothing. The row's last block of the last kernel also
// makes the next decoding step ready, where there is to be one.
#include "ops/cuda/device.cuh"
#include "ops/cuda/embedding.cuh"
#include "ops/cuda/sampling_gpu.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

namespace lowbit {
namespace {

using Word = unsigned long long;  // what 64-bit atomics take

constexpr int kThreads = 256, kRowThreads = 1024;
constexpr int kEach = kSamplingChunk / kThreads;
constexpr int kBinBits = 10;
static_assert(1 << kBinBits == kSamplingBins);

__device__ inline Word max_of_warp(Word value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    value = max(value, __shfl_xor_sync(0xffffffffu, value, distance));
  return value;
}

// A thread's logits of its block's chunk, kThreads apart; NaN behind the row's end.
__device__ inline void load_chunk(const GpuSamplingArgs& args, float (&logits)[kEach]) {
  const float* const row = args.logits + blockIdx.y * args.vocab;
  const int first = blockIdx.x * kSamplingChunk + threadIdx.x;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int id = first + j * kThreads;
    logits[j] = id < args.vocab ? __ldcg(row + id) : NAN;
  }
}
__device__ inline int id_in_chunk(int j) { return blockIdx.x * kSamplingChunk + threadIdx.x + j * kThreads; }

struct Located {
  int index;    // -1: the sum of all is no larger than the point
  Word before;  // the sum of what stands before it
};
struct Room {
  Word sums[kThreads / 32];
  Located located;
  int is_last;
};

// The first index at which the sum of amount(0) ... amount(index) is larger than `point`, the same in every
// thread.
template <class Amount>
__device__ Located locate(int count, Word point, const Amount& amount, Room& room) {
  const int each = (count + kThreads - 1) / kThreads;
  const int begin = threadIdx.x * each, end = min(begin + each, count);
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Word mine = 0;
  for (int i = begin; i < end; ++i) mine += amount(i);
  Word before = mine;
#pragma unroll
  for (unsigned distance = 1; distance < 32; distance *= 2) {
    const Word other = __shfl_up_sync(0xffffffffu, before, distance);
    if (lane >= distance) before += other;
  }
  __syncthreads();  // room may still be read
  if (lane == 31) room.sums[warp] = before;
  if (threadIdx.x == 0) room.located = {-1, 0};
  __syncthreads();
  for (unsigned i = 0; i < warp; ++i) before += room.sums[i];
  before -= mine;
  if (point >= before && point - before < mine) {
    for (int i = begin; i < end; ++i) {
      const Word here = amount(i);
      if (point - before < here) {
        room.located = {i, before};
        break;
      }
      before += here;
    }
  }
  __syncthreads();
  return room.located;
}

template <class Amount>
__device__ Word sum_of(int count, const Amount& amount, Room& room) {
  Word sum = 0;
  for (int i = threadIdx.x; i < count; i += kThreads) sum += amount(i);
  return block_sum(sum, room.sums);
}

// Whether this block is the last of its row to come here: it then sees what the others wrote.
__device__ bool is_last_block(uint32_t& arrivals, Room& room) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) room.is_last = atomicInc(&arrivals, gridDim.x - 1) == gridDim.x - 1;
  __syncthreads();
  if (room.is_last) __threadfence();
  return room.is_last;
}

// The largest value of a block, the same in every thread.
__device__ Word max_of_block(Word value, Room& room) {
  value = max_of_warp(value);
  __syncthreads();  // room may still be read
  if (threadIdx.x % 32 == 0) room.sums[threadIdx.x / 32] = value;
  __syncthreads();
  for (int i = 0; i < kThreads / 32; ++i) value = max(value, room.sums[i]);
  return value;
}

// What polls this machine's memory sees a word as a whole; nothing else is ordered by it.
__device__ inline void publish(uint64_t* to, uint64_t word) {
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}

// By the row's last block of the last kernel, for the token whose rank has been chosen: see GpuAdvanceArgs.
// The row's other blocks have read what is changed here. The bookkeeping is the last thread's, which has no
// part in short rows of the table, so that neither waits for the other's loads.
__device__ void advance(const GpuSamplingArgs& args, const GpuAdvanceArgs& next, Word chosen) {
  const int64_t row = blockIdx.y;
  const int32_t token = is_finite_rank(chosen) ? id_of_rank(chosen) : -1, id = max(0, token);
  if (threadIdx.x == kThreads - 1) {
    AttentionSequence& sequence = next.sequences[row];
    const int64_t step = next.steps[row], position = sequence.position, capacity = sequence.capacity;
    publish(next.history + step % next.history_steps * args.rows + row, history_word(step, token));
    next.steps[row] = step + 1;
    next.ids[row] = id;
    args.best[row] = 0;
    if (args.seen && token >= 0)
      atomicOr(args.seen + row * seen_words(args.vocab) + token / 32, 1u << token % 32);
    // A sequence that has ended may be computed on; it must not leave its cache.
    if (position + 1 < capacity) {
      sequence.position = position + 1;
      next.positions[row] = static_cast<int32_t>(position + 1);
    }
  }
  if (next.hidden) embed_row(next.table, id, next.hidden + row * next.table.width);
}

// next: nothing where another kernel chooses the token, or nothing is to come.
__global__ void __launch_bounds__(kThreads)
    best_kernel(const __grid_constant__ GpuSamplingArgs args, const __grid_constant__ GpuAdvanceArgs next) {
  __shared__ Room room;
  begin_at_once();
  float logits[kEach];
  load_chunk(args, logits);
  Word best = 0;
  uint32_t depth = 0;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int id = id_in_chunk(j);
    if (args.seen && id < args.vocab) {
      const uint32_t word = __ldcg(args.seen + blockIdx.y * seen_words(args.vocab) + id / 32);
      if (word >> id % 32 & 1) {
        logits[j] = penalized(logits[j], args.rule.repetition_penalty);
        args.logits[blockIdx.y * args.vocab + id] = logits[j];
      }
    }
    if (isnan(logits[j])) continue;
    const Word rank = rank_of(logits[j], id);
    best = max(best, rank);
    if (!isinf(logits[j])) depth = max(depth, ~static_cast<uint32_t>(rank >> 32));
  }
  if (args.histograms) {
    depth = __reduce_max_sync(0xffffffffu, depth);
    if (threadIdx.x % 32 == 0 && depth != 0) atomicMax(&args.states[blockIdx.y].depth, depth);
  }
  best = max_of_block(best, room);
  if (threadIdx.x == 0 && best != 0) atomicMax(args.best + blockIdx.y, best);
  if (!next.ids || !is_last_block(args.states[blockIdx.y].arrivals[2], room)) return;
  best = __ldcg(args.best + blockIdx.y);
  __syncthreads();  // all threads have it
  advance(args, next, best);
}

// Numbers of tokens and sums of their weights, a sum in two words, since shared memory adds words of 32 bits.
struct Histogram {
  uint32_t counts[kSamplingBins], low[kSamplingBins], high[kSamplingBins];

  __device__ void clear() {
    for (int i = threadIdx.x; i < kSamplingBins; i += kThreads) counts[i] = low[i] = high[i] = 0;
  }
  __device__ void add(int bin, Word weight) {
    atomicAdd(&counts[bin], 1u);
    const uint32_t part = static_cast<uint32_t>(weight);
    const uint32_t sum = atomicAdd(&low[bin], part) + part;
    const uint32_t carried = static_cast<uint32_t>(weight >> 32) + (sum < part);
    if (carried != 0) atomicAdd(&high[bin], carried);
  }
  __device__ Word weight(int bin) const { return static_cast<Word>(high[bin]) << 32 | low[bin]; }
};

// What a row's kernels after the first know of it.
struct Row {
  const GpuSamplingArgs& args;
  GpuSamplingState& state;
  Word best;
  float most, scale;

  // Between the smallest logit, or the least that has a weight, and the largest.
  __device__ explicit Row(const GpuSamplingArgs& given) : args(given), state(given.states[blockIdx.y]) {
    best = __ldcg(args.best + blockIdx.y);
    most = logit_of_rank(best);
    const float least = logit_of_rank(static_cast<Word>(~__ldcg(&state.depth)) << 32);
    const float range = fminf(most - least, 32 * args.rule.temperature);
    scale = range > 0 ? fminf(kSamplingBins / range, FLT_MAX) : 0;
  }
  __device__ Word weight(float logit) const { return sampling_weight(most, logit, args.factor); }
  // Of a logit that has a weight; no smaller for a smaller logit.
  __device__ int bin(float logit) const {
    return min(kSamplingBins - 1, static_cast<int>((most - logit) * scale));
  }
  __device__ Word* counts() const { return args.histograms + blockIdx.y * 2 * kSamplingBins; }
  __device__ Word* weights() const { return counts() + kSamplingBins; }
  __device__ Word* list() const { return args.list + blockIdx.y * args.vocab; }
  __device__ Word count_in(int bin) const { return __ldcg(counts() + bin); }
  __device__ Word weight_in(int bin) const { return __ldcg(weights() + bin); }

  // The bin in which the k-th token is; -1 where all tokens are fewer.
  __device__ Located bin_of_top_k(Room& room) const {
    if (args.rule.top_k <= 0) return {-1, 0};
    return locate(
        kSamplingBins, static_cast<Word>(args.rule.top_k) - 1, [&](int i) { return count_in(i); }, room);
  }
  // The bin in which the weights reach `need`.
  __device__ Located bin_of_weight(Word need, Room& room) const {
    return locate(
        kSamplingBins, need - 1, [&](int i) { return weight_in(i); }, room);
  }
  __device__ Word sum_before(int bin, Room& room) const {
    return sum_of(
        bin, [&](int i) { return weight_in(i); }, room);
  }
};

__global__ void __launch_bounds__(kThreads) histogram_kernel(const __grid_constant__ GpuSamplingArgs args) {
  __shared__ Histogram bins;
  __shared__ Room room;
  bins.clear();
  begin_at_once();
  const Row row(args);
  float logits[kEach];
  load_chunk(args, logits);
  if (!is_finite_rank(row.best)) return;
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    if (const Word weight = row.weight(logits[j])) bins.add(row.bin(logits[j]), weight);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kSamplingBins; i += kThreads) {
    if (bins.counts[i] == 0) continue;
    atomicAdd(row.counts() + i, static_cast<Word>(bins.counts[i]));
    atomicAdd(row.weights() + i, bins.weight(i));
  }
  if (!is_last_block(row.state.arrivals[0], room)) return;

  // With both cuts the second one is somewhere among the tokens that the first one leaves.
  int first = 0, last = row.bin_of_top_k(room).index;
  if (args.rule.top_p == 1) {
    first = last;
  } else if (last < 0) {
    const Word need = mass_needed(row.sum_before(kSamplingBins, room), args.rule.top_p);
    first = last = row.bin_of_weight(need, room).index;
  }
  if (threadIdx.x == 0) row.state.first_bin = first, row.state.last_bin = last;
}

// Of the ranks in `list` that are at least `least` and in the bin: with which one the amounts, from the
// largest rank on, reach `need`, which they do. What comes out is no larger than that rank and larger than
// the next. Each round cuts the interval of ranks into kSamplingBins and goes on in one of them.
template <class Amount>
__device__ Word cut_in_bin(const Row& row, int count, int bin, Word least, Word need, const Amount& amount,
                           Histogram& bins, Room& room) {
  const Word* const list = row.list();
  Word high = 0, inverted = 0;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const Word rank = __ldcg(list + i);
    if (rank < least || row.bin(logit_of_rank(rank)) != bin) continue;
    high = max(high, rank);
    inverted = max(inverted, ~rank);
  }
  high = max_of_block(high, room);
  Word low = ~max_of_block(inverted, room);
  for (;;) {
    const int shift = max(0, 64 - __clzll(static_cast<long long>(high - low)) - kBinBits);
    __syncthreads();
    bins.clear();
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const Word rank = __ldcg(list + i);
      if (rank >= low && rank <= high)
        bins.add(static_cast<int>((high - rank) >> shift), row.weight(logit_of_rank(rank)));
    }
    __syncthreads();
    const Located part = locate(
        kSamplingBins, need - 1, [&](int i) { return amount(bins, i); }, room);
    need -= part.before;
    high -= static_cast<Word>(part.index) << shift;
    const Word width = (Word{1} << shift) - 1;
    if (high - low > width) low = high - width;
    if (shift == 0 || bins.counts[part.index] == 1) return low;
  }
}

// By the last block of a row, whose list is complete.
__device__ Word cut_of(const Row& row, Histogram& bins, Room& room) {
  const SamplingRule& rule = row.args.rule;
  const int count = static_cast<int>(__ldcg(&row.state.listed));
  Word cut = 0, sum = 0;
  const Located top = row.bin_of_top_k(room);
  if (top.index >= 0) {
    cut = cut_in_bin(
        row, count, top.index, 0, static_cast<Word>(rule.top_k) - top.before,
        [](const Histogram& h, int i) { return static_cast<Word>(h.counts[i]); }, bins, room);
  }
  if (rule.top_p == 1) return cut;
  if (top.index >= 0) {
    auto weight_left = [&](int i) -> Word {
      const Word rank = __ldcg(row.list() + i);
      const float logit = logit_of_rank(rank);
      return rank >= cut && row.bin(logit) == top.index ? row.weight(logit) : 0;
    };
    sum = row.sum_before(top.index, room);
    sum += sum_of(count, weight_left, room);
  } else {
    sum = row.sum_before(kSamplingBins, room);
  }
  const Word need = mass_needed(sum, rule.top_p);
  const Located nucleus = row.bin_of_weight(need, room);
  return cut_in_bin(
      row, count, nucleus.index, cut, need - nucleus.before,
      [](const Histogram& h, int i) { return h.weight(i); }, bins, room);
}

__global__ void __launch_bounds__(kThreads) list_kernel(const __grid_constant__ GpuSamplingArgs args) {
  __shared__ Histogram bins;
  __shared__ Room room;
  __shared__ Word found[kSamplingChunk];
  __shared__ uint32_t found_count, found_at;
  if (threadIdx.x == 0) found_count = 0;
  begin_at_once();
  const Row row(args);
  float logits[kEach];
  load_chunk(args, logits);
  if (!is_finite_rank(row.best)) return;
  const int first = __ldcg(&row.state.first_bin), last = __ldcg(&row.state.last_bin);
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    if (row.weight(logits[j]) == 0) continue;
    const int bin = row.bin(logits[j]);
    if (bin >= first && bin <= last) found[atomicAdd(&found_count, 1u)] = rank_of(logits[j], id_in_chunk(j));
  }
  __syncthreads();
  if (threadIdx.x == 0 && found_count > 0) found_at = atomicAdd(&row.state.listed, found_count);
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < found_count; i += kThreads) row.list()[found_at + i] = found[i];
  if (!is_last_block(row.state.arrivals[1], room)) return;

  const Word cut = cut_of(row, bins, room);
  __syncthreads();
  if (threadIdx.x == 0) row.state.cut = cut, row.state.listed = 0;
  for (int i = threadIdx.x; i < 2 * kSamplingBins; i += kThreads) row.counts()[i] = 0;
}

__global__ void __launch_bounds__(kThreads)
    draw_kernel(const __grid_constant__ GpuSamplingArgs args, const __grid_constant__ GpuAdvanceArgs next) {
  __shared__ Room room;
  begin_at_once();
  const Row row(args);
  float logits[kEach];
  load_chunk(args, logits);
  const Word cut = __ldcg(&row.state.cut);
  auto weight_of = [&](float logit, int id) -> Word {
    const Word weight = row.weight(logit);
    return weight != 0 && rank_of(logit, id) >= cut ? weight : 0;
  };
  Word sum = 0;
#pragma unroll
  for (int j = 0; j < kEach; ++j) sum += weight_of(logits[j], id_in_chunk(j));
  sum = block_sum(sum, room.sums);
  const int chunks = static_cast<int>(gridDim.x);
  Word* const sums = args.sums + static_cast<int64_t>(blockIdx.y) * chunks;
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
  if (!is_last_block(row.state.arrivals[2], room)) return;

  Word chosen = row.best;  // where it is not finite, no token has a weight
  if (is_finite_rank(chosen)) {
    auto sum_of_chunk = [&](int i) { return __ldcg(sums + i); };
    uint64_t random = row.state.random;
    const Word point = high_product(next_random(random), sum_of(chunks, sum_of_chunk, room));
    const Located chunk = locate(chunks, point, sum_of_chunk, room);
    const int64_t first = static_cast<int64_t>(chunk.index) * kSamplingChunk;
    const float* const there = args.logits + blockIdx.y * args.vocab + first;
    const int count = static_cast<int>(min(args.vocab - first, static_cast<int64_t>(kSamplingChunk)));
    const Located token = locate(
        count, point - chunk.before,
        [&](int i) { return weight_of(__ldcg(there + i), static_cast<int>(first) + i); }, room);
    chosen = rank_of(__ldcg(there + token.index), static_cast<int>(first) + token.index);
    if (threadIdx.x == 0) row.state.random = random;
  }
  if (threadIdx.x == 0) row.state.depth = 0;
  if (next.ids) {
    advance(args, next, chosen);
  } else if (threadIdx.x == 0) {
    args.best[blockIdx.y] = chosen;
  }
}

// A block for each row: for many of them.
__global__ void argmax_kernel(const float* x, int64_t vocab, int32_t* out, bool only_finite) {
  follow_predecessor();
  __shared__ Word ranks[kRowThreads / 32];
  const float* const row = x + blockIdx.x * vocab;
  Word best = 0;
  for (int64_t i = threadIdx.x; i < vocab; i += kRowThreads) {
    const float value = row[i];
    if (!isnan(value)) best = max(best, static_cast<Word>(rank_of(value, static_cast<int32_t>(i))));
  }
  best = max_of_warp(best);
  if (threadIdx.x % 32 == 0) ranks[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  best = max_of_warp(ranks[threadIdx.x]);
  if (threadIdx.x == 0)
    out[blockIdx.x] = best == 0 || (only_finite && !is_finite_rank(best)) ? -1 : id_of_rank(best);
}

}  // namespace

void gpu_sample(const GpuSamplingArgs& args, void* stream) { gpu_sample(args, {}, stream); }

void gpu_sample(const GpuSamplingArgs& args, const GpuAdvanceArgs& next, void* stream) {
  const dim3 grid(static_cast<unsigned>(sampling_chunks(args.vocab)), static_cast<unsigned>(args.rows));
  const bool draws = args.rule.draws();
  launch(best_kernel, grid, dim3(kThreads), 0, stream, args, draws ? GpuAdvanceArgs{} : next);
  if (!draws) return;
  if (args.histograms) {
    launch(histogram_kernel, grid, dim3(kThreads), 0, stream, args);
    launch(list_kernel, grid, dim3(kThreads), 0, stream, args);
  }
  launch(draw_kernel, grid, dim3(kThreads), 0, stream, args, next);
}

void gpu_argmax(const float* x, int64_t rows, int64_t vocab, int32_t* out, bool only_finite, void* stream) {
  launch(argmax_kernel, dim3(static_cast<unsigned>(rows)), dim3(kRowThreads), 0, stream, x, vocab, out,
         only_finite);
}

}  // namespace lowbit
