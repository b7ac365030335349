// What comes before a product of int8: rows of x to codes, which columns have outliers, and both operands to
// the blocks of matmul_int8.h.
#include "ops/cuda/device.cuh"
#include "ops/cuda/matmul_int8.h"
#include "ops/cuda/wgmma.cuh"

#include <algorithm>
#include <limits>

namespace lowbit {
namespace {

constexpr int kThreads = 256, kChunk = 16;
constexpr float kLeastMagnitude = 1e-30f;  // rows below it are rows of zeros, see ops/cpu/prepare_kernels.h

__device__ inline int64_t place_in_blocks(int64_t row, int64_t byte, int64_t row_bytes) {
  const int64_t block = row / kInt8BlockRows * (row_bytes / kPanelRowBytes) + byte / kPanelRowBytes;
  return block * kInt8BlockBytes +
         panel_place(static_cast<int>(row % kInt8BlockRows), static_cast<int>(byte % kPanelRowBytes / 16)) +
         byte % 16;
}

// 16 values of BF16 in pairs.
struct Chunk {
  uint32_t pairs[kChunk / 2];

  __device__ float operator[](int i) const {
    return i % 2 ? high_bf16(pairs[i / 2]) : low_bf16(pairs[i / 2]);
  }
};
// From column `at` on, zeros behind the row.
__device__ inline Chunk load_chunk(const uint16_t* row, int at, int in) {
  Chunk chunk = {};
  if (in % 8 != 0) {  // rows begin anywhere
#pragma unroll
    for (int i = 0; i < kChunk; ++i)
      if (at + i < in) chunk.pairs[i / 2] |= static_cast<uint32_t>(row[at + i]) << 16 * (i % 2);
    return chunk;
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (at + 8 * half >= in) continue;
    const uint4 eight = *reinterpret_cast<const uint4*>(row + at + 8 * half);
    chunk.pairs[4 * half] = eight.x, chunk.pairs[4 * half + 1] = eight.y;
    chunk.pairs[4 * half + 2] = eight.z, chunk.pairs[4 * half + 3] = eight.w;
  }
  return chunk;
}

// What a row is rounded with.
struct Rounding {
  float scale, factor, zero_point, least;
  bool is_finite;
};
// The roundings are those of encode_int8 and encode_input (format/int8.h).
__device__ inline Rounding rounding_of(const GpuInt8Rows& args, float largest, bool is_finite) {
  const bool is_static = args.input_scale > 0;
  if (!is_finite || largest < kLeastMagnitude) largest = 0;
  return {!is_finite  ? __int_as_float(0x7fffffff)
          : is_static ? args.input_scale
                      : __fdiv_rn(largest, 127.0f),
          is_static     ? __frcp_rn(args.input_scale)
          : largest > 0 ? __fmul_rn(127.0f, __frcp_rn(largest))
                        : 0.0f,
          is_static ? static_cast<float>(args.input_zero_point) : 0.0f, is_static ? -128.0f : -127.0f,
          is_finite};
}

template <bool kCodes>
__device__ inline void round_chunk(const GpuInt8Rows& args, const Rounding& by, float limit, int64_t row,
                                   int at, const Chunk& values) {
  const int in = static_cast<int>(args.in);
  uint32_t outliers = 0;
  int codes[kChunk];
#pragma unroll
  for (int i = 0; i < kChunk; ++i) {
    const bool is_code = by.is_finite && fabsf(values[i]) < limit && at + i < in;
    const float level = rintf(__fmul_rn(values[i], by.factor)) + by.zero_point;
    codes[i] = is_code ? static_cast<int>(fminf(fmaxf(level, by.least), 127.0f)) : 0;
    if (by.is_finite && at + i < in && !is_code) outliers |= 1u << i;
  }
  if constexpr (kCodes) {
    uint32_t packed[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      packed[i] = (codes[4 * i] & 0xff) | (codes[4 * i + 1] & 0xff) << 8 | (codes[4 * i + 2] & 0xff) << 16 |
                  static_cast<uint32_t>(codes[4 * i + 3]) << 24;
    *reinterpret_cast<uint4*>(args.codes + place_in_blocks(row, at, padded_inputs(args.in))) =
        make_uint4(packed[0], packed[1], packed[2], packed[3]);
    if (outliers) atomicOr(args.mask + at / 32, outliers << at % 32);
  } else {
    uint16_t* const to = args.rounded + row * args.in + at;
    float rounded[kChunk];
#pragma unroll
    for (int i = 0; i < kChunk; ++i)
      rounded[i] = outliers >> i & 1 ? values[i] : by.scale * (static_cast<float>(codes[i]) - by.zero_point);
#pragma unroll
    for (int i = 0; i < kChunk; i += 8) {
      if (in % 8 == 0 && at + i < in)
        *reinterpret_cast<uint4*>(to + i) =
            make_uint4(bf16_pair(rounded[i], rounded[i + 1]), bf16_pair(rounded[i + 2], rounded[i + 3]),
                       bf16_pair(rounded[i + 4], rounded[i + 5]), bf16_pair(rounded[i + 6], rounded[i + 7]));
#pragma unroll
      for (int j = i; in % 8 != 0 && j < i + 8; ++j)
        if (at + j < in) to[j] = f32_to_bf16(rounded[j]);
    }
  }
}

// So many threads a row, whole warps, that each has few chunks, which it reads once and keeps.
constexpr int kKept = 4;
int row_threads(int64_t in) {
  int threads = 32;
  while (threads < kThreads && threads * kKept * kChunk < in) threads *= 2;
  return threads;
}

template <bool kCodes>
__global__ void __launch_bounds__(kThreads) round_kernel(const GpuInt8Rows args, int row_threads) {
  __shared__ float largest_of[kThreads / 32];
  __shared__ int finite_of[kThreads / 32];
  follow_predecessor();
  const int in = static_cast<int>(args.in), stride = row_threads * kChunk;
  const int thread = static_cast<int>(threadIdx.x) % row_threads, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / row_threads) +
                      static_cast<int>(threadIdx.x) / row_threads;
  const bool is_row = row < args.rows;
  const uint16_t* const x = args.x + row * args.in;
  const float limit = args.threshold > 0 ? args.threshold : INFINITY;
  float largest = 0;
  bool is_finite = true;
  auto look_at = [&](const Chunk& values) {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      const float size = fabsf(values[i]);
      is_finite = is_finite && size < INFINITY;
      if (size < limit) largest = fmaxf(largest, size);
    }
  };
  Chunk kept[kKept] = {};
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const int at = thread * kChunk + i * stride;
    if (is_row && at < in) kept[i] = load_chunk(x, at, in);
  }
#pragma unroll
  for (int i = 0; i < kKept; ++i) look_at(kept[i]);
  const int beyond = thread * kChunk + kKept * stride;
  for (int at = beyond; is_row && at < in; at += stride) look_at(load_chunk(x, at, in));
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
  is_finite = __all_sync(0xffffffffu, is_finite);
  if (row_threads > 32) {
    if (threadIdx.x % 32 == 0) largest_of[warp] = largest, finite_of[warp] = is_finite;
    __syncthreads();
    const int first = warp - thread / 32;
    for (int i = first; i < first + row_threads / 32; ++i) {
      largest = fmaxf(largest, largest_of[i]);
      is_finite = is_finite && finite_of[i];
    }
  }
  if (!is_row) return;
  const Rounding rounding = rounding_of(args, largest, is_finite);
  if (kCodes && thread == 0) args.scales[row] = rounding.scale;
  const int end = kCodes ? static_cast<int>(padded_inputs(args.in)) : in;
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const int at = thread * kChunk + i * stride;
    if (at < end) round_chunk<kCodes>(args, rounding, limit, row, at, kept[i]);
  }
  for (int at = beyond; at < end; at += stride)
    round_chunk<kCodes>(args, rounding, limit, row, at, load_chunk(x, at, in));
}

