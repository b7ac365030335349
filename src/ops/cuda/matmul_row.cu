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
  int partial, x, sums, squares, total;  // partial: sums of two groups of tiles
};
template <class K>
__host__ __device__ constexpr Room room_of(int in, int warps, int slots) {
  const int partial = warps * slots * K::kTiles * K::kUnitBytes;
  const int x = partial + 2 * warps * K::kTiles * kTileOutputs * 4;
  const int sums = x + static_cast<int>(padded_inputs(in)) * 2;
  const int squares = sums + sums_of_row(in, kBlockInputs) * 4;
  return {partial, x, sums, squares, squares + sums_of_row(in, kSquaresInputs) * 4};
}

// Of four columns, that a thread asks for at once: of the hidden state (and the norm's weights for the first,
// while the predecessor is at work), of x.
constexpr int kNormPieces = 3, kPieces = 6;

__device__ inline uint2 read_four(const uint16_t* from, const int32_t* order, int i) {
  if (!order) return *reinterpret_cast<const uint2*>(from + i);
  const int4 at = __ldg(reinterpret_cast<const int4*>(order + i));
  return {from[at.x] | static_cast<uint32_t>(from[at.y]) << 16, from[at.z] | static_cast<uint32_t>(from[at.w])
                                                                                 << 16};
}

// To its place, with the sums over groups; by a warp, whose lanes have neighbouring columns.
template <class K>
__device__ inline void keep_four(const uint2& four, int i, uint16_t* x, float* sums) {
  *reinterpret_cast<uint2*>(x + i) = four;
  if constexpr (K::kBits == 4) {
    constexpr int kLanes = K::kFine ? 8 : 32;
    float sum = sum_of_four(four.x, four.y);
#pragma unroll
    for (int distance = 1; distance < kLanes; distance *= 2) sum = with_neighbour(sum, distance);
    if (threadIdx.x % kLanes == 0) sums[i / (4 * kLanes)] = sum;
  }
}

