#include "ops/cuda/device.cuh"
#include "ops/cuda/fragments.h"
#include "ops/cuda/matmul_decode.h"

#include <algorithm>

namespace lowbit {
namespace {

// The inputs are cut into units that the warps of a block take in turn; a block makes kTiles tiles of 16 outputs.
// kBlocks: of 32 inputs in a unit. kAhead: units that a warp has asked for before it works on the first.
template <int kBits>
struct Units {
  static constexpr int kBlocks = kBits == 16 ? 2 : 4;
  static constexpr int kLoads = kBlocks * kBits / 8;  // of 16 bytes, for a tile
  static constexpr int kInputs = kBlocks * kBlockInputs;
};

constexpr int ahead(int bits, int tiles) { return std::max(1, (bits == 4 ? 4 : 2) / tiles); }
constexpr int kMostWarps = 16;

// By `in` alone, so that the order of the sums is always the same.
int warps_of(int64_t in, int bits) {
  const int64_t units = (in + (bits == 16 ? 64 : 128) - 1) / (bits == 16 ? 64 : 128);
  int warps = 4;
  while (warps < kMostWarps && warps * 4 < units) warps *= 2;
  return warps;
}

// The same for every tile of a thread.
struct Work {
  int in, group_size, groups;
  int fold_blocks;  // blocks of 32 inputs after which the sums of a group are scaled and added up
  int middle;       // zero point where there are none
};

template <int kBits>
struct Tile {
  const uint4* codes;        // of this thread; BF16: row g
  const uint4* codes8;       // BF16 only: row g + 8
  const uint32_t* scales;    // of this thread's rows, F16 both; a group's stand 8 words behind
  const uint16_t* zeros;     // U8 both, or null
};

template <int kBits>
struct Loaded {
  uint4 data[Units<kBits>::kLoads];
  uint32_t scale;
  uint32_t zeros;
};

__device__ inline uint4 load_once(const uint4* from) { return __ldcs(from); }

template <int kBits>
__device__ inline void load_group(const Tile<kBits>& tile, const Work& work, int input, Loaded<kBits>& to) {
  const int group = work.group_size >= work.in ? 0 : input / work.group_size;
  to.scale = __ldg(tile.scales + group * 8);
  to.zeros = tile.zeros ? __ldg(tile.zeros + group * 8) : static_cast<uint32_t>(work.middle * 0x101);
}

template <int kBits>
__device__ inline void load_unit(const Tile<kBits>& tile, const Work& work, int unit, Loaded<kBits>& to) {
  const int input = unit * Units<kBits>::kInputs;
  if (input >= work.in) return;
  if constexpr (kBits == 16) {
    const int c = threadIdx.x % 4;
#pragma unroll
    for (int block = 0; block < Units<16>::kBlocks; ++block) {
      const int k = input + block * kBlockInputs;
      const bool is_inside = k + 8 * c < work.in;
      to.data[2 * block] = is_inside ? load_once(tile.codes + k / 8) : uint4{};
      to.data[2 * block + 1] = is_inside ? load_once(tile.codes8 + k / 8) : uint4{};
    }
  } else {
    load_group(tile, work, input, to);
#pragma unroll
    for (int i = 0; i < Units<kBits>::kLoads; ++i) {
      const int k = input + i * piece_inputs(kBits);
      if (k < work.in) to.data[i] = load_once(tile.codes + k / piece_inputs(kBits) * 32);
    }
  }
}

__device__ inline uint32_t word_of(const uint4& data, int i) {
  return i == 0 ? data.x : i == 1 ? data.y : i == 2 ? data.z : data.w;
}

// Two floats that BF16 holds exactly.
__device__ inline uint32_t upper_halves(float first, float second) {
  return __byte_perm(__float_as_uint(first), __float_as_uint(second), 0x7632);
}

// The operand of step `step` (0 to 2 * kBlocks - 1). 4 bits: 128 + code, which is 0x4300 | code in BF16; the 128 and
// the zero point are taken off the sums. 8 bits: code - zero point: 2^23 + code is 0x4b000000 | code in F32.
template <int kBits>
__device__ inline Operand operand(const Loaded<kBits>& loaded, int step, float zero, float zero8) {
  if constexpr (kBits == 16) {
    const uint4 &row = loaded.data[step / 2 * 2], &row8 = loaded.data[step / 2 * 2 + 1];
    const int half = step % 2 * 2;
    return {{word_of(row, half), word_of(row8, half), word_of(row, half + 1), word_of(row8, half + 1)}};
  } else if constexpr (kBits == 4) {
    Operand a;
    const uint32_t word = word_of(loaded.data[step / 4], step % 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) a.pair[i] = ((word >> (4 * i)) & 0x000f000fu) | 0x43004300u;
    return a;
  } else {
    Operand a;
    const uint4& data = loaded.data[step / 2];
    const uint32_t first = word_of(data, step % 2 * 2), second = word_of(data, step % 2 * 2 + 1);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float middle = i % 2 ? zero8 : zero;
      const uint32_t selector = 0x7440u | static_cast<uint32_t>(i);  // byte i below the bytes 0, 0, 0x4b
      a.pair[i] = upper_halves(__uint_as_float(__byte_perm(first, 0x4b000000u, selector)) - middle,
                               __uint_as_float(__byte_perm(second, 0x4b000000u, selector)) - middle);
    }
    return a;
  }
}

constexpr uint32_t kOnes = 0x3f803f80u;  // BF16 1, 1

// scale * sum into total, sum = 0.
template <int kBits>
__device__ inline void fold(float (&total)[4], float (&sum)[4], const float (&x_sum)[4], uint32_t scale_bits,
                            uint32_t zeros) {
  const float scale = __half2float(__ushort_as_half(static_cast<uint16_t>(scale_bits)));
  const float scale8 = __half2float(__ushort_as_half(static_cast<uint16_t>(scale_bits >> 16)));
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    float value = sum[j];
    if constexpr (kBits == 4) {
      value -= static_cast<float>(128 + (j < 2 ? zeros & 0xffu : zeros >> 8)) * x_sum[j % 2];
    }
    total[j] += (j < 2 ? scale : scale8) * value;
    sum[j] = 0;
  }
}

