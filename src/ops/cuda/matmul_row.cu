// The product of one row: decoding a single sequence. Most of its time is not the weights' but that of a few
// hundred instructions which wait for each other, from the predecessor's end to the output; so whatever can
// be is done before it.
#include "ops/cuda/matmul_fetch.cuh"
#include "ops/cuda/matmul_row.h"

namespace lowbit {
namespace {

// x in shared memory: BF16, its sums over groups, and sums of squares.
__host__ __device__ constexpr int sums_of_row(int in, int inputs) {
  return (static_cast<int>(padded_inputs(in)) + inputs - 1) / inputs;
}
struct Room {
  int rings, partial, x, sums, squares, total;  // partial: sums of two groups of tiles
};
template <class K>
__host__ __device__ constexpr Room room_of(int in, int warps, int slots) {
  const int rings = K::kTable ? PairTable::kBytes : 0;
  const int partial = rings + warps * slots * K::kTiles * K::kUnitBytes;
  const int x = partial + 2 * warps * K::kTiles * kTileOutputs * 4;
  const int sums = x + static_cast<int>(padded_inputs(in)) * 2;
  const int squares = sums + sums_of_row(in, kBlockInputs) * 4;
  return {rings, partial, x, sums, squares, squares + sums_of_row(in, kSquaresInputs) * 4};
}

// What is made of x: BF16, sums over groups, sums of squares.
struct SharedX {
  uint16_t* x;
  float *sums, *squares;
};

// Pieces of kWidth columns that each thread asks for at once, by all warps, one pass over x. fours: of a
// piece. squares: null where x is not normed.
template <class K, int kPieces, int kWidth>
__device__ inline void keep_pieces(const uint2 (&fours)[kPieces][kWidth / 4], const float* squares, int first,
                                   int stride, int padded, const SharedX& to) {
  const int lane = threadIdx.x % 32;
  constexpr int kLanes = (K::kFine ? kBlockInputs : kUnitInputs) / kWidth;  // of a group
  float sums[kPieces];
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
    const int i = first + p * stride;
    if (i < padded) {
#pragma unroll
      for (int j = 0; j < kWidth / 4; ++j) *reinterpret_cast<uint2*>(to.x + i + 4 * j) = fours[p][j];
    }
    sums[p] = sum_of_four(fours[p][0].x, fours[p][0].y);
    if constexpr (kWidth == 8) sums[p] += sum_of_four(fours[p][1].x, fours[p][1].y);
  }
  if constexpr (K::kSums) {
    add_up<kLanes>(sums);
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      const int i = first + p * stride;
      if (i < padded && lane % kLanes == 0) to.sums[i / (kWidth * kLanes)] = sums[p];
    }
  }
  if (squares) {
    float added[kPieces];
#pragma unroll
    for (int p = 0; p < kPieces; ++p) added[p] = squares[p];
    add_up<32>(added);
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      const int i = first + p * stride;
      if (i < padded && lane == 0) to.squares[i / kSquaresInputs] = added[p];
    }
  }
}

// A block makes several groups side by side where they share a table, each by a team of warps: plan.split has
// as many spans.
struct Team {
  int first_warp, warps, group, groups;  // of plan.groups; to the next group
};
template <class K>
__device__ inline Team team_of(const Plan& plan) {
  const int warps = static_cast<int>(blockDim.x / 32), first = static_cast<int>(blockIdx.x),
            blocks = static_cast<int>(gridDim.x);
  if constexpr (!K::kTable) return {0, warps, first, blocks};
  const int team = static_cast<int>(threadIdx.x / 32) / plan.split.spans();
  return {team * plan.split.spans(), plan.split.spans(), first + team * blocks,
          warps / plan.split.spans() * blocks};
}
template <class K>
__device__ inline void wait_for_team(const Team& team) {
  if constexpr (!K::kTable) {
    __syncthreads();
  } else {
    __syncwarp();  // lanes that come one after the other would count as several warps
    asm volatile("bar.sync %0, %1;" ::"r"(1 + team.first_warp / team.warps), "r"(team.warps * 32) : "memory");
  }
}

// A row of x is the operand's first column, which these lanes hold. The others, whose sums nobody reads, need
// not ask for theirs.
__device__ inline bool holds_row() { return threadIdx.x % 32 < 4; }

