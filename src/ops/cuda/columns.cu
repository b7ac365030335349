// ops/columns.h and ops/fit_scales.h on a GPU, and the matrices around a factorization. Neighbouring threads
// take neighbouring rows, which lie side by side.
#include "format/bits.h"
#include "ops/cuda/device.cuh"
#include "ops/cuda/quantize_gpu.h"

#include <algorithm>

namespace lowbit {
namespace {

constexpr int kThreads = 256;

unsigned blocks_for(int64_t count, int64_t each) { return static_cast<unsigned>((count + each - 1) / each); }

__device__ inline float value_of(const float* values, int64_t at) { return values[at]; }
__device__ inline float value_of(const double* values, int64_t at) { return static_cast<float>(values[at]); }
__device__ inline float value_of(const __half* values, int64_t at) { return __half2float(values[at]); }
__device__ inline float value_of(const __nv_bfloat16* values, int64_t at) {
  return __bfloat162float(values[at]);
}

// A tile of 32 columns by 32 rows: read along the columns (where they are in order), written along the rows.
template <class T>
__global__ void load_columns_kernel(GpuLoadColumnsArgs args) {
  __shared__ float tile[32][33];
  follow_predecessor();
  const int64_t first = int64_t{blockIdx.x} * 32, row_first = int64_t{blockIdx.y} * 32;
  const T* const weight = static_cast<const T*>(args.weight);
  const int64_t i = first + threadIdx.x;
  const int64_t column = i < args.count ? args.columns[i] : 0;
  for (int r = threadIdx.y; r < 32; r += 8) {
    const int64_t row = row_first + r;
    if (i >= args.count || row >= args.rows) continue;
    const float value = value_of(weight, (args.first_row + row) * args.in + column);
    if (!isfinite(value)) *args.not_finite = 1;
    tile[r][threadIdx.x] = value;
  }
  __syncthreads();
  const int64_t row = row_first + threadIdx.x;
  for (int c = threadIdx.y; c < 32; c += 8) {
    if (first + c < args.count && row < args.rows)
      args.w[(first + c) * args.rows + row] = tile[threadIdx.x][c];
  }
}

__global__ void decode_columns_kernel(CodeColumns columns, int64_t begin, int64_t count, float* values) {
  follow_predecessor();
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= count * columns.rows) return;
  const int64_t i = begin + at / columns.rows, row = at % columns.rows;
  const int64_t grid = columns.groups[i] * columns.rows + row;
  values[at] = columns.scales[grid] *
               (static_cast<float>(columns.codes[i * columns.rows + row]) - columns.zero_points[grid]);
}

__global__ void subtract_kernel(const float* a, const float* b, int64_t count, float* out) {
  follow_predecessor();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) out[i] = a[i] - b[i];
}

// Each block's sum over the columns blockIdx.x, blockIdx.x + gridDim.x, ...
__global__ void dot_parts_kernel(GpuDotArgs args) {
  __shared__ double room[kThreads / 32];
  follow_predecessor();
  double sum = 0;
  for (int64_t i = blockIdx.x; i < args.columns; i += gridDim.x) {
    double part = 0;
    for (int64_t row = threadIdx.x; row < args.rows; row += blockDim.x) {
      const int64_t at = i * args.rows + row;
      part += double{args.a[at]} * double{args.b[at]};
    }
    sum += args.weights ? double{args.weights[i]} * part : part;
  }
  sum = block_sum(sum, room);
  if (threadIdx.x == 0) args.parts[blockIdx.x] = sum;
}

__global__ void dot_sum_kernel(const double* parts, int count, double* sum) {
  __shared__ double room[kGpuDotBlocks / 32];
  follow_predecessor();
  const double total = block_sum(static_cast<int>(threadIdx.x) < count ? parts[threadIdx.x] : 0.0, room);
  if (threadIdx.x == 0) *sum += total;
}

// A thread packs the words of 32 positions of one row: as many words as a code has bits.
__global__ void pack_columns_kernel(PackColumnsArgs args) {
  follow_predecessor();
  const int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, first = int64_t{blockIdx.y} * 32;
  if (row >= args.rows) return;
  const int count = static_cast<int>(min(int64_t{32}, args.columns - first));
  uint64_t bits = 0;
  int filled = 0;
  uint32_t* to = args.words + first / 32 * args.bits * args.stride + row;
  for (int i = 0; i < count; ++i) {
    const int64_t column = args.column_of ? args.column_of[first + i] : first + i;
    bits |= uint64_t{args.codes[column * args.rows + row]} << filled;
    filled += args.bits;
    if (filled >= 32) {
      *to = static_cast<uint32_t>(bits);
      to += args.stride;
      bits >>= 32;
      filled -= 32;
    }
  }
  if (filled > 0) *to = static_cast<uint32_t>(bits);
}

