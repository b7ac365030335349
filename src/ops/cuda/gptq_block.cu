// ops/gptq_block.h on a GPU, with the bits of the reference: an element is brought up to date by fused
// multiply-adds in the order of the columns before it, and nothing else is fused.
#include "ops/cuda/device.cuh"
#include "ops/cuda/quantize_gpu.h"

namespace lowbit {
namespace {

constexpr int kWarps = 8;
constexpr int kRun = 32;  // columns that one warp decides, in registers

// What a block of threads works in. Behind it lie w, [columns][32], and u, [kRun][pitch].
struct Room {
  float errors[kRun][32];
  // Of the run: read and written by all warps, so that the one that decides waits for no memory.
  float scales[kRun][32], zero_points[kRun][32], previous[kRun][32];
  uint8_t codes[kRun][32];
};

// Floats between rows of u: a row has what is left of the block, rounded up to 16 bytes twice, since columns
// are taken four at a time.
__host__ __device__ constexpr int64_t pitch_for(int64_t columns) { return (columns + kRun + 3) / 4 * 4; }
constexpr size_t room_bytes(int64_t columns) {
  return sizeof(Room) + static_cast<size_t>(columns * 32 + kRun * pitch_for(columns)) * sizeof(float);
}

// Decides the columns of a run, a row for each lane, w of which a lane has in registers.
template <bool kDescends>
__device__ inline void decide(Room& room, float* columns, const float* u, int pitch, int count,
                              float max_code) {
  const int lane = static_cast<int>(threadIdx.x);
  float w[kRun];
#pragma unroll
  for (int i = 0; i < kRun; ++i) w[i] = i < count ? columns[i * 32 + lane] : 0;
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    if (i >= count) break;
    const float scale = room.scales[i][lane], zero_point = room.zero_points[i][lane],
                pivot = u[i * pitch + i];
    float previous = 0, value = w[i];
    if (kDescends) {
      previous = room.previous[i][lane];
      value = __fadd_rn(previous, __fdiv_rn(w[i], pivot));
    }
    const float level = __fadd_rn(rintf(__fdiv_rn(value, scale)), zero_point);
    const float code = isnan(level) ? zero_point : fminf(fmaxf(level, 0.0f), max_code);
    const float decoded = __fmul_rn(scale, code - zero_point);
    const float error =
        kDescends ? __fsub_rn(decoded, previous) : __fdiv_rn(__fsub_rn(value, decoded), pivot);
    room.errors[i][lane] = error;
    room.codes[i][lane] = static_cast<uint8_t>(code);
#pragma unroll
    for (int j = i + 1; j < kRun; ++j) w[j] = fmaf(-error, u[i * pitch + j], w[j]);
  }
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    if (i < count) columns[i * 32 + lane] = w[i];
  }
}

// 32 rows, a lane each.
template <bool kDescends>
__global__ void __launch_bounds__(32 * kWarps) gptq_block_kernel(GptqBlockArgs args, int64_t rows) {
  extern __shared__ __align__(16) char shared[];
  Room& room = *reinterpret_cast<Room*>(shared);
  follow_predecessor();
  const int lane = static_cast<int>(threadIdx.x), warp = static_cast<int>(threadIdx.y);
  const int begin = static_cast<int>(args.begin), end = static_cast<int>(args.end),
            columns = static_cast<int>(args.columns);
  float* const w = reinterpret_cast<float*>(shared + sizeof(Room));
  float* const u = w + columns * 32;
  const int pitch = static_cast<int>(pitch_for(columns));
  const int64_t row = int64_t{blockIdx.x} * 32 + lane;
  const bool is_row = row < rows;
  for (int j = begin + warp; j < columns; j += kWarps)
    w[j * 32 + lane] = is_row ? args.w[j * args.w_stride + row] : 0;
  for (int first = begin; first < end; first += kRun) {
    const int count = min(kRun, end - first), width = columns - first;
    __syncthreads();  // the run before is done with u and errors
    for (int i = warp; i < kRun; i += kWarps) {
      const float* const from = args.u + int64_t{first + i} * args.u_stride + first;
      for (int j = lane; j < width || j < kRun; j += 32)
        u[i * pitch + j] = i < count && j < width ? from[j] : 0;
      if (i >= count || !is_row) continue;
      const int64_t grid = args.groups[first + i] * args.grids_stride + row;
      room.scales[i][lane] = args.scales[grid];
      room.zero_points[i][lane] = args.zero_points[grid];
      if (kDescends) room.previous[i][lane] = args.previous[(first + i) * args.previous_stride + row];
    }
    __syncthreads();
    if (warp == 0)
      decide<kDescends>(room, w + first * 32, u, pitch, count, static_cast<float>(args.max_code));
    __syncthreads();
    for (int i = warp; i < count && is_row; i += kWarps) {
      args.codes[(first + i) * args.codes_stride + row] = room.codes[i][lane];
      args.errors[(first + i) * args.errors_stride + row] = room.errors[i][lane];
    }
    for (int j = count + 4 * warp; j < width; j += 4 * kWarps) {
      float sums[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) sums[k] = j + k < width ? w[(first + j + k) * 32 + lane] : 0;
#pragma unroll 8
      for (int i = 0; i < count; ++i) {
        const float error = room.errors[i][lane];
#pragma unroll
        for (int k = 0; k < 4; ++k) sums[k] = fmaf(-error, u[i * pitch + j + k], sums[k]);
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (j + k < width) w[(first + j + k) * 32 + lane] = sums[k];
      }
    }
  }
  __syncthreads();
  for (int j = begin + warp; j < columns && is_row; j += kWarps)
    args.w[j * args.w_stride + row] = w[j * 32 + lane];
}

}  // namespace

void gpu_gptq_block(const GptqBlockArgs& args, int64_t rows, void* stream) {
  const dim3 blocks(static_cast<unsigned>((rows + 31) / 32));
  allow_shared_memory<gptq_block_kernel<false>>(room_bytes(kGptqBlockColumns));
  allow_shared_memory<gptq_block_kernel<true>>(room_bytes(kGptqBlockColumns));
  launch(args.previous ? gptq_block_kernel<true> : gptq_block_kernel<false>, blocks, dim3(32, kWarps),
         room_bytes(args.columns), stream, args, rows);
}

}  // namespace lowbit