// A unit of codes that point into a table, one of its groups after the other, which takes few registers.
// x: where the thread's part begins; now_x: of a group, zeros where the lane holds none. What such a product
// waits for is shared memory, which gives a warp 32 words a cycle; so the first of a group's four words is
// looked up in registers meanwhile. (More of them, or another one, and it is slower.)
template <class K>
__device__ inline void multiply_looked_up(const char* slot, const uint4* x, const PairTable& pairs,
                                          const CodeTable& codes, uint4 (&now_x)[K::kBlocks],
                                          float (&total)[K::kTiles][1][4]) {
  static_assert(K::kTable && K::kOneRow && K::kGroups == K::kLoads);
  const int lane = threadIdx.x % 32;
  const char *pieces = slot + lane * 16, *scales = slot + K::kLoads * 512 + lane * 4;
#pragma unroll 1
  for (int group = 0; group < K::kGroups; ++group) {
    if (holds_row()) {
#pragma unroll
      for (int block = 0; block < K::kGroupBlocks; ++block) now_x[block] = x[block * (kBlockInputs / 8)];
    }
    uint4 data[K::kTiles];
    uint32_t scale[K::kTiles];
#pragma unroll
    for (int t = 0; t < K::kTiles; ++t) {
      data[t] = *reinterpret_cast<const uint4*>(pieces + t * K::kUnitBytes);
      scale[t] = *reinterpret_cast<const uint32_t*>(scales + t * K::kUnitBytes);
    }
    float sum[K::kTiles][4] = {};
#pragma unroll
    for (int step = 0; step < 4; ++step) {
#pragma unroll
      for (int t = 0; t < K::kTiles; ++t) {
        Operand a;
        if (step == 0) {
          look_up(word_of(data[t], step), codes, a.pair);
        } else {
          look_up(word_of(data[t], step), pairs, a.pair);
        }
        const uint4& some = now_x[step / 2];
        multiply_add(sum[t], a, step % 2 ? some.z : some.x, step % 2 ? some.w : some.y);
      }
    }
    constexpr float kNoSums[2] = {};
#pragma unroll
    for (int t = 0; t < K::kTiles; ++t) fold<K>(total[t][0], sum[t], kNoSums, scale[t], 0);
    x += K::kGroupBlocks * (kBlockInputs / 8);
    pieces += 512;
    scales += K::kGroupWords * 128;
  }
}

// Where an output of a group goes, and what is added to it.
struct Output {
  char* to = nullptr;  // null: it is none
  bool adds = false, is_f32 = false;
  float bias = 0, second_bias = 0;
};
template <class K>
__device__ inline Output output_of(const GpuDecodeArgs& args, const Plan& plan, int index, int group) {
  Output output;
  if (group >= plan.groups || index >= (args.swiglu ? kPairs<K> : K::kTiles) * kTileOutputs) return output;
  const Place place = place_of<K>(args, plan, group);
  const GpuMatrix& matrix = args.matrix[place.matrix];
  const int64_t n = place.first_tile * kTileOutputs + index;
  if (n >= matrix.out) return output;
  if (matrix.bias) output.bias = matrix.bias[n];
  if (args.swiglu && args.matrix[1].bias) output.second_bias = args.matrix[1].bias[n];
  output.adds = matrix.add_to;
  output.is_f32 = output.adds || matrix.y.dtype == DType::kF32;
  output.to = static_cast<char*>(output.adds ? matrix.add_to : matrix.y.data) + n * (output.is_f32 ? 4 : 2);
  return output;
}

// More threads than a block has, where kernels that follow each other are to share a multiprocessor's
// registers: five blocks of gate and up (with a table one of five teams, which waits beside `o`); q, k and v,
// which wait beside the layer before.
template <class K, bool kPlain>
constexpr int kBound = K::kTiles == 2 && !(K::kTable && kPlain) ? 640
                       : K::kFine                               ? kMostWarps * 32
                                                                : 896;