constexpr int kFitWarps = 8;
constexpr int kFitAtOnce = 4;  // columns of a warp in one pass over the group
constexpr int kFitPitch = int{kFitScalesColumns};

struct FitRoom {
  float hessian[kFitScalesColumns][kFitPitch];  // of the block's columns and those of the group
  float levels[kFitScalesColumns][32];
  float products[kFitScalesColumns][32];  // H c
  float slopes[kFitWarps][32], curvatures[kFitWarps][32];
};

// 32 rows, a lane each; warps share the columns of the block.
__global__ void __launch_bounds__(32 * kFitWarps) fit_scales_kernel(FitScalesArgs args) {
  extern __shared__ __align__(16) char shared[];
  FitRoom& room = *reinterpret_cast<FitRoom*>(shared);
  follow_predecessor();
  const int lane = threadIdx.x, warp = threadIdx.y;
  const int64_t row = int64_t{blockIdx.x} * 32 + lane;
  const bool is_row = row < args.rows;
  const int first = static_cast<int>(args.first), columns = static_cast<int>(args.columns);
  const int count = static_cast<int>(args.last - args.first);
  const float zero_point = is_row ? args.zero_points[row] : 0;
  const float before = is_row ? args.scales[row] : 1;
  const int padded = (count + 3) / 4 * 4;  // with zeros
  for (int i = warp; i < padded; i += kFitWarps) {
    room.levels[i][lane] =
        is_row && i < count ? static_cast<float>(args.codes[(first + i) * args.rows + row]) - zero_point : 0;
  }
  for (int j = warp; j < kFitScalesColumns; j += kFitWarps) {
    const float* const h = args.hessian + j * args.hessian_stride + first;
    for (int i = lane; i < padded; i += 32) room.hessian[j][i] = j < columns && i < count ? h[i] : 0;
  }
  __syncthreads();
  float slope = 0, curvature = 0;
  for (int j = warp * kFitAtOnce; j < columns; j += kFitWarps * kFitAtOnce) {
    float sums[kFitAtOnce] = {};
#pragma unroll 4
    for (int i = 0; i < padded; i += 4) {
      const float a = room.levels[i][lane], b = room.levels[i + 1][lane], c = room.levels[i + 2][lane],
                  d = room.levels[i + 3][lane];
#pragma unroll
      for (int k = 0; k < kFitAtOnce; ++k) {
        const float4 h = *reinterpret_cast<const float4*>(&room.hessian[j + k][i]);
        sums[k] = fmaf(h.x, a, fmaf(h.y, b, fmaf(h.z, c, fmaf(h.w, d, sums[k]))));
      }
    }
#pragma unroll
    for (int k = 0; k < kFitAtOnce; ++k) {
      if (j + k >= columns) continue;
      room.products[j + k][lane] = sums[k];
      if (j + k < first || j + k >= first + count || !is_row) continue;
      const float level = room.levels[j + k - first][lane];
      slope = fmaf(level, args.gradient[(j + k) * args.rows + row], slope);
      curvature = fmaf(level, sums[k], curvature);
    }
  }
  room.slopes[warp][lane] = slope;
  room.curvatures[warp][lane] = curvature;
  __syncthreads();
  slope = curvature = 0;
  for (int w = 0; w < kFitWarps; ++w) slope += room.slopes[w][lane], curvature += room.curvatures[w][lane];
  const float better = before + slope / curvature;
  const bool is_sane = curvature > 0 && better > 0.5f * before && better < 2.0f * before;
  const float scale = is_sane ? f16_scale(better) : before, change = scale - before;
  if (!is_row) return;
  if (warp == 0) args.scales[row] = scale;
  for (int j = warp; j < columns; j += kFitWarps) {
    const int64_t at = j * args.rows + row;
    args.gradient[at] = fmaf(-change, room.products[j][lane], args.gradient[at]);
    if (j >= first && j < first + count) args.values[at] = scale * room.levels[j - first][lane];
  }
}

// Tiles of 32 x 32 through shared memory: to[y][x] = matrix[x][y] above the diagonal.
__global__ void mirror_upper_kernel(float* matrix, int64_t n) {
  __shared__ float tile[32][33];
  follow_predecessor();
  const int64_t left = int64_t{blockIdx.x} * 32, top = int64_t{blockIdx.y} * 32;  // of the tile that is read
  if (left < top) return;
  for (int r = threadIdx.y; r < 32; r += 8) {
    if (top + r < n && left + threadIdx.x < n)
      tile[r][threadIdx.x] = matrix[(top + r) * n + left + threadIdx.x];
  }
  __syncthreads();
  for (int r = threadIdx.y; r < 32; r += 8) {
    const int64_t y = left + r, x = top + threadIdx.x;
    if (y < n && x < y) matrix[y * n + x] = tile[threadIdx.x][r];
  }
}

