#include "ops/cuda/device.cuh"
#include "ops/cuda/elementwise_gpu.h"
#include "ops/cuda/embedding.cuh"

#include <algorithm>
#include <cmath>

namespace lowbit {
namespace {

constexpr int kThreads = 256;
dim3 blocks_for(int64_t count) {
  return dim3(static_cast<unsigned>(std::clamp<int64_t>((count + kThreads - 1) / kThreads, 1, 1 << 20)));
}

__device__ inline float load(const float* x, int64_t i) { return x[i]; }
__device__ inline float load(const uint16_t* x, int64_t i) { return bf16_to_f32(x[i]); }
__device__ inline void store(float* y, int64_t i, float value) { y[i] = value; }
__device__ inline void store(uint16_t* y, int64_t i, float value) { y[i] = f32_to_bf16(value); }

template <class From, class To>
__global__ void rms_norm_kernel(const From* x, To* y, const float* weight, int64_t width, float epsilon) {
  follow_predecessor();
  __shared__ float room[32];
  const From* const row = x + blockIdx.x * width;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) sum += load(row, i) * load(row, i);
  const float factor = rsqrtf(block_sum(sum, room) / static_cast<float>(width) + epsilon);
  To* const out = y + blockIdx.x * width;
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) store(out, i, load(row, i) * factor * weight[i]);
}

template <class From, class To>
__global__ void layer_norm_kernel(const From* x, To* y, const float* weight, const float* bias, int64_t width,
                                  float epsilon) {
  follow_predecessor();
  __shared__ float room[32];
  const From* const row = x + blockIdx.x * width;
  float sum = 0, squares = 0;
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) sum += load(row, i);
  const float mean = block_sum(sum, room) / static_cast<float>(width);
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) {
    const float distance = load(row, i) - mean;
    squares += distance * distance;
  }
  const float factor = rsqrtf(block_sum(squares, room) / static_cast<float>(width) + epsilon);
  To* const out = y + blockIdx.x * width;
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x)
    store(out, i, (load(row, i) - mean) * factor * weight[i] + bias[i]);
}

// A block for each row.
__global__ void norm_rows_kernel(const GpuNormRowsArgs args) {
  follow_predecessor();
  extern __shared__ float squares[];
  const int width = static_cast<int>(args.width), lane = threadIdx.x % 32;
  const float* const x = args.x + blockIdx.x * args.width;
  uint16_t* const to = args.to + blockIdx.x * args.width;
  for (int i = static_cast<int>(threadIdx.x) * 4; i - lane * 4 < width; i += kThreads * 4) {
    float4 values = {};
    if (i < width) {
      values = read_four(x, args.order, i);
      *reinterpret_cast<uint2*>(to + i) = weighted(values, read_four(args.weight, args.order, i));
    }
    const float sum = warp_sum(squares_of_four(values));
    if (lane == 0) squares[i / kSquaresInputs] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const float factor = norm_factor(squares, width, args.epsilon);
  if (threadIdx.x == 0) args.factors[blockIdx.x] = factor;
}

__global__ void rope_kernel(const GpuRopeArgs args) {
  follow_predecessor();
  const int64_t pairs = args.heads * args.half, count = args.tokens * pairs;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t token = i / pairs, head = i % pairs / args.half, d = i % args.half;
    const int64_t angle = args.positions[token] * args.half + d;
    uint16_t* const x = args.x + (token * args.heads + head) * args.head_dim + d;
    const Pair pair =
        rotated(bf16_to_f32(x[0]), bf16_to_f32(x[args.half]), args.cosines[angle], args.sines[angle]);
    x[0] = f32_to_bf16(pair.first);
    x[args.half] = f32_to_bf16(pair.second);
  }
}