// kPlain: a group for each block, and no order of columns.
template <class K, bool kPlain>
__global__ void __launch_bounds__(kBound<K, kPlain>, 1)
    row_kernel(const __grid_constant__ GpuDecodeArgs args, const __grid_constant__ Plan plan) {
  constexpr int kPieces = K::kTiles == 2 ? 3 : 1;  // of four columns of the hidden state, asked for at once
  extern __shared__ __align__(16) char shared[];
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4,
            c = lane % 4;
  const int in = static_cast<int>(args.in), padded = static_cast<int>(padded_inputs(in));
  const int mine = threadIdx.x * 4, stride = blockDim.x * 4;
  const Team team = team_of<K>(plan);
  const int index = threadIdx.x - team.first_warp * 32;  // of an output
  const Room room = room_of<K>(in, warps, plan.slots);
  const Share share = share_of_span<K>(in, warp - team.first_warp, team.warps, team.group, team.groups);
  Fetcher<K, kPlain> fetcher(args, plan, share, shared + room.rings);
  if constexpr (K::kTable) PairTable::fill(shared, args.table);
  Output output = output_of<K>(args, plan, index, team.group);

  const float *const hidden = kept(args.hidden), *norm_weight = kept(args.norm_weight);
  const uint16_t* const x = kept(args.x);
  const int32_t* const order = kPlain ? nullptr : kept(args.column_order);
  const float epsilon = kept(args.epsilon);
  const SharedX to{reinterpret_cast<uint16_t*>(shared + room.x), reinterpret_cast<float*>(shared + room.sums),
                   reinterpret_cast<float*>(shared + room.squares)};
  auto read_pieces = [&](const float* from, int first, float4(&pieces)[kPieces]) {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      const int i = first + p * stride;
      pieces[p] = from && i < in ? read_four(from, order, i) : float4{};
    }
  };
  float4 norm[kPieces];
  read_pieces(hidden ? norm_weight : nullptr, mine, norm);

  follow_predecessor(args);

  float old = output.adds ? *reinterpret_cast<const float*>(output.to) : 0;
  if (hidden) {
#pragma unroll 1
    for (int first = mine; first - lane * 4 < padded; first += kPieces * stride) {  // whole warps
      float4 values[kPieces];
      read_pieces(hidden, first, values);
      if (first != mine) read_pieces(norm_weight, first, norm);
      uint2 fours[kPieces][1];
      float squares[kPieces];
#pragma unroll
      for (int p = 0; p < kPieces; ++p) {
        fours[p][0] = weighted(values[p], norm[p]);
        squares[p] = squares_of_four(values[p]);
      }
      keep_pieces<K, kPieces, 4>(fours, squares, first, stride, padded, to);
    }
  } else if (padded <= stride) {
    if (mine - lane * 4 < padded) {
      const uint2 fours[1][1] = {{mine < in ? read_four(x, order, mine) : uint2{}}};
      keep_pieces<K, 1, 4>(fours, nullptr, mine, stride, padded, to);
    }
  } else {
    constexpr int kEights = 3;
#pragma unroll 1
    for (int first = 2 * mine; first - lane * 8 < padded; first += kEights * 2 * stride) {
      uint2 fours[kEights][2] = {};
#pragma unroll
      for (int p = 0; p < kEights; ++p) {
        const int i = first + p * 2 * stride;
        if (i >= in) continue;
        if (order) {
          fours[p][0] = read_four(x, order, i);
          fours[p][1] = read_four(x, order, i + 4);
        } else {
          const uint4 eight = *reinterpret_cast<const uint4*>(x + i);
          fours[p][0] = {eight.x, eight.y};
          fours[p][1] = {eight.z, eight.w};
        }
      }
      keep_pieces<K, kEights, 8>(fours, nullptr, first, 2 * stride, padded, to);
    }
  }
  __syncthreads();

  X<K> now_x = {};
  char* slot = fetcher.ring;
  int turn = 0;
  const uint32_t middle = 0x10001u << (args.bits - 1);
#pragma unroll 1
  for (int group = team.group; (kPlain && !K::kTable) || group < plan.groups;
       group += team.groups, turn ^= 1) {
    const bool has_zeros = kPlain ? fetcher.has_zeros
                                  : args.matrix[place_of<K>(args, plan, group).matrix].zero_points != nullptr;
    float total[K::kTiles][1][4] = {};
    const uint4* x_at = reinterpret_cast<const uint4*>(to.x + share.begin * K::kInputs + 8 * c);
    const float* sums_at = to.sums + share.begin * K::kGroups;
#pragma unroll 1
    for (int unit = share.begin; unit < share.end; ++unit) {
      wait_for_copies<K::kAhead - 1>();
      if constexpr (K::kTable) {
        multiply_looked_up<K>(slot, x_at, PairTable{shared}, args.table, now_x.data[0], total);
      } else {
        if (!K::kFloats || holds_row()) {
#pragma unroll
          for (int block = 0; block < K::kBlocks; ++block)
            now_x.data[0][block] = x_at[block * (kBlockInputs / 8)];
        }
        if constexpr (K::kSums) {
#pragma unroll
          for (int i = 0; i < K::kGroups; ++i) now_x.sums[0][i][0] = now_x.sums[0][i][1] = sums_at[i];
        }
        Loaded<K> now[K::kTiles];
        fetcher.read(slot, has_zeros, middle, now);
        multiply_unit<K>(now, now_x, args.table, total);
      }
      x_at += K::kInputs / 8;
      sums_at += K::kGroups;
      fetcher.next();
      slot = fetcher.following(slot);
    }

    constexpr int kOutputs = K::kTiles * kTileOutputs;
    float* const partial =
        reinterpret_cast<float*>(shared + room.partial) + (turn * warps + team.first_warp) * kOutputs;
    if (c == 0) {
#pragma unroll
      for (int t = 0; t < K::kTiles; ++t) {
        float* const sums = partial + (warp - team.first_warp) * kOutputs + t * kTileOutputs + g;
        sums[0] = total[t][0][0];
        sums[8] = total[t][0][2];
      }
    }
    float factor = 1;
    if (hidden && warp == team.first_warp) factor = norm_factor(to.squares, in, epsilon);
    wait_for_team<K>(team);  // the next group's sums go to the other half
    if (output.to) {
      auto sum_of = [&](int index) {
        return sum_over_spans(team.warps, plan.split.parts,
                              [&](int span) { return partial[span * kOutputs + index]; });
      };
      float value = sum_of(index) * factor + output.bias;
      if (args.swiglu) {
        const float up = sum_of(index + kPairs<K> * kTileOutputs) * factor + output.second_bias;
        value = gated(value, up);
      }
      if (output.adds) value += old;
      if (output.is_f32) {
        *reinterpret_cast<float*>(output.to) = value;
      } else {
        *reinterpret_cast<uint16_t*>(output.to) = f32_to_bf16(value);
      }
    }
    if constexpr (kPlain) return;
    if (group + team.groups < plan.groups) {
      output = output_of<K>(args, plan, index, group + team.groups);
      old = output.adds ? *reinterpret_cast<const float*>(output.to) : 0;
    }
  }
}

