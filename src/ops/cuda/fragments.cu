#include "ops/cuda/device.cuh"
#include "ops/cuda/fragments.h"
#include "ops/cuda/fragments_gpu.h"

#include <algorithm>
#include <bit>

namespace lowbit {
namespace {

__global__ void plain_kernel(const GpuDecodeArgs args) {
  follow_predecessor();
  const GpuMatrix& matrix = args.matrix[blockIdx.z];
  const int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n >= matrix.out) return;
  for (int64_t row = blockIdx.y; row < args.rows; row += gridDim.y) {
    float sum = 0;
    for (int64_t k = 0; k < args.in; ++k)
      sum += weight_at(matrix, args.bits, args.group_size, args.has_table ? &args.table : nullptr, args.in, n,
                       k) *
             bf16_to_f32(args.x[row * args.in + k]);
    if (matrix.bias) sum += matrix.bias[n];
    const int64_t at = row * matrix.out + n;
    if (matrix.add_to) {
      matrix.add_to[at] += sum;
    } else {
      store_output(matrix.y, at, sum);
    }
  }
}

__device__ inline uint32_t code_in_words(const uint32_t* words, int64_t out, int bits, int64_t n, int64_t k) {
  const int64_t bit = k * bits;
  const int shift = static_cast<int>(bit % 32);
  uint32_t code = words[bit / 32 * out + n] >> shift;
  if (shift + bits > 32) code |= words[(bit / 32 + 1) * out + n] << (32 - shift);
  return code & ((1u << bits) - 1);
}

__device__ inline void load_eight(const float* from, float (&to)[8]) {
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(from + i);
    to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
  }
}
__device__ inline void load_eight(const uint16_t* from, float (&to)[8]) {  // BF16
  const uint4 eight = *reinterpret_cast<const uint4*>(from);
  const uint32_t pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) to[i] = i % 2 ? high_bf16(pairs[i / 2]) : low_bf16(pairs[i / 2]);
}
__device__ inline void load_eight(const __half* from, float (&to)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) to[i] = __half2float(from[i]);
}

// Of Levels what 16 of them need.
struct FewLevels {
  float limits[15];
  uint8_t codes[16];
};
__device__ inline uint32_t code_of(const FewLevels& levels, float x) {
  int above = 0;
#pragma unroll
  for (int i = 0; i < 15; ++i) above += x > levels.limits[i];
  return levels.codes[above];
}

template <int kBits>
struct FloatTable {
  float value[1 << kBits];
};

// A thread per 16 bytes of fragments.
template <int kBits, bool kTable>
__global__ void pack_kernel(const GpuPackArgs args, int64_t count) {
  follow_predecessor();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= count) return;
  const int64_t pieces = piece_count(args.in, kBits);
  const int thread = static_cast<int>(index % 32);
  const int64_t piece = index / 32 % pieces, tile = index / 32 / pieces;
  uint32_t words[4] = {};
#pragma unroll
  for (int step = 0; step < piece_inputs(kBits) / 16; ++step) {
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
#pragma unroll
      for (int second = 0; second < 2; ++second) {
        const int64_t n = tile * kTileOutputs + thread / 4 + pair % 2 * 8;
        const int64_t k = piece * piece_inputs(kBits) + step / 2 * kBlockInputs + thread % 4 * 8 +
                          step % 2 * kStepInputs + pair / 2 * 2 + second;
        if (n >= args.out || k >= args.in) continue;
        const uint32_t code =
            code_in_words(static_cast<const uint32_t*>(args.words), args.out, args.bits, n, k);
        if constexpr (kTable) {
          words[step] |= placed_in_word(code, 2 * pair + second);
        } else if constexpr (kBits == 8) {
          words[step * 2 + second] |= code << (8 * pair);
        } else {
          words[step] |= code << (4 * (second * 4 + pair));
        }
      }
    }
  }
  static_cast<uint4*>(args.fragments)[index] = make_uint4(words[0], words[1], words[2], words[3]);
}

__global__ void pack_groups_kernel(const GpuPackArgs args) {
  follow_predecessor();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t padded = tile_count(args.out) * kTileOutputs,
                groups = kept_groups(args.in, args.kept_group_size);
  if (index >= padded * groups) return;
  const int64_t n = index % padded, group = index / padded, input = group * args.kept_group_size;
  const int64_t from = input / args.group_size * args.out + n;
  const int64_t to = group_place(n, group, groups);
  const bool is_inside = n < args.out && input < args.in;
  uint16_t scale = 0;
  if (is_inside)
    scale = args.has_wide_scales ? __half_as_ushort(__float2half_rn(
                                       args.scale_factor * static_cast<const float*>(args.scales)[from]))
                                 : static_cast<const uint16_t*>(args.scales)[from];
  static_cast<uint16_t*>(args.fragment_scales)[to] = scale;
  if (args.zero_points) {
    static_cast<uint16_t*>(args.fragment_zero_points)[to] =
        is_inside ? static_cast<const uint8_t*>(args.zero_points)[from] : uint16_t{0};
  }
}