__device__ inline void write_output(const GpuMatrix& matrix, int64_t row, int64_t n, float value) {
  if (matrix.bias) value += matrix.bias[n];
  const int64_t at = row * matrix.out + n;
  if (matrix.add_to) {
    matrix.add_to[at] += value;
  } else if (matrix.y.dtype == DType::kF32) {
    static_cast<float*>(matrix.y.data)[at] = value;
  } else {
    static_cast<uint16_t*>(matrix.y.data)[at] = f32_to_bf16(value);
  }
}

template <int kBits, int kTiles, int kRowBlocks>
__global__ void __launch_bounds__(kMostWarps * 32) decode_kernel(const GpuDecodeArgs args) {
  constexpr int kRows = 8 * kRowBlocks, kAhead = ahead(kBits, kTiles), kBlocks = Units<kBits>::kBlocks;
  extern __shared__ float partial[];  // [warps][kTiles * 16][kRows]
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;

  // Which matrix, which tiles of it.
  int64_t first_tile = static_cast<int64_t>(blockIdx.x) * kTiles;
  int index = 0;
  for (; index + 1 < args.matrices; ++index) {
    const int64_t tiles = (tile_count(args.matrix[index].out) + kTiles - 1) / kTiles * kTiles;
    if (first_tile < tiles) break;
    first_tile -= tiles;
  }
  const GpuMatrix& matrix = args.matrix[index];

  const Work work{static_cast<int>(args.in), static_cast<int>(args.group_size),
                  args.group_size >= args.in ? 1 : static_cast<int>((args.in + args.group_size - 1) / args.group_size),
                  args.group_size >= args.in || args.group_size % 128 == 0 ? 4
                  : args.group_size % 64 == 0                              ? 2
                                                                           : 1,
                  1 << (args.bits - 1)};
  Tile<kBits> tiles[kTiles];
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    // A tile behind the last one repeats it; its outputs are not written.
    const int64_t tile = min(first_tile + t, tile_count(matrix.out) - 1);
    if constexpr (kBits == 16) {
      const uint16_t* const weight = static_cast<const uint16_t*>(matrix.weight) + 8 * c;
      const int64_t row = min(tile * 16 + g, matrix.out - 1), row8 = min(tile * 16 + g + 8, matrix.out - 1);
      tiles[t].codes = reinterpret_cast<const uint4*>(weight + row * args.in);
      tiles[t].codes8 = reinterpret_cast<const uint4*>(weight + row8 * args.in);
    } else {
      tiles[t].codes = static_cast<const uint4*>(matrix.weight) + tile * piece_count(args.in, kBits) * 32 +
                       threadIdx.x % 32;
      tiles[t].scales = static_cast<const uint32_t*>(matrix.scales) + tile * work.groups * 8 + g;
      tiles[t].zeros = matrix.zero_points
                           ? static_cast<const uint16_t*>(matrix.zero_points) + tile * work.groups * 8 + g
                           : nullptr;
    }
  }

  const int units = (work.in + Units<kBits>::kInputs - 1) / Units<kBits>::kInputs;
  Loaded<kBits> ring[kAhead][kTiles];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) load_unit(tiles[t], work, warp + i * warps, ring[i][t]);
  }

  float total[kTiles][kRowBlocks][4] = {}, sum[kTiles][kRowBlocks][4] = {};
  for (int first = warp; first < units; first += kAhead * warps) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int unit = first + i * warps;
      if (unit >= units) break;
      Loaded<kBits> now[kTiles];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) now[t] = ring[i][t];
      // Rows of x are columns of the second operand; a row that is not there is zero.
      uint4 x[kRowBlocks][kBlocks];
