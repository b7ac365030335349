#include "ops/cuda/device.cuh"
#include "ops/cuda/fragments.h"
#include "ops/cuda/fragments_gpu.h"

#include <algorithm>

namespace lowbit {
namespace {

// What weight [n, k] is.
__device__ inline float weight_at(const GpuDecodeArgs& args, const GpuMatrix& matrix, int64_t n, int64_t k) {
  if (args.bits == 16) return bf16_to_f32(static_cast<const uint16_t*>(matrix.weight)[n * args.in + k]);
  const int bits = fragment_bits(args.bits);
  const FragmentPlace place = fragment_place(n, k, args.in, bits);
  const int code = static_cast<const uint8_t*>(matrix.weight)[place.byte] >> place.shift & ((1 << bits) - 1);
  const int64_t at =
      group_place(n, k / args.group_size, kept_groups(args.in, args.group_size));
  const int zero = matrix.zero_points ? static_cast<const uint16_t*>(matrix.zero_points)[at] : 1 << (args.bits - 1);
  return __half2float(static_cast<const __half*>(matrix.scales)[at]) * static_cast<float>(code - zero);
}

__global__ void plain_kernel(const GpuDecodeArgs args) {
  follow_predecessor();
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
  follow_predecessor();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t padded = tile_count(args.out) * kTileOutputs, groups = kept_groups(args.in, args.kept_group_size);
  if (index >= padded * groups) return;
  const int64_t n = index % padded, group = index / padded, input = group * args.kept_group_size;
  const int64_t from = input / args.group_size * args.out + n;
  const int64_t to = group_place(n, group, groups);
  const bool is_inside = n < args.out && input < args.in;
  static_cast<uint16_t*>(args.fragment_scales)[to] =
      is_inside ? static_cast<const uint16_t*>(args.scales)[from] : uint16_t{0};
  if (args.zero_points) {
    static_cast<uint16_t*>(args.fragment_zero_points)[to] =
        is_inside ? static_cast<const uint8_t*>(args.zero_points)[from] : uint16_t{0};
  }
}

__device__ inline float number(const GpuUnpackArgs& args, int code, int64_t at, int middle) {
  const int zero = args.zero_points ? static_cast<const uint16_t*>(args.zero_points)[at] : middle;
  return __half2float(static_cast<const __half*>(args.scales)[at]) * static_cast<float>(code - zero);
}

// A thread per 16 bytes of fragments.
template <int kBits>
__global__ void unpack_kernel(const GpuUnpackArgs args, int64_t count) {
  follow_predecessor();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= count) return;
  const int64_t pieces = piece_count(args.in, kBits), groups = kept_groups(args.in, args.group_size);
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

void gpu_matmul_plain(const GpuDecodeArgs& args, void* stream) {
  int64_t most = 0;
  for (int i = 0; i < args.matrices; ++i) most = std::max(most, args.matrix[i].out);
  const dim3 grid(static_cast<unsigned>((most + 127) / 128), static_cast<unsigned>(std::min<int64_t>(args.rows, 65535)),
                  static_cast<unsigned>(args.matrices));
  launch(plain_kernel, grid, dim3(128), 0, stream, args);
}

void gpu_pack_fragments(const GpuPackArgs& args, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const int bits = fragment_bits(args.bits);
  const int64_t count = fragment_bytes(args.out, args.in, bits) / 16;
  if (bits == 8) {
    launch(pack_kernel<8>, blocks_for(count), dim3(kThreads), 0, on, args, count);
  } else {
    launch(pack_kernel<4>, blocks_for(count), dim3(kThreads), 0, on, args, count);
  }
  launch(pack_groups_kernel, blocks_for(tile_count(args.out) * kTileOutputs *
                                kept_groups(args.in, args.kept_group_size)), dim3(kThreads), 0, on, args);
}

void gpu_unpack_fragments(const GpuUnpackArgs& args, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const int bits = fragment_bits(args.bits);
  const int64_t count = fragment_bytes(args.out, args.in, bits) / 16;
  if (bits == 8) {
    launch(unpack_kernel<8>, blocks_for(count), dim3(kThreads), 0, on, args, count);
  } else {
    launch(unpack_kernel<4>, blocks_for(count), dim3(kThreads), 0, on, args, count);
  }
}

}  // namespace lowbit