// A thread per 16 bytes of fragments: 16 inputs of each of two rows, of which four threads have a group.
template <class From>
__global__ void encode_kernel(const GpuEncodeArgs args, const FewLevels levels, int64_t count) {
  follow_predecessor();
  constexpr int kBlocks = kTableGroup / kBlockInputs;
  static_assert(piece_inputs(4) == kTableGroup);
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= count) return;  // whole warps
  const int64_t pieces = piece_count(args.in, 4), piece = index / 32 % pieces, tile = index / 32 / pieces;
  const int g = static_cast<int>(index % 32 / 4), c = static_cast<int>(index % 4);
  uint32_t words[2 * kBlocks] = {};
#pragma unroll
  for (int upper = 0; upper < 2; ++upper) {
    const int64_t n = tile * kTileOutputs + g + upper * 8, first = piece * kTableGroup + c * 8;
    const bool is_there = n < args.out && piece * kTableGroup < args.in;
    float values[kBlocks][8] = {};
    float scale = 0;
    bool is_finite = true;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      if (is_there)
        load_eight(static_cast<const From*>(args.from.data) + n * args.in + first + block * kBlockInputs,
                   values[block]);
#pragma unroll
      for (const float value : values[block]) {
        scale = fmaxf(scale, fabsf(value));
        is_finite = is_finite && isfinite(value);
      }
    }
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2)
      scale = fmaxf(scale, __shfl_xor_sync(0xffffffffu, scale, distance));
    const __half rounded = __float2half_rn(scale);
    if (!is_finite || __hisinf(rounded)) atomicMin(args.failed, args.index);
    const float factor = __frcp_rn(fmaxf(scale, 1e-38f));
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float x = fminf(fmaxf(__fmul_rn(values[block][i], factor), -1.0f), 1.0f);
        if (is_there)
          words[2 * block + i / kStepInputs] |=
              placed_in_word(code_of(levels, x), (upper + i % kStepInputs / 2 * 2) * 2 + i % 2);
      }
    }
    if (c == 0)
      static_cast<__half*>(args.fragment_scales)[group_place(tile * kTileOutputs + g + upper * 8, piece,
                                                             kept_groups(args.in, kTableGroup))] = rounded;
  }
  static_cast<uint4*>(args.fragments)[index] = make_uint4(words[0], words[1], words[2], words[3]);
}

// Rows of int8: a block per tile of 16 rows, which looks for the largest magnitudes first.
template <class From>
__global__ void __launch_bounds__(256) encode_rows_kernel(const GpuEncodeArgs args) {
  follow_predecessor();
  __shared__ float factors[kTileOutputs];
  const int64_t tile = blockIdx.x, groups = kept_groups(args.in, kUnitInputs);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  auto load = [&](int64_t n, int64_t k, float(&to)[8]) {
    load_eight(static_cast<const From*>(args.from.data) + n * args.in + k, to);
#pragma unroll
    for (float& value : to) value = __half2float(__float2half_rn(value));
  };
  for (int row = warp; row < kTileOutputs; row += 8) {
    const int64_t n = tile * kTileOutputs + row;
    float largest = 0, values[8];
    bool is_finite = true;
    for (int64_t k = lane * 8; n < args.out && k < args.in; k += 256) {
      load(n, k, values);
#pragma unroll
      for (const float value : values) {
        largest = fmaxf(largest, fabsf(value));
        is_finite = is_finite && isfinite(value);
      }
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
    if (!is_finite) atomicMin(args.failed, args.index);
    if (lane == 0) factors[row] = largest > 0 ? __fmul_rn(127.0f, __frcp_rn(largest)) : 0.0f;
    for (int64_t group = lane; group < groups; group += 32)
      static_cast<__half*>(args.fragment_scales)[group_place(n, group, groups)] =
          __float2half_rn(n < args.out ? __fdiv_rn(largest, 127.0f) : 0.0f);
  }
  __syncthreads();
  const int64_t pieces = piece_count(args.in, 8);
  for (int64_t i = threadIdx.x; i < pieces * 32; i += 256) {
    const int g = static_cast<int>(i % 32 / 4);
    const int64_t k = i / 32 * kBlockInputs + i % 4 * 8;
    uint32_t words[4] = {};
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const int64_t n = tile * kTileOutputs + g + upper * 8;
      if (n >= args.out || k >= args.in) continue;
      float values[8];
      load(n, k, values);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float level = fminf(fmaxf(__fmul_rn(values[j], factors[g + upper * 8]), -127.0f), 127.0f);
        words[j / 4 * 2 + j % 2] |= static_cast<uint32_t>(__float2int_rn(level) + 128)
                                    << (8 * (upper + j % 4 / 2 * 2));
      }
    }
    static_cast<uint4*>(args.fragments)[tile * pieces * 32 + i] =
        make_uint4(words[0], words[1], words[2], words[3]);
  }
}