#pragma unroll
      for (int b = 0; b < kRowBlocks; ++b) {
        const bool has_row = b * 8 + g < args.rows;
        const uint16_t* const from = args.x + (b * 8 + g) * args.in;
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          const int k = unit * Units<kBits>::kInputs + block * kBlockInputs + 8 * c;
          x[b][block] = has_row && k < work.in ? __ldg(reinterpret_cast<const uint4*>(from + k)) : uint4{};
        }
      }
#pragma unroll
      for (int t = 0; t < kTiles; ++t) load_unit(tiles[t], work, unit + kAhead * warps, ring[i][t]);

      float x_sum[kRowBlocks][4] = {};
      float zero[kTiles], zero8[kTiles];
      auto set_zeros = [&] {
        if constexpr (kBits == 8) {
#pragma unroll
          for (int t = 0; t < kTiles; ++t) {
            zero[t] = 8388608.0f + static_cast<float>(now[t].zeros & 0xffu);
            zero8[t] = 8388608.0f + static_cast<float>(now[t].zeros >> 8);
          }
        }
      };
      set_zeros();
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        const int k = unit * Units<kBits>::kInputs + block * kBlockInputs;
        if (k >= work.in) break;
        if constexpr (kBits != 16) {
          if (block > 0 && block % work.fold_blocks == 0) {
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
#pragma unroll
              for (int b = 0; b < kRowBlocks; ++b)
                fold<kBits>(total[t][b], sum[t][b], x_sum[b], now[t].scale, now[t].zeros);
              load_group(tiles[t], work, k, now[t]);
            }
#pragma unroll
            for (int b = 0; b < kRowBlocks; ++b) x_sum[b][0] = x_sum[b][1] = x_sum[b][2] = x_sum[b][3] = 0;
            set_zeros();
          }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int b = 0; b < kRowBlocks; ++b) {
            const uint32_t b0 = half ? x[b][block].z : x[b][block].x, b1 = half ? x[b][block].w : x[b][block].y;
            if constexpr (kBits == 4) multiply_add(x_sum[b], Operand{{kOnes, kOnes, kOnes, kOnes}}, b0, b1);
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
              multiply_add(kBits == 16 ? total[t][b] : sum[t][b],
                           operand<kBits>(now[t], block * 2 + half, zero[t], zero8[t]), b0, b1);
            }
          }
        }
      }
      if constexpr (kBits != 16) {
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
#pragma unroll
          for (int b = 0; b < kRowBlocks; ++b)
            fold<kBits>(total[t][b], sum[t][b], x_sum[b], now[t].scale, now[t].zeros);
        }
      }
    }
  }

#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int b = 0; b < kRowBlocks; ++b) {
      float* const to = partial + ((warp * kTiles + t) * kTileOutputs + g) * kRows + b * 8 + 2 * c;
      to[0] = total[t][b][0];
      to[1] = total[t][b][1];
      to[8 * kRows] = total[t][b][2];
      to[8 * kRows + 1] = total[t][b][3];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTiles * kTileOutputs * kRows; i += blockDim.x) {
    const int output = i % (kTiles * kTileOutputs), row = i / (kTiles * kTileOutputs);
    const int64_t n = first_tile * kTileOutputs + output;
    if (n >= matrix.out || row >= args.rows) continue;
    float value = 0;
    for (int w = 0; w < warps; ++w) value += partial[(w * kTiles * kTileOutputs + output) * kRows + row];
    write_output(matrix, row, n, value);
  }
}