// Eight elements at a time, then the rest.
__global__ void swiglu_kernel(const uint16_t* gate, const uint16_t* up, uint16_t* out, int64_t count) {
  follow_predecessor();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x,
                stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = first; i < count / 8; i += stride) {
    const uint4 x = reinterpret_cast<const uint4*>(gate)[i], y = reinterpret_cast<const uint4*>(up)[i];
    const uint32_t a[4] = {x.x, x.y, x.z, x.w}, b[4] = {y.x, y.y, y.z, y.w};
    uint32_t z[4];
#pragma unroll
    for (int j = 0; j < 4; ++j)
      z[j] =
          bf16_pair(silu_times(low_bf16(a[j]), low_bf16(b[j])), silu_times(high_bf16(a[j]), high_bf16(b[j])));
    reinterpret_cast<uint4*>(out)[i] = make_uint4(z[0], z[1], z[2], z[3]);
  }
  for (int64_t i = count / 8 * 8 + first; i < count; i += stride)
    out[i] = f32_to_bf16(silu_times(bf16_to_f32(gate[i]), bf16_to_f32(up[i])));
}

// As activated() of the reference has it.
template <Activation kFunction>
__device__ inline float activated(float x) {
  if constexpr (kFunction == Activation::kSilu) return silu_times(x, 1);
  if constexpr (kFunction == Activation::kGelu) return 0.5f * x * erfcf(-x * 0.7071067811865476f);
  if constexpr (kFunction == Activation::kGeluTanh)
    return x / (1 + expf(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
  if constexpr (kFunction == Activation::kRelu) return x < 0 ? 0 : x;
  if constexpr (kFunction == Activation::kTanh) return tanhf(x);
}

template <Activation kFunction>
__global__ void activate_kernel(const uint16_t* x, const uint16_t* up, uint16_t* out, int64_t count) {
  follow_predecessor();
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const float y = activated<kFunction>(bf16_to_f32(x[i]));
    out[i] = f32_to_bf16(up ? y * bf16_to_f32(up[i]) : y);
  }
}

__global__ void split_kernel(const GpuSplitArgs args) {
  follow_predecessor();
  const int64_t count = args.rows * args.stride;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t row = i / args.stride;
    int64_t column = i % args.stride;
#pragma unroll
    for (int j = 0; j < GpuSplitArgs::kMost; ++j) {
      const GpuSplitArgs::Part& part = args.part[j];
      if (column >= 0 && column < part.width) part.out[row * part.width + column] = args.x[i];
      column -= part.width;
    }
  }
}

template <class From>
__global__ void add_kernel(const From* x, int64_t count, float* to) {
  follow_predecessor();
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads)
    to[i] += load(x, i);
}

__global__ void scale_kernel(float factor, int64_t count, float* x) {
  follow_predecessor();
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads)
    x[i] *= factor;
}

// A block for each row.
__global__ void add_rows_kernel(const GpuAddRowsArgs args) {
  follow_predecessor();
  const int64_t row = (args.rows ? args.rows[blockIdx.x] : 0) + args.offset;
  const uint16_t* const from = args.table + row * args.width;
  float* const to = args.to + blockIdx.x * args.width;
  for (int64_t i = threadIdx.x; i < args.width; i += kThreads) to[i] += bf16_to_f32(from[i]);
}

__global__ void embedding_kernel(const GpuEmbeddingArgs args) {
  begin_at_once();
  embed_row(args.table, args.ids[blockIdx.x], args.out + blockIdx.x * args.table.width);
}

__global__ void gather_kernel(const uint16_t* x, const int32_t* order, int64_t width, uint16_t* to) {
  follow_predecessor();
  const int64_t row = blockIdx.y * width;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < width;
       i += static_cast<int64_t>(gridDim.x) * kThreads)
    to[row + i] = x[row + order[i]];
}

template <class From>
__global__ void convert_kernel(const From* from, int64_t count, uint16_t* to) {
  follow_predecessor();
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads)
    to[i] = f32_to_bf16(static_cast<float>(from[i]));
}

__global__ void add_bias_kernel(float* y, const float* bias, int64_t count, int64_t width) {
  follow_predecessor();
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads)
    y[i] += bias[i % width];
}

constexpr int kRowThreads = 1024;