__global__ void diagonal_kernel(const float* matrix, int64_t n, float* diagonal) {
  follow_predecessor();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < n) diagonal[i] = matrix[i * (n + 1)];
}

__global__ void permute_gram_kernel(PermuteGramArgs args) {
  follow_predecessor();
  const int64_t j = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, i = args.first + blockIdx.y;
  if (j >= args.width) return;
  args.to[blockIdx.y * args.width + j] =
      i == j ? args.diagonal[i] : args.h[args.order[i] * args.width + args.order[j]];
}

__global__ void permuted_gram_band_kernel(PermuteGramArgs args, int64_t band_width, float* band) {
  follow_predecessor();
  const int64_t i = blockIdx.x, j = i + threadIdx.x - band_width / 2;
  float value = 0;
  if (j >= 0 && j < args.width)
    value = i == j ? args.diagonal[i] : args.h[args.order[i] * args.width + args.order[j]];
  band[i * band_width + threadIdx.x] = value;
}

__global__ void split_kernel(GpuSplitArgs args) {
  follow_predecessor();
  const int64_t column = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, row = blockIdx.y;
  if (column >= args.columns) return;
  const float value = args.from[row * args.stride + column];
  const uint16_t high = f32_to_bf16(value), low = f32_to_bf16(value - bf16_to_f32(high));
  uint16_t* const to = args.to + 3 * row * args.to_stride + column;
  to[0] = high;
  to[args.to_stride] = args.parts == kHighHighLow ? high : low;
  to[2 * args.to_stride] = args.parts == kHighHighLow ? low : high;
}

// A thread has a column of the inverse, and finds it from the diagonal up.
__global__ void __launch_bounds__(kGpuInvertBlock)
    invert_diagonal_blocks_kernel(const float* c, int64_t n, float* inverses, float* y) {
  extern __shared__ float columns[];  // [row][thread]
  constexpr int kSize = kGpuInvertBlock;
  follow_predecessor();
  const int64_t k = int64_t{blockIdx.x} * kSize;
  const int size = static_cast<int>(min(int64_t{kSize}, n - k)), own = static_cast<int>(threadIdx.x);
  const float* const block = c + k * n + k;
  float* const column = columns + own;
  for (int i = 0; i < kSize; ++i) column[i * kSize] = 0;
  // All threads take all rows, so that elements of c are the same for a warp; zeros stay zeros.
  for (int i = size - 1; i >= 0; --i) {
    const float* const row = block + i * n;
    float sums[4] = {i == own ? 1.0f : 0.0f};
    int j = i + 1;
    for (; j + 4 <= size; j += 4) {
#pragma unroll
      for (int part = 0; part < 4; ++part)
        sums[part] = fmaf(-row[j + part], column[(j + part) * kSize], sums[part]);
    }
    for (; j < size; ++j) sums[0] = fmaf(-row[j], column[j * kSize], sums[0]);
    column[i * kSize] = ((sums[0] + sums[1]) + (sums[2] + sums[3])) / row[i];
  }
  __syncthreads();
  float* const inverse = inverses + int64_t{blockIdx.x} * kSize * kSize;
  for (int i = 0; i < kSize; ++i) {
    inverse[i * kSize + own] = columns[own * kSize + i];  // transposed
    if (i < size && own < size) y[(k + i) * n + k + own] = columns[i * kSize + own];
  }
}

// A tile of `to` at rows x, columns y.
template <class From, class To>
__global__ void turn_kernel(const From* from, To* to, int64_t n) {
  __shared__ From tile[32][33];
  follow_predecessor();
  const int64_t y_first = int64_t{blockIdx.x} * 32, x_first = int64_t{blockIdx.y} * 32;
  for (int r = threadIdx.y; r < 32; r += 8) {
    const int64_t y = y_first + r, x = x_first + threadIdx.x;
    if (y < n && x < n) tile[r][threadIdx.x] = from[(n - 1 - y) * n + n - 1 - x];
  }
  __syncthreads();
  for (int r = threadIdx.y; r < 32; r += 8) {
    const int64_t x = x_first + r, y = y_first + threadIdx.x;
    if (y < n && x < n) to[x * n + y] = y >= x ? static_cast<To>(tile[threadIdx.x][r]) : To{0};
  }
}