template <int kBits, int kTiles, int kRowBlocks>
void launch(const GpuDecodeArgs& args, cudaStream_t stream) {
  int64_t blocks = 0;
  for (int i = 0; i < args.matrices; ++i) blocks += (tile_count(args.matrix[i].out) + kTiles - 1) / kTiles;
  const int warps = warps_of(args.in, kBits);
  const size_t shared = static_cast<size_t>(warps) * kTiles * kTileOutputs * 8 * kRowBlocks * sizeof(float);
  decode_kernel<kBits, kTiles, kRowBlocks>
      <<<dim3(static_cast<unsigned>(blocks)), warps * 32, shared, stream>>>(args);
}

// More tiles in a block read x less often; but all processors of the GPU are to have a block.
template <int kBits>
void launch_for_rows(const GpuDecodeArgs& args, cudaStream_t stream) {
  if (args.rows > 16) return launch<kBits, 1, 4>(args, stream);
  if (args.rows > 8) return launch<kBits, 2, 2>(args, stream);
  if (args.rows > 1) return launch<kBits, 2, 1>(args, stream);
  return launch<kBits, 1, 1>(args, stream);
}

// What weight [n, k] is.
__device__ inline float weight_at(const GpuDecodeArgs& args, const GpuMatrix& matrix, int64_t n, int64_t k) {
  if (args.bits == 16) return bf16_to_f32(static_cast<const uint16_t*>(matrix.weight)[n * args.in + k]);
  const int bits = fragment_bits(args.bits);
  const FragmentPlace place = fragment_place(n, k, args.in, bits);
  const int code = static_cast<const uint8_t*>(matrix.weight)[place.byte] >> place.shift & ((1 << bits) - 1);
  const int64_t at = group_place(n, k / args.group_size, (args.in + args.group_size - 1) / args.group_size);
  const int zero = matrix.zero_points ? static_cast<const uint8_t*>(matrix.zero_points)[at] : 1 << (args.bits - 1);
  return __half2float(static_cast<const __half*>(matrix.scales)[at]) * static_cast<float>(code - zero);
}

__global__ void plain_kernel(const GpuDecodeArgs args) {
  const GpuMatrix& matrix = args.matrix[blockIdx.z];
  const int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n >= matrix.out) return;
  for (int64_t row = blockIdx.y; row < args.rows; row += gridDim.y) {
    float sum = 0;
    for (int64_t k = 0; k < args.in; ++k) sum += weight_at(args, matrix, n, k) * bf16_to_f32(args.x[row * args.in + k]);
    write_output(matrix, row, n, sum);
  }
}

__device__ inline uint32_t code_in_words(const uint32_t* words, int64_t out, int bits, int64_t n, int64_t k) {
  const int64_t bit = k * bits;
  const int shift = static_cast<int>(bit % 32);
  uint32_t code = words[bit / 32 * out + n] >> shift;
  if (shift + bits > 32) code |= words[(bit / 32 + 1) * out + n] << (32 - shift);
  return code & ((1u << bits) - 1);
}

// A thread per 16 bytes of fragments.
template <int kBits>
__global__ void pack_kernel(const GpuPackArgs args, int64_t count) {
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
        const uint32_t code = code_in_words(static_cast<const uint32_t*>(args.words), args.out, args.bits, n, k);
        if constexpr (kBits == 8) {
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
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t padded = tile_count(args.out) * kTileOutputs;
  if (index >= padded * args.groups) return;
  const int64_t n = index % padded, group = index / padded, from = group * args.out + n;
  const int64_t to = group_place(n, group, args.groups);
  const bool is_inside = n < args.out;
  static_cast<uint16_t*>(args.fragment_scales)[to] =
      is_inside ? static_cast<const uint16_t*>(args.scales)[from] : uint16_t{0};
  if (args.zero_points) {
    static_cast<uint8_t*>(args.fragment_zero_points)[to] =
        is_inside ? static_cast<const uint8_t*>(args.zero_points)[from] : uint8_t{0};
  }
}

__device__ inline float number(const GpuUnpackArgs& args, int code, int64_t at, int middle) {
  const int zero = args.zero_points ? static_cast<const uint8_t*>(args.zero_points)[at] : middle;
  return __half2float(static_cast<const __half*>(args.scales)[at]) * static_cast<float>(code - zero);
}

// A thread per 16 bytes of fragments.
template <int kBits>
__global__ void unpack_kernel(const GpuUnpackArgs args, int64_t count) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= count) return;
  const int64_t pieces = piece_count(args.in, kBits), groups = (args.in + args.group_size - 1) / args.group_size;
  const int thread = static_cast<int>(index % 32), middle = 1 << (args.bits - 1);
  const int64_t piece = index / 32 % pieces, tile = index / 32 / pieces;
  const uint4 data = static_cast<const uint4*>(args.fragments)[index];
  const uint32_t words[4] = {data.x, data.y, data.z, data.w};