// The columns of the mask, ascending, by a warp; returns how many, of which no more than `most` are written,
// and -1 behind the last up to a multiple of 64.
__device__ inline int list_columns(const uint32_t* mask, int words, int most, int32_t* to) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int found = 0;
  for (int first = 0; first < words; first += 32) {
    uint32_t here = first + lane < words ? mask[first + lane] : 0;
    int before = __popc(here);  // with this lane's, until it is taken off
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, before, distance);
      if (lane >= distance) before += other;
    }
    int at = found + before - __popc(here);
    found += __shfl_sync(0xffffffffu, before, 31);
    for (; here && at < most; here &= here - 1)
      to[at++] = (first + lane) * 32 + __ffs(static_cast<int>(here)) - 1;
  }
  for (int i = found + lane; i < min((found + 63) / 64 * 64, most); i += 32) to[i] = -1;
  return found;
}

// blockIdx.y: x, or one of the matrices. A thread per eight columns of a row. Every block makes the list for
// itself, the first one leaves it to the product.
__global__ void __launch_bounds__(kThreads) gather_outliers_kernel(const GpuInt8Product args) {
  follow_predecessor();
  __shared__ int32_t columns[kInt8OutlierColumns];
  __shared__ int count;
  const int words = static_cast<int>(int8_mask_words(args.x.in)), room = static_cast<int>(args.capacity);
  if (threadIdx.x < 32) {
    const int found = list_columns(args.x.mask, words, room, columns);
    if (threadIdx.x == 0) count = min(found, room);
  } else if (threadIdx.x < 64 && blockIdx.x == 0 && blockIdx.y == 0) {
    const int found =
        list_columns(args.x.mask, words, static_cast<int>(args.x.in + 63) / 64 * 64, args.x.outlier_columns);
    if (threadIdx.x == 32) *args.x.outlier_count = found;
  }
  __syncthreads();
  const int pieces = (count + 63) / 64 * 8;
  const bool is_x = blockIdx.y == 0;
  const GpuInt8Matrix& matrix = args.matrix[is_x ? 0 : blockIdx.y - 1];
  const int64_t rows = is_x ? args.x.rows : matrix.out;
  char* const to = reinterpret_cast<char*>(is_x ? args.x_outliers : matrix.outliers);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < rows * pieces; i += step) {
    const int64_t row = i / pieces;
    const int piece = static_cast<int>(i % pieces);
    uint32_t pairs[4];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int column = columns[piece * 8 + j];
      uint32_t value = 0;
      if (column >= 0 && is_x) {
        const uint16_t x = args.x.x[row * args.x.in + column];
        if (fabsf(bf16_to_f32(x)) >= args.x.threshold) value = x;
      } else if (column >= 0) {
        const int64_t at = fragment_place(row, column, args.x.in, 8).byte;
        value = f32_to_bf16(static_cast<float>(static_cast<const uint8_t*>(matrix.fragments)[at]) - 128.0f);
      }
      pairs[j / 2] = j % 2 ? pairs[j / 2] | value << 16 : value;
    }
    *reinterpret_cast<uint4*>(to + place_in_blocks(row, piece * 16, args.capacity * 2)) =
        make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  }
}