// Takes so much shared memory that no multiprocessor gets more of a launch's many blocks than its share,
// while others that are busy with what comes before get fewer.
void spread(Launch& launch) {
  const int share = (launch.blocks + device().multiprocessors - 1) / device().multiprocessors;
  if (share > 2)
    launch.shared_bytes = std::max(launch.shared_bytes, device().shared_per_multiprocessor / (share + 1) -
                                                            device().reserved_shared + 16);
}

// launch_of, with teams side by side where they share a table: as many as a multiprocessor gets of the
// groups.
template <class K, bool kPlain, class SharedBytes>
Launch row_launch_of(const GpuDecodeArgs& args, const SharedBytes& shared_bytes_of) {
  constexpr auto kKernel = row_kernel<K, kPlain>;
  Launch launch = launch_of<K, kKernel>(args, shared_bytes_of);
  if constexpr (K::kTable) {
    constexpr int kMostTeams = 8;
    const int spans = launch.plan.split.spans(), groups = launch.plan.groups,
              processors = device().multiprocessors;
    int teams =
        std::min({(groups + processors - 1) / processors, kBound<K, kPlain> / 32 / spans, kMostTeams});
    while (teams > 1 && shared_bytes_of(teams * spans, K::kAhead) > device().shared_per_block) --teams;
    launch.warps = teams * spans;
    const int blocks = (groups + teams - 1) / teams;
    launch.blocks = std::min(
        blocks, processors * blocks_at_once<kKernel>(launch.warps, shared_bytes_of(launch.warps, K::kAhead)));
    launch.plan.slots = K::kAhead;
    if (launch.blocks == blocks) launch.plan.slots = std::min(K::kAhead, most_units<K>(args.in, spans));
    launch.shared_bytes = shared_bytes_of(launch.warps, launch.plan.slots);
  }
  return launch;
}
// Groups that a launch makes at once.
int groups_at_once(const Launch& launch) { return launch.warps / launch.plan.split.spans() * launch.blocks; }

template <int kBits, Codes kCodes>
bool launch_for(const GpuDecodeArgs& args, void* stream) {
  const int in = static_cast<int>(args.in);
  auto launch_kind = [&]<int kTiles>() {
    using K = Kind<kBits, kCodes, kTiles, 1, true, true>;
    auto bytes = [in](int warps, int slots) { return room_of<K>(in, warps, slots).total; };
    if (bytes(1, K::kAhead) > device().shared_per_block) return false;
    if (!args.column_order) {
      Launch plain = row_launch_of<K, true>(args, bytes);
      if (groups_at_once(plain) >= plain.plan.groups) {
        spread(plain);
        queue_launch<row_kernel<K, true>>(plain, args, stream);
        return true;
      }
    }
    const Launch looping = row_launch_of<K, false>(args, bytes);
    // A second round that few blocks have costs as much as a whole one: several tiles for a block are faster.
    const int at_once = groups_at_once(looping);
    if (at_once < looping.plan.groups && looping.plan.groups < 2 * at_once) return false;
    queue_launch<row_kernel<K, false>>(looping, args, stream);
    return true;
  };
  // Two tiles at once: half as many reads of x and barriers for the codes of a group, and of gate and up one
  // each. BF16 has bytes enough without.
  const bool are_two = args.swiglu || (kBits != 16 && has_many_tiles(tiles_of(args)));
  return are_two ? launch_kind.template operator()<2>() : launch_kind.template operator()<1>();
}

}  // namespace

bool gpu_matmul_row(const GpuDecodeArgs& args, void* stream) {
  return with_kind(args.bits, args.group_size,
                   [&]<int kBits, Codes kCodes>() { return launch_for<kBits, kCodes>(args, stream); });
}

}  // namespace lowbit