// NaN counts for more than anything.
__device__ inline float block_max(float value, float* room) {
  auto larger = [](float a, float b) { return isnan(a) || a > b ? a : b; };
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    value = larger(__shfl_xor_sync(0xffffffffu, value, distance), value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = value;
  __syncthreads();
  value = room[0];
  for (unsigned i = 1; i < blockDim.x / 32; ++i) value = larger(room[i], value);
  return value;
}

// log(sum(exp(row))) in every thread of a block.
__device__ inline double row_log_sum_exp(const float* row, int64_t vocab, float* floats, double* doubles) {
  float most = -INFINITY;
  for (int64_t i = threadIdx.x; i < vocab; i += blockDim.x)
    most = isnan(row[i]) || row[i] > most ? row[i] : most;
  most = block_max(most, floats);
  if (isnan(most) || isinf(most)) return static_cast<double>(most);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < vocab; i += blockDim.x) sum += static_cast<double>(expf(row[i] - most));
  return static_cast<double>(most) + log(block_sum(sum, doubles));
}

// Less the logit of the row's target where there are targets.
__global__ void log_sum_exp_kernel(const float* x, const int32_t* targets, int64_t vocab, double* out) {
  follow_predecessor();
  __shared__ float floats[32];
  __shared__ double doubles[32];
  const float* const row = x + blockIdx.x * vocab;
  const double value = row_log_sum_exp(row, vocab, floats, doubles);
  if (threadIdx.x == 0)
    out[blockIdx.x] = targets ? value - static_cast<double>(row[targets[blockIdx.x]]) : value;
}

__global__ void divergence_kernel(const float* reference, const float* x, int64_t vocab, double* out) {
  follow_predecessor();
  __shared__ float floats[32];
  __shared__ double doubles[32];
  const float *const p = reference + blockIdx.x * vocab, *const q = x + blockIdx.x * vocab;
  const double p_total = row_log_sum_exp(p, vocab, floats, doubles),
               q_total = row_log_sum_exp(q, vocab, floats, doubles);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < vocab; i += blockDim.x) {
    const double log_p = static_cast<double>(p[i]) - p_total;
    const double weight = exp(log_p);
    if (weight > 0) sum += weight * (log_p - (static_cast<double>(q[i]) - q_total));
  }
  sum = block_sum(sum, doubles);
  if (threadIdx.x != 0) return;
  out[blockIdx.x] = isfinite(p_total) && isfinite(q_total) ? sum : nan("");
}

// run(x, y) with pointers of their types, F32 or BF16.
template <class Run>
void with_types(ConstActivations x, Activations y, const Run& run) {
  auto run_to = [&](const auto* from) {
    if (y.dtype == DType::kF32) {
      run(from, static_cast<float*>(y.data));
    } else {
      run(from, static_cast<uint16_t*>(y.data));
    }
  };
  if (x.dtype == DType::kF32) {
    run_to(static_cast<const float*>(x.data));
  } else {
    run_to(static_cast<const uint16_t*>(x.data));
  }
}

int row_threads(int64_t width) { return width >= 1024 ? 256 : width >= 256 ? 128 : 32; }

}  // namespace

void gpu_rms_norm(const GpuRmsNormArgs& args, void* stream) {
  with_types(args.x, args.y, [&]<class From, class To>(const From* x, To* y) {
    launch(rms_norm_kernel<From, To>, dim3(static_cast<unsigned>(args.rows)), dim3(row_threads(args.width)),
           0, stream, x, y, args.weight, args.width, args.epsilon);
  });
}

void gpu_layer_norm(const GpuLayerNormArgs& args, void* stream) {
  with_types(args.x, args.y, [&]<class From, class To>(const From* x, To* y) {
    launch(layer_norm_kernel<From, To>, dim3(static_cast<unsigned>(args.rows)), dim3(row_threads(args.width)),
           0, stream, x, y, args.weight, args.bias, args.width, args.epsilon);
  });
}

void gpu_norm_rows(const GpuNormRowsArgs& args, void* stream) {
  const size_t squares =
      static_cast<size_t>((args.width + kSquaresInputs - 1) / kSquaresInputs) * sizeof(float);
  launch(norm_rows_kernel, dim3(static_cast<unsigned>(args.rows)), dim3(kThreads), squares, stream, args);
}

void gpu_rope(const GpuRopeArgs& args, void* stream) {
  launch(rope_kernel, blocks_for(args.tokens * args.heads * args.half), dim3(kThreads), 0, stream, args);
}