// The codes of a thread's 16 bytes: of pair i of a step the first or the second.
template <int kBits, bool kTable>
__device__ inline uint32_t code_of_step(const uint32_t (&words)[4], int step, int pair, int second) {
  if constexpr (kBits == 8) return words[step * 2 + second] >> (8 * pair) & 0xffu;
  if constexpr (kTable) return code_in_word(words[step], 2 * pair + second);
  return words[step] >> (4 * (second * 4 + pair)) & 0xfu;
}

// A thread per 16 bytes of fragments, any groups and order of columns.
template <int kBits, bool kTable>
__global__ void unpack_kernel(const GpuUnpackArgs args, const FloatTable<kBits> codebook, int64_t count) {
  follow_predecessor();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= count) return;
  const int64_t pieces = piece_count(args.in, kBits), groups = kept_groups(args.in, args.group_size);
  const int thread = static_cast<int>(index % 32);
  const int64_t piece = index / 32 % pieces, tile = index / 32 / pieces;
  const uint4 data = static_cast<const uint4*>(args.fragments)[index];
  const uint32_t words[4] = {data.x, data.y, data.z, data.w};
  for (int i = 0; i < piece_inputs(kBits) / 2; ++i) {  // eight of each block of 32 inputs, of two rows
    const int upper = i / 8 % 2, block = i / 16, in_block = i % 8;
    const int64_t n = tile * kTileOutputs + thread / 4 + upper * 8,
                  k = piece * piece_inputs(kBits) + block * kBlockInputs + thread % 4 * 8 + in_block;
    if (n >= args.out || k >= args.in) continue;
    const uint32_t code = code_of_step<kBits, kTable>(words, block * 2 + in_block / 4,
                                                      upper + in_block % 4 / 2 * 2, in_block % 2);
    const int64_t at = group_place(n, k / args.group_size, groups);
    const int zero =
        args.zero_points ? static_cast<const uint16_t*>(args.zero_points)[at] : 1 << (args.bits - 1);
    const float unscaled = kTable ? codebook.value[code] : static_cast<float>(static_cast<int>(code) - zero);
    args.to[n * args.in + (args.column_order ? args.column_order[k] : k)] =
        f32_to_bf16(__half2float(static_cast<const __half*>(args.scales)[at]) * unscaled);
  }
}

constexpr int kUnpackWarps = 8;  // of a block, each with a piece of a tile

// The same for groups of 32 or more and columns in their own order, of which a thread writes eight together:
// every prompt waits for this.
template <int kBits, bool kTable>
__global__ void __launch_bounds__(kUnpackWarps * 32)
    unpack_groups_kernel(const GpuUnpackArgs args, const FloatTable<kBits> codebook, int group_shift) {
  follow_predecessor();
  __shared__ float values[1 << kBits];
  if constexpr (kTable) {
    if (threadIdx.x < 1 << kBits) values[threadIdx.x] = codebook.value[threadIdx.x];
    __syncthreads();
  }
  const int in = static_cast<int>(args.in), out = static_cast<int>(args.out);
  const int pieces = static_cast<int>(piece_count(args.in, kBits)),
            groups = static_cast<int>(padded_inputs(args.in)) >> group_shift;
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, c = lane % 4;
  const int piece = static_cast<int>(blockIdx.x) * kUnpackWarps + static_cast<int>(threadIdx.x) / 32,
            tile = static_cast<int>(blockIdx.y);
  if (piece >= pieces) return;
  const uint4 data =
      static_cast<const uint4*>(args.fragments)[(static_cast<int64_t>(tile) * pieces + piece) * 32 + lane];
  const uint32_t words[4] = {data.x, data.y, data.z, data.w};
#pragma unroll
  for (int block = 0; block < piece_inputs(kBits) / kBlockInputs; ++block) {
    const int first = piece * piece_inputs(kBits) + block * kBlockInputs, k = first + c * 8;
    if (k >= in) continue;
    const int64_t at =
        (static_cast<int64_t>(tile) * groups + (first >> group_shift)) * (kTileOutputs / 2) + g;
    const float2 scales = __half22float2(static_cast<const __half2*>(args.scales)[at]);
    const uint32_t zeros =
        args.zero_points ? static_cast<const uint32_t*>(args.zero_points)[at] : 0x10001u << (args.bits - 1);
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const int n = tile * kTileOutputs + g + upper * 8;
      if (n >= out) continue;
      const float scale = upper ? scales.y : scales.x;
      // 2^23 + code is a float, less this
      const float offset = 8388608.0f + static_cast<float>(upper ? zeros >> 16 : zeros & 0xffffu);
      uint32_t pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float two[2];
#pragma unroll
        for (int second = 0; second < 2; ++second) {
          const uint32_t code =
              code_of_step<kBits, kTable>(words, block * 2 + i / 2, upper + i % 2 * 2, second);
          two[second] = scale * (kTable ? values[code] : __uint_as_float(code | 0x4b000000u) - offset);
        }
        pairs[i] = bf16_pair(two[0], two[1]);
      }
      *reinterpret_cast<uint4*>(args.to + static_cast<int64_t>(n) * in + k) =
          make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
  }
}