// Where an output of a group goes, and what is added to it.
struct Output {
  char* to = nullptr;  // null: it is none
  bool adds = false, is_f32 = false;
  float bias = 0, second_bias = 0;
};
template <class K>
__device__ inline Output output_of(const GpuDecodeArgs& args, const Plan& plan, int group) {
  Output output;
  const int index = threadIdx.x;
  if (index >= (args.swiglu ? K::kPairs : K::kTiles) * kTileOutputs) return output;
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

// A parameter's first use costs hundreds of cycles.
template <class T>
__device__ inline T* kept(T* pointer) {
  asm volatile("" : "+l"(pointer));
  return pointer;
}
__device__ inline float kept(float value) {
  asm volatile("" : "+f"(value));
  return value;
}

// More threads than a block has, where kernels that follow each other are to share a multiprocessor's
// registers: five blocks of gate and up; q, k and v, which wait beside the layer before.
template <class K>
constexpr int kBound = K::kTiles == 2 ? 640
                       : K::kFine     ? kMostWarps * 32
                                      : 896;

template <class K>
__global__ void __launch_bounds__(kBound<K>, 1)
    row_kernel(const __grid_constant__ GpuDecodeArgs args, const __grid_constant__ Plan plan) {
  extern __shared__ __align__(16) char shared[];
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4,
            c = lane % 4;
  const int in = static_cast<int>(args.in), padded = static_cast<int>(padded_inputs(in));
  const int mine = threadIdx.x * 4, stride = blockDim.x * 4;
  Fetcher<K> fetcher(args, plan, shared);
  Output output = output_of<K>(args, plan, blockIdx.x);

  const float *const hidden = kept(args.hidden), *const norm_weight = kept(args.norm_weight);
  const uint16_t* const x = kept(args.x);
  const int32_t* const order = kept(args.column_order);
  const float epsilon = kept(args.epsilon);
  const Room room = room_of<K>(in, warps, plan.slots);
  uint16_t* const x_shared = reinterpret_cast<uint16_t*>(shared + room.x);
  float* const sums_shared = reinterpret_cast<float*>(shared + room.sums);
  float* const squares_shared = reinterpret_cast<float*>(shared + room.squares);
  float4 norm[kNormPieces] = {};
#pragma unroll
  for (int p = 0; p < kNormPieces; ++p)
    if (hidden && mine + p * stride < in) norm[p] = read_four(norm_weight, order, mine + p * stride);
  fetcher.ask_for_rest();

  // Behind q, k and v comes attention, which reads what is older than they are.
  const bool is_early = args.swiglu || args.matrix[0].add_to;
  if (is_early) let_successor_begin();
  wait_for_predecessor();
  if (!is_early) let_successor_begin();

  float old = output.adds ? *reinterpret_cast<const float*>(output.to) : 0;
  if (hidden) {
#pragma unroll 1
    for (int first = mine; first - lane * 4 < padded; first += kNormPieces * stride) {
      float4 values[kNormPieces] = {};
#pragma unroll
      for (int p = 0; p < kNormPieces; ++p)
        if (first + p * stride < in) values[p] = read_four(hidden, order, first + p * stride);
#pragma unroll
      for (int p = 0; p < kNormPieces; ++p) {
        const int i = first + p * stride;
        if (i - lane * 4 >= padded) break;  // whole warps
        float4 weights = norm[p];
        if (first != mine && i < in) weights = read_four(norm_weight, order, i);
        keep_four<K>(weighted(values[p], weights), i, x_shared, sums_shared);
        const float squares = warp_sum(squares_of_four(values[p]));
        if (lane == 0) squares_shared[i / kSquaresInputs] = squares;
      }
    }
  } else {
#pragma unroll 1
    for (int first = mine; first - lane * 4 < padded; first += kPieces * stride) {
      uint2 values[kPieces] = {};
#pragma unroll
      for (int p = 0; p < kPieces; ++p)
        if (first + p * stride < in) values[p] = read_four(x, order, first + p * stride);
#pragma unroll
      for (int p = 0; p < kPieces; ++p) {
        const int i = first + p * stride;
        if (i - lane * 4 >= padded) break;
        keep_four<K>(values[p], i, x_shared, sums_shared);
      }
    }
  }
  __syncthreads();

  int slot = 0, turn = 0;
  const uint32_t middle = 0x10001u << (args.bits - 1);
#pragma unroll 1
  for (int group = blockIdx.x; group < plan.groups; group += gridDim.x, turn ^= 1) {
    const bool has_zeros = args.matrix[place_of<K>(args, plan, group).matrix].zero_points != nullptr;
    float total[K::kTiles][1][4] = {};
    const uint4* x_at = reinterpret_cast<const uint4*>(x_shared + warp * K::kInputs + 8 * c);
    const float* sums_at = sums_shared + warp * K::kGroups;
#pragma unroll 1
    for (int unit = warp; unit < plan.units; unit += warps) {
      X<K> now_x;
#pragma unroll
      for (int block = 0; block < K::kBlocks; ++block)
        now_x.data[0][block] = x_at[block * (kBlockInputs / 8)];
      if constexpr (K::kBits == 4) {
#pragma unroll
        for (int i = 0; i < K::kGroups; ++i) now_x.sums[0][i][0] = now_x.sums[0][i][1] = sums_at[i];
      }
      x_at += warps * (K::kInputs / 8);
      sums_at += warps * K::kGroups;
      wait_for_copies<K::kAhead - 1>();
      Loaded<K> now[K::kTiles];
#pragma unroll
      for (int t = 0; t < K::kTiles; ++t)
        read_unit<K>(fetcher.ring + (slot * K::kTiles + t) * K::kUnitBytes, has_zeros, middle, now[t]);
      multiply_unit<K>(now, now_x, total);
      fetcher.next();
      slot = slot + 1 == plan.slots ? 0 : slot + 1;
    }

    constexpr int kOutputs = K::kTiles * kTileOutputs;
    float* const partial = reinterpret_cast<float*>(shared + room.partial) + turn * warps * kOutputs;
    if (c == 0) {
#pragma unroll
      for (int t = 0; t < K::kTiles; ++t) {
        partial[warp * kOutputs + t * kTileOutputs + g] = total[t][0][0];
        partial[warp * kOutputs + t * kTileOutputs + g + 8] = total[t][0][2];
      }
    }
    float factor = 1;
    if (hidden && warp == 0) factor = norm_factor(squares_shared, in, epsilon);
    __syncthreads();  // the next group's sums go to the other half
    if (output.to) {
      auto sum_of = [&](int index) {
        float value = 0;
#pragma unroll 4
        for (int w = 0; w < warps; ++w) value += partial[w * kOutputs + index];
        return value;
      };
      float value = sum_of(threadIdx.x) * factor + output.bias;
      if (args.swiglu) {
        // As rounded as if both had been written.
        const float up = sum_of(threadIdx.x + K::kPairs * kTileOutputs) * factor + output.second_bias;
        value = silu_times(bf16_to_f32(f32_to_bf16(value)), bf16_to_f32(f32_to_bf16(up)));
      }
      if (output.adds) value += old;
      if (output.is_f32) {
        *reinterpret_cast<float*>(output.to) = value;
      } else {
        *reinterpret_cast<uint16_t*>(output.to) = f32_to_bf16(value);
      }
    }
    if (group + gridDim.x < plan.groups) {
      output = output_of<K>(args, plan, group + gridDim.x);
      old = output.adds ? *reinterpret_cast<const float*>(output.to) : 0;
    }
  }
}

template <int kBits, bool kFine>
bool launch_for(const GpuDecodeArgs& args, void* stream) {
  const int in = static_cast<int>(args.in);
  auto launch_kind = [&]<int kTiles>() {
    using K = Kind<kBits, kFine, kTiles, 1, true, true>;
    auto bytes = [in](int warps, int slots) { return room_of<K>(in, warps, slots).total; };
    if (bytes(1, K::kAhead) > device().shared_per_block) return false;
    launch_product<K, row_kernel<K>>(args, bytes, stream);
    return true;
  };
  return args.swiglu ? launch_kind.template operator()<2>() : launch_kind.template operator()<1>();
}

}  // namespace

bool gpu_matmul_row(const GpuDecodeArgs& args, void* stream) {
  const bool is_fine = args.group_size == kBlockInputs;
  if (args.bits == 16) return launch_for<16, false>(args, stream);
  if (args.bits == 8) return is_fine ? launch_for<8, true>(args, stream) : launch_for<8, false>(args, stream);
  return is_fine ? launch_for<4, true>(args, stream) : launch_for<4, false>(args, stream);
}

}  // namespace lowbit