// blockIdx.y: a matrix. A thread per 16 bytes of fragments, which are eight inputs of rows g and g + 8; the
// first piece's threads also bring the scales. The mask of outliers is cleared on the way.
__global__ void __launch_bounds__(kThreads) blocks_kernel(const GpuInt8Product args) {
  follow_predecessor();
  const GpuInt8Matrix& matrix = args.matrix[blockIdx.y];
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t pieces = piece_count(args.x.in, 8), row_bytes = padded_inputs(args.x.in);
  if (args.x.mask && blockIdx.x == 0 && blockIdx.y == 0)
    for (int i = static_cast<int>(threadIdx.x); i < int8_mask_words(args.x.in); i += kThreads)
      args.x.mask[i] = 0;
  if (index >= tile_count(matrix.out) * pieces * 32) return;
  const int g = static_cast<int>(index % 32 / 4), c = static_cast<int>(index % 4);
  const int64_t piece = index / 32 % pieces, tile = index / 32 / pieces;
  const uint4 data = static_cast<const uint4*>(matrix.fragments)[index];
#pragma unroll
  for (int upper = 0; upper < 2; ++upper) {
    const int64_t n = tile * kTileOutputs + g + upper * 8;
    const unsigned order = upper ? 0x7351u : 0x6240u;  // first and second elements of pairs in turn
    uint2 eight = {__byte_perm(data.x, data.y, order) ^ 0x80808080u,
                   __byte_perm(data.z, data.w, order) ^ 0x80808080u};
    *reinterpret_cast<uint2*>(matrix.codes + place_in_blocks(n, piece * kBlockInputs + c * 8, row_bytes)) =
        eight;
    if (piece == 0 && c == 0 && n < matrix.out)
      matrix.wide_scales[n] = __half2float(
          static_cast<const __half*>(matrix.scales)[group_place(n, 0, kept_groups(args.x.in, kUnitInputs))]);
  }
}

}  // namespace

void gpu_round_to_int8(const GpuInt8Rows& args, void* stream) {
  const int threads = row_threads(args.in), rows = kThreads / threads;
  launch(args.rounded ? round_kernel<false> : round_kernel<true>,
         dim3(static_cast<unsigned>((args.rows + rows - 1) / rows)), dim3(kThreads), 0, stream, args,
         threads);
}

void gpu_int8_weights(const GpuInt8Product& args, void* stream) {
  int64_t most = 0;
  for (int i = 0; i < args.matrices; ++i) most = std::max(most, tile_count(args.matrix[i].out));
  const int64_t threads = most * piece_count(args.x.in, 8) * 32;
  launch(
      blocks_kernel,
      dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads), static_cast<unsigned>(args.matrices)),
      dim3(kThreads), 0, stream, args);
}

void gpu_gather_outliers(const GpuInt8Product& args, void* stream) {
  launch(gather_outliers_kernel, dim3(128, static_cast<unsigned>(args.matrices + 1)), dim3(kThreads), 0,
         stream, args);
}

}  // namespace lowbit