constexpr int kThreads = 256;
dim3 blocks_for(int64_t count) { return dim3(static_cast<unsigned>((count + kThreads - 1) / kThreads)); }

}  // namespace

void gpu_matmul_plain(const GpuDecodeArgs& args, void* stream) {
  int64_t most = 0;
  for (int i = 0; i < args.matrices; ++i) most = std::max(most, args.matrix[i].out);
  const dim3 grid(static_cast<unsigned>((most + 127) / 128),
                  static_cast<unsigned>(std::min<int64_t>(args.rows, 65535)),
                  static_cast<unsigned>(args.matrices));
  launch(plain_kernel, grid, dim3(128), 0, stream, args);
}

void gpu_pack_fragments(const GpuPackArgs& args, void* stream) {
  const int bits = fragment_bits(args.bits);
  const int64_t count = fragment_bytes(args.out, args.in, bits) / 16;
  const auto kernel = bits == 8        ? pack_kernel<8, false>
                      : args.has_table ? pack_kernel<4, true>
                                       : pack_kernel<4, false>;
  launch(kernel, blocks_for(count), dim3(kThreads), 0, stream, args, count);
  launch(pack_groups_kernel,
         blocks_for(tile_count(args.out) * kTileOutputs * kept_groups(args.in, args.kept_group_size)),
         dim3(kThreads), 0, stream, args);
}

void gpu_unpack_fragments(const GpuUnpackArgs& args, void* stream) {
  const int bits = fragment_bits(args.bits);
  const auto group = static_cast<unsigned>(args.group_size);
  const int64_t count = fragment_bytes(args.out, args.in, bits) / 16, tiles = tile_count(args.out);
  const bool is_whole = !args.column_order && args.in % 8 == 0 && std::has_single_bit(group) &&
                        args.group_size >= kBlockInputs && args.group_size <= kUnitInputs && tiles < 65536;
  auto queue = [&]<int kBits, bool kTable>() {
    FloatTable<kBits> table{};
    for (size_t i = 0; i < std::min<size_t>(args.codebook.size(), 1 << kBits); ++i)
      table.value[i] = args.codebook[i] / args.scale_factor;
    if (!is_whole)
      return launch(unpack_kernel<kBits, kTable>, blocks_for(count), dim3(kThreads), 0, stream, args, table,
                    count);
    const int64_t columns = (piece_count(args.in, kBits) + kUnpackWarps - 1) / kUnpackWarps;
    launch(unpack_groups_kernel<kBits, kTable>,
           dim3(static_cast<unsigned>(columns), static_cast<unsigned>(tiles)), dim3(kUnpackWarps * 32), 0,
           stream, args, table, std::countr_zero(group));
  };
  const bool has_table = !args.codebook.empty();
  if (bits == 8)
    has_table ? queue.template operator()<8, true>() : queue.template operator()<8, false>();
  else
    has_table ? queue.template operator()<4, true>() : queue.template operator()<4, false>();
}

void gpu_encode_fragments(const GpuEncodeArgs& args, void* stream) {
  auto queue = [&]<class From>() {
    if (!args.levels)
      return launch(encode_rows_kernel<From>, dim3(static_cast<unsigned>(tile_count(args.out))), dim3(256), 0,
                    stream, args);
    const int64_t count = fragment_bytes(args.out, args.in, 4) / 16;
    FewLevels levels;
    std::copy_n(args.levels->limits, 15, levels.limits);
    std::copy_n(args.levels->codes, 16, levels.codes);
    launch(encode_kernel<From>, blocks_for(count), dim3(kThreads), 0, stream, args, levels, count);
  };
  if (args.from.dtype == DType::kF32) {
    queue.template operator()<float>();
  } else if (args.from.dtype == DType::kF16) {
    queue.template operator()<__half>();
  } else {
    queue.template operator()<uint16_t>();
  }
}

}  // namespace lowbit