template <class From, class To>
void turn(const GpuTurnArgs& args, void* stream) {
  const unsigned tiles = blocks_for(args.n, 32);
  launch(turn_kernel<From, To>, dim3(tiles, tiles), dim3(32, 8), 0, stream,
         static_cast<const From*>(args.from), static_cast<To*>(args.to), args.n);
}

template <class T>
void load_columns(const GpuLoadColumnsArgs& args, void* stream) {
  launch(load_columns_kernel<T>, dim3(blocks_for(args.count, 32), blocks_for(args.rows, 32)), dim3(32, 8), 0,
         stream, args);
}

}  // namespace

void gpu_load_columns(const GpuLoadColumnsArgs& args, void* stream) {
  switch (args.dtype) {
    case DType::kF32:
      return load_columns<float>(args, stream);
    case DType::kF64:
      return load_columns<double>(args, stream);
    case DType::kF16:
      return load_columns<__half>(args, stream);
    default:
      return load_columns<__nv_bfloat16>(args, stream);
  }
}

void gpu_decode_columns(const CodeColumns& columns, int64_t begin, int64_t end, float* values, void* stream) {
  launch(decode_columns_kernel, dim3(blocks_for((end - begin) * columns.rows, kThreads)), dim3(kThreads), 0,
         stream, columns, begin, end - begin, values);
}

void gpu_subtract(const float* a, const float* b, int64_t count, float* out, void* stream) {
  launch(subtract_kernel, dim3(blocks_for(count, kThreads)), dim3(kThreads), 0, stream, a, b, count, out);
}

void gpu_add_dot(const GpuDotArgs& args, void* stream) {
  const int blocks = static_cast<int>(std::min<int64_t>(kGpuDotBlocks, args.columns));
  launch(dot_parts_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, args);
  launch(dot_sum_kernel, dim3(1), dim3(kGpuDotBlocks), 0, stream, static_cast<const double*>(args.parts),
         blocks, args.sum);
}

void gpu_pack_columns(const PackColumnsArgs& args, void* stream) {
  launch(pack_columns_kernel, dim3(blocks_for(args.rows, kThreads), blocks_for(args.columns, 32)),
         dim3(kThreads), 0, stream, args);
}

void gpu_fit_scales(const FitScalesArgs& args, void* stream) {
  allow_shared_memory<fit_scales_kernel>(sizeof(FitRoom));
  launch(fit_scales_kernel, dim3(blocks_for(args.rows, 32)), dim3(32, kFitWarps), sizeof(FitRoom), stream,
         args);
}

void gpu_mirror_upper(float* matrix, int64_t n, void* stream) {
  const unsigned tiles = blocks_for(n, 32);
  launch(mirror_upper_kernel, dim3(tiles, tiles), dim3(32, 8), 0, stream, matrix, n);
}

void gpu_diagonal(const float* matrix, int64_t n, float* diagonal, void* stream) {
  launch(diagonal_kernel, dim3(blocks_for(n, kThreads)), dim3(kThreads), 0, stream, matrix, n, diagonal);
}

void gpu_permute_gram(const PermuteGramArgs& args, void* stream) {
  launch(permute_gram_kernel, dim3(blocks_for(args.width, kThreads), static_cast<unsigned>(args.rows)),
         dim3(kThreads), 0, stream, args);
}

void gpu_permuted_gram_band(const PermuteGramArgs& args, int64_t band_width, float* band, void* stream) {
  launch(permuted_gram_band_kernel, dim3(static_cast<unsigned>(args.width)),
         dim3(static_cast<unsigned>(band_width)), 0, stream, args, band_width, band);
}

void gpu_split(const GpuSplitArgs& args, void* stream) {
  launch(split_kernel, dim3(blocks_for(args.columns, kThreads), static_cast<unsigned>(args.rows)),
         dim3(kThreads), 0, stream, args);
}

void gpu_invert_diagonal_blocks(const float* c, int64_t n, float* inverses, float* y, void* stream) {
  constexpr int kBytes = kGpuInvertBlock * kGpuInvertBlock * int{sizeof(float)};
  allow_shared_memory<invert_diagonal_blocks_kernel>(kBytes);
  launch(invert_diagonal_blocks_kernel, dim3(blocks_for(n, kGpuInvertBlock)), dim3(kGpuInvertBlock), kBytes,
         stream, c, n, inverses, y);
}

void gpu_turn(const GpuTurnArgs& args, void* stream) {
  if (args.from_dtype == DType::kF32) {
    (args.to_dtype == DType::kF32 ? turn<float, float> : turn<float, double>)(args, stream);
  } else {
    turn<double, float>(args, stream);
  }
}

}  // namespace lowbit
