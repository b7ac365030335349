// ops/clip_search.h on a GPU: a lane has a row, warps share the candidates, and each warp reads the group
// once for all of its candidates.
#include "ops/cuda/device.cuh"
#include "ops/cuda/quantize_gpu.h"

namespace lowbit {
namespace {

constexpr int kWarps = 8;
constexpr int64_t kManyBlocks = 256;  // enough for every multiprocessor
constexpr int kAtOnce = 10;           // candidates of a warp in one pass over the group

struct Grid {
  float scale, zero_point;
};

// affine_grid of format/affine.h, bit by bit.
__device__ inline Grid grid_of(float low, float high, int max_code, bool sym) {
  if (sym) {
    const float most = fmaxf(-low, high);
    return {most > 0 ? f16_scale(__fdiv_rn(2 * most, static_cast<float>(max_code))) : 1.0f,
            static_cast<float>((max_code + 1) / 2)};
  }
  if (high == low) return {1, 0};
  const float scale = f16_scale(__fdiv_rn(__fsub_rn(high, low), static_cast<float>(max_code)));
  return {scale, fmaxf(0.0f, fminf(rintf(__fdiv_rn(-low, scale)), static_cast<float>(max_code)))};
}

__device__ inline float power(float value, float norm) {
  return norm == 2 ? value * value : exp2f(norm * __log2f(value));  // 0 gives exp2(-inf), which is 0
}

// The sum, least or largest over the lanes of a row, the same in all of them.
template <int kSplit, class Join>
__device__ inline float joined(float value, Join join) {
#pragma unroll
  for (int distance = 16; distance >= 32 / kSplit; distance /= 2)
    value = join(value, __shfl_xor_sync(0xffffffffu, value, distance));
  return value;
}

// kSplit lanes for each row.
template <int kSplit>
__global__ void __launch_bounds__(32 * kWarps) clip_search_kernel(ClipSearchArgs args, int64_t rows) {
  constexpr int kRows = 32 / kSplit;
  __shared__ float lows[kWarps][32], highs[kWarps][32];
  __shared__ float errors[kWarps][32];
  __shared__ int choices[kWarps][32];
  follow_predecessor();
  const int lane = static_cast<int>(threadIdx.x), warp = static_cast<int>(threadIdx.y);
  const int64_t row = int64_t{blockIdx.x} * kRows + lane % kRows;
  const int part = lane / kRows;
  const bool is_row = row < rows;
  const float* const w = args.w + (is_row ? row : 0);
  float low = 0, high = 0;
  for (int64_t column = warp * kSplit + part; column < args.columns; column += kWarps * kSplit) {
    const float value = w[column * args.w_stride];
    if (value < low) low = value;
    if (value > high) high = value;
  }
  low = joined<kSplit>(low, [](float a, float b) { return fminf(a, b); });
  high = joined<kSplit>(high, [](float a, float b) { return fmaxf(a, b); });
  lows[warp][lane] = low;
  highs[warp][lane] = high;
  __syncthreads();
  for (int i = 0; i < kWarps; ++i) low = fminf(low, lows[i][lane]), high = fmaxf(high, highs[i][lane]);

  float least = INFINITY;
  int best = 0;
  const float most_level = static_cast<float>(args.max_code);
  for (int first = warp; first < args.candidates && args.candidates > 1; first += kWarps * kAtOnce) {
    Grid grids[kAtOnce];
    float inverses[kAtOnce], sums[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const float shrink = static_cast<float>(1.0 - (first + k * kWarps) * args.step);
      grids[k] = grid_of(__fmul_rn(low, shrink), __fmul_rn(high, shrink), args.max_code, args.sym);
      inverses[k] = 1 / grids[k].scale;
      sums[k] = 0;
    }
    for (int64_t column = part; column < args.columns; column += kSplit) {
      const float value = w[column * args.w_stride];
      const float weight = args.column_weights ? args.column_weights[column] : 1;
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const float zero_point = grids[k].zero_point;
        const float level = fminf(fmaxf(rintf(value * inverses[k]), -zero_point), most_level - zero_point);
        const float difference = fabsf(fmaf(-grids[k].scale, level, value));
        sums[k] = fmaf(weight, power(difference, args.norm), sums[k]);
      }
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      sums[k] = joined<kSplit>(sums[k], [](float a, float b) { return a + b; });
      if (first + k * kWarps < args.candidates && sums[k] < least) least = sums[k], best = first + k * kWarps;
    }
  }
  errors[warp][lane] = least;
  choices[warp][lane] = best;
  __syncthreads();
  if (warp != 0 || !is_row || part != 0) return;
  for (int i = 1; i < kWarps; ++i) {
    const float error = errors[i][lane];
    if (error < least || (error == least && choices[i][lane] < best)) least = error, best = choices[i][lane];
  }
  const float shrink = static_cast<float>(1.0 - best * args.step);
  Grid grid = best == 0 ? grid_of(low, high, args.max_code, args.sym)
                        : grid_of(__fmul_rn(low, shrink), __fmul_rn(high, shrink), args.max_code, args.sym);
  const float bottom = static_cast<float>(args.least_zero_point);
  if (grid.zero_point < bottom)
    grid = {f16_scale(__fdiv_rn(__fmul_rn(grid.scale, most_level), most_level - bottom)), bottom};
  args.scales[row] = grid.scale;
  args.zero_points[row] = grid.zero_point;
}

}  // namespace

void gpu_clip_search(const ClipSearchArgs& args, int64_t rows, void* stream) {
  constexpr int kSplit = 4;
  const int64_t blocks = (rows + 31) / 32;
  if (blocks < kManyBlocks) {
    launch(clip_search_kernel<kSplit>, dim3(static_cast<unsigned>((rows * kSplit + 31) / 32)),
           dim3(32, kWarps), 0, stream, args, rows);
  } else {
    launch(clip_search_kernel<1>, dim3(static_cast<unsigned>(blocks)), dim3(32, kWarps), 0, stream, args,
           rows);
  }
}

}  // namespace lowbit