void gpu_swiglu(const uint16_t* gate, const uint16_t* up, uint16_t* out, int64_t count, void* stream) {
  launch(swiglu_kernel, blocks_for((count + 7) / 8), dim3(kThreads), 0, stream, gate, up, out, count);
}

void gpu_activate(const GpuActivateArgs& args, void* stream) {
  auto run = [&]<Activation kFunction>() {
    launch(activate_kernel<kFunction>, blocks_for(args.count), dim3(kThreads), 0, stream, args.x, args.up,
           args.out, args.count);
  };
  switch (args.f) {
    case Activation::kSilu:
      return run.operator()<Activation::kSilu>();
    case Activation::kGelu:
      return run.operator()<Activation::kGelu>();
    case Activation::kGeluTanh:
      return run.operator()<Activation::kGeluTanh>();
    case Activation::kRelu:
      return run.operator()<Activation::kRelu>();
    case Activation::kTanh:
      return run.operator()<Activation::kTanh>();
  }
}

void gpu_split_columns(const GpuSplitArgs& args, void* stream) {
  launch(split_kernel, blocks_for(args.rows * args.stride), dim3(kThreads), 0, stream, args);
}

void gpu_add(ConstActivations x, int64_t count, float* to, void* stream) {
  with_types(x, to, [&]<class From>(const From* from, auto*) {
    launch(add_kernel<From>, blocks_for(count), dim3(kThreads), 0, stream, from, count, to);
  });
}

void gpu_scale(float factor, int64_t count, float* x, void* stream) {
  launch(scale_kernel, blocks_for(count), dim3(kThreads), 0, stream, factor, count, x);
}

void gpu_add_rows(const GpuAddRowsArgs& args, void* stream) {
  launch(add_rows_kernel, dim3(static_cast<unsigned>(args.count)), dim3(kThreads), 0, stream, args);
}

void gpu_embedding(const GpuEmbeddingArgs& args, void* stream) {
  launch(embedding_kernel, dim3(static_cast<unsigned>(args.count)), dim3(kThreads), 0, stream, args);
}

void gpu_gather_columns(const uint16_t* x, const int32_t* order, int64_t rows, int64_t width, uint16_t* to,
                        void* stream) {
  const dim3 grid(static_cast<unsigned>((width + kThreads - 1) / kThreads), static_cast<unsigned>(rows));
  launch(gather_kernel, grid, dim3(kThreads), 0, stream, x, order, width, to);
}

void gpu_convert_to_bf16(ConstActivations from, int64_t count, uint16_t* to, void* stream) {
  switch (from.dtype) {
    case DType::kF32:
      launch(convert_kernel<float>, blocks_for(count), dim3(kThreads), 0, stream,
             static_cast<const float*>(from.data), count, to);
      return;
    case DType::kF64:
      launch(convert_kernel<double>, blocks_for(count), dim3(kThreads), 0, stream,
             static_cast<const double*>(from.data), count, to);
      return;
    default:
      launch(convert_kernel<__half>, blocks_for(count), dim3(kThreads), 0, stream,
             static_cast<const __half*>(from.data), count, to);
      return;
  }
}

void gpu_log_sum_exp(const float* x, int64_t rows, int64_t vocab, double* out, void* stream) {
  launch(log_sum_exp_kernel, dim3(static_cast<unsigned>(rows)), dim3(kRowThreads), 0, stream, x, nullptr,
         vocab, out);
}

void gpu_token_nll(const float* x, const int32_t* targets, int64_t rows, int64_t vocab, double* out,
                   void* stream) {
  launch(log_sum_exp_kernel, dim3(static_cast<unsigned>(rows)), dim3(kRowThreads), 0, stream, x, targets,
         vocab, out);
}

void gpu_add_bias(float* y, const float* bias, int64_t rows, int64_t width, void* stream) {
  launch(add_bias_kernel, blocks_for(rows * width), dim3(kThreads), 0, stream, y, bias, rows * width, width);
}

void gpu_divergence(const float* reference, const float* x, int64_t rows, int64_t vocab, double* out,
                    void* stream) {
  launch(divergence_kernel, dim3(static_cast<unsigned>(rows)), dim3(kRowThreads), 0, stream, reference, x,
         vocab, out);
}

}  // namespace lowbit