#pragma unroll
  for (int step = 0; step < piece_inputs(kBits) / 16; ++step) {
    const int64_t k = piece * piece_inputs(kBits) + step / 2 * kBlockInputs + thread % 4 * 8 + step % 2 * kStepInputs;
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const int64_t n = tile * kTileOutputs + thread / 4 + upper * 8;
      if (n >= args.out || k >= args.in) continue;
      uint16_t row[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int pair = upper + i / 2 * 2;
        const uint32_t code = kBits == 8 ? words[step * 2 + i % 2] >> (8 * pair) & 0xffu
                                         : words[step] >> (4 * (i % 2 * 4 + pair)) & 0xfu;
        const int64_t group = min(k + i, args.in - 1) / args.group_size;
        row[i] = f32_to_bf16(number(args, static_cast<int>(code), group_place(n, group, groups), middle));
      }
      uint16_t* const to = args.to + n * args.in;
      if (!args.column_order && args.in % 4 == 0) {
        *reinterpret_cast<uint2*>(to + k) =
            make_uint2(row[0] | static_cast<uint32_t>(row[1]) << 16, row[2] | static_cast<uint32_t>(row[3]) << 16);
      } else {
        for (int i = 0; i < 4 && k + i < args.in; ++i) to[args.column_order ? args.column_order[k + i] : k + i] = row[i];
      }
    }
  }
}

constexpr int kThreads = 256;
dim3 blocks_for(int64_t count) { return dim3(static_cast<unsigned>((count + kThreads - 1) / kThreads)); }

}  // namespace

void gpu_matmul_decode(const GpuDecodeArgs& args, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (args.bits) {
    case 16:
      return launch_for_rows<16>(args, on);
    case 8:
      return launch_for_rows<8>(args, on);
    default:
      return launch_for_rows<4>(args, on);
  }
}

void gpu_matmul_plain(const GpuDecodeArgs& args, void* stream) {
  int64_t most = 0;
  for (int i = 0; i < args.matrices; ++i) most = std::max(most, args.matrix[i].out);
  const dim3 grid(static_cast<unsigned>((most + 127) / 128), static_cast<unsigned>(std::min<int64_t>(args.rows, 65535)),
                  static_cast<unsigned>(args.matrices));
  plain_kernel<<<grid, 128, 0, static_cast<cudaStream_t>(stream)>>>(args);
}

void gpu_pack_fragments(const GpuPackArgs& args, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const int bits = fragment_bits(args.bits);
  const int64_t count = fragment_bytes(args.out, args.in, bits) / 16;
  if (bits == 8) {
    pack_kernel<8><<<blocks_for(count), kThreads, 0, on>>>(args, count);
  } else {
    pack_kernel<4><<<blocks_for(count), kThreads, 0, on>>>(args, count);
  }
  pack_groups_kernel<<<blocks_for(tile_count(args.out) * kTileOutputs * args.groups), kThreads, 0, on>>>(args);
}

void gpu_unpack_fragments(const GpuUnpackArgs& args, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const int bits = fragment_bits(args.bits);
  const int64_t count = fragment_bytes(args.out, args.in, bits) / 16;
  if (bits == 8) {
    unpack_kernel<8><<<blocks_for(count), kThreads, 0, on>>>(args, count);
  } else {
    unpack_kernel<4><<<blocks_for(count), kThreads, 0, on>>>(args, count);
  }
}

}  // namespace lowbit
