// Small things that several kernels need on the device.
#pragma once

#include "ops/cuda/fragments.h"
#include "ops/cuda/matmul_decode.h"

#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

namespace lowbit {
namespace {

// Four pairs of BF16: a thread's part of the first operand of mma.m16n8k16.
struct Operand {
  uint32_t pair[4];
};

// sum += a b, 16 x 16 by 16 x 8; a thread's sums: rows g, g, g + 8, g + 8, columns 2 c, 2 c + 1 twice.
__device__ inline void multiply_add(float (&sum)[4], const Operand& a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a.pair[0]), "r"(a.pair[1]), "r"(a.pair[2]), "r"(a.pair[3]), "r"(b0), "r"(b1));
}

// Four matrices of 8 x 8 BF16 in shared memory, whose rows' addresses the lanes bring, eight for each: a
// thread's two elements of row lane / 4.
__device__ inline void load_matrices(uint32_t (&to)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address));
}

__device__ inline float bf16_to_f32(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}
__device__ inline float low_bf16(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ inline float high_bf16(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ inline uint16_t f32_to_bf16(float value) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
}
__device__ inline uint32_t bf16_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, 4);
  return bits;
}

// round_scale of format/affine.h.
__device__ inline float f16_scale(float scale) {
  if (!(scale > 0x1p-24f)) return 0x1p-24f;
  return __half2float(__float2half_rn(fminf(scale, 65504.0f)));
}

template <class T>
__device__ inline T warp_sum(T value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

// The sum over a block, the same in every thread; `room` has a place for each warp.
template <class T>
__device__ inline T block_sum(T value, T* room) {
  value = warp_sum(value);
  __syncthreads();  // room may still be read
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = value;
  __syncthreads();
  value = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) value += room[warp];
  return value;
}

// Times the norm's weights, BF16. The norm's factor comes last of all, to the products.
__device__ inline uint2 weighted(const float4& values, const float4& weights) {
  return {bf16_pair(values.x * weights.x, values.y * weights.y),
          bf16_pair(values.z * weights.z, values.w * weights.w)};
}
// The squares are summed in this order wherever they are: four neighbours, a tree over kSquaresInputs, in
// lane b % 32 those of columns [kSquaresInputs * b, ...) one after the other, a tree over a warp's lanes.
constexpr int kSquaresInputs = 128;
__device__ inline float squares_of_four(const float4& x) {
  return fmaf(x.w, x.w, fmaf(x.z, x.z, fmaf(x.y, x.y, x.x * x.x)));
}
// RMSNorm's factor of a row, by a warp. sum: a lane's; squares: of kSquaresInputs columns each.
__device__ inline float norm_factor_of(float sum, int in, float epsilon) {
  return rsqrtf(__fdividef(warp_sum(sum), static_cast<float>(in)) + epsilon);
}
__device__ inline float norm_factor(const float* squares, int in, float epsilon) {
  float sum = 0;
  for (int b = static_cast<int>(threadIdx.x) % 32; b * kSquaresInputs < in; b += 32) sum += squares[b];
  return norm_factor_of(sum, in, epsilon);
}
// Neighbours from element i of a row on, in the order of the weight's columns where there is one.
__device__ inline float4 read_four(const float* from, const int32_t* order, int i) {
  if (!order) return *reinterpret_cast<const float4*>(from + i);
  const int4 at = __ldg(reinterpret_cast<const int4*>(order + i));
  return {from[at.x], from[at.y], from[at.z], from[at.w]};
}

__device__ inline uint2 read_four(const uint16_t* from, const int32_t* order, int i) {
  if (!order) return *reinterpret_cast<const uint2*>(from + i);
  const int4 at = __ldg(reinterpret_cast<const int4*>(order + i));
  return {from[at.x] | static_cast<uint32_t>(from[at.y]) << 16, from[at.z] | static_cast<uint32_t>(from[at.w])
                                                                                 << 16};
}

// Below -80 the result is next to nothing, and e^-x becomes more than can be divided by.
__device__ inline float silu_times(float x, float y) {
  if (x < -80.0f) x = -80.0f;
  return __fdividef(x, 1 + __expf(-x)) * y;
}

// The pair x[d], x[d + half] of a head, rotated.
struct Pair {
  float first, second;
};
__device__ inline Pair rotated(float a, float b, float cosine, float sine) {
  return {a * cosine - b * sine, b * cosine + a * sine};
}

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
// Asynchronous copies to shared memory: 16 bytes, zeros where `is_there` is false; 4 bytes.
__device__ inline void copy_16(uint32_t to, const void* from, bool is_there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(is_there ? 16 : 0));
}
__device__ inline void copy_16(void* to, const void* from, bool is_there = true) {
  copy_16(shared_address(to), from, is_there);
}
__device__ inline void copy_4(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from));
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;"); }
// Until at most so many of the commits are still on their way.
template <int kLeft>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// Of a float_codes.
__device__ inline float float_of(const CodeTable& table, uint32_t code) {
  const uint32_t bits = (code & 0x80) << 8 | (code & 0x7f) << 8 >> table.lower[0];
  return bf16_to_f32(static_cast<uint16_t>(bits)) * low_bf16(table.upper[0]);
}
__device__ inline float value_of(const CodeTable& table, uint32_t code) {
  const int shift = static_cast<int>(code % 4 * 8);
  return __uint_as_float((table.upper[code / 4] >> shift & 0xff) << 24 |
                         (table.lower[code / 4] >> shift & 0xff) << 16);
}

// Element [n, k] of a weight that lies as matmul_decode.h says. table: null where codes do not point into
// one.
__device__ inline float weight_at(const GpuMatrix& matrix, int bits, int64_t group_size,
                                  const CodeTable* table, int64_t in, int64_t n, int64_t k) {
  if (bits == 16) return bf16_to_f32(static_cast<const uint16_t*>(matrix.weight)[n * in + k]);
  const int kept_bits = fragment_bits(bits);
  const FragmentPlace place = fragment_place(n, k, in, kept_bits);
  const int64_t group_at = group_place(n, k / group_size, kept_groups(in, group_size));
  const float scale = __half2float(static_cast<const __half*>(matrix.scales)[group_at]);
  if (table && bits == 8)
    return scale * float_of(*table, static_cast<const uint8_t*>(matrix.weight)[place.byte]);
  if (table) {
    const uint32_t word =
        *reinterpret_cast<const uint32_t*>(static_cast<const char*>(matrix.weight) + place.byte / 4 * 4);
    return scale * value_of(*table, code_in_word(word, element_of_step(n, k)));
  }
  const int code =
      static_cast<const uint8_t*>(matrix.weight)[place.byte] >> place.shift & ((1 << kept_bits) - 1);
  const int zero =
      matrix.zero_points ? static_cast<const uint16_t*>(matrix.zero_points)[group_at] : 1 << (bits - 1);
  return scale * static_cast<float>(code - zero);
}

// A launch may begin before what comes before it on the stream has ended (programmatic dependent launch):
// only what no kernel writes may be read until wait_for_predecessor returns. Every kernel calls it in every
// block, so a kernel that has ended says the same of all before it; and launch() is how they are launched. A
// kernel lets its successor begin when it has waited itself; then all that was queued before it has ended,
// and the successor may read that too (past the first-level cache: __ldcg). A kernel whose successor reads
// nothing of the kind may let it begin at once. That successor is also the first kernel of the next decoding
// step, behind the last of the one before.
__device__ inline void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ inline void let_successor_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ inline void follow_predecessor() {
  wait_for_predecessor();
  let_successor_begin();
}
// For a kernel whose successors read nothing but constants before they wait: the launches from the last
// logits to the first product of the next step then pass while the logits are still being made.
__device__ inline void begin_at_once() {
  let_successor_begin();
  wait_for_predecessor();
}

// Keeps a parameter in a register: its first use costs hundreds of cycles, which pass unseen while a kernel
// waits for its predecessor.
template <class T>
__device__ inline T* kept(T* pointer) {
  asm volatile("" : "+l"(pointer));
  return pointer;
}
__device__ inline float kept(float value) {
  asm volatile("" : "+f"(value));
  return value;
}

// Both act once for a kernel. A launch with more shared memory than was allowed fails itself.
template <auto kKernel>
void allow_shared_memory(int bytes) {
  static const cudaError_t allowed =
      cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  (void)allowed;
}
// Kernels that follow each other closely all want the same: a multiprocessor that has to divide its memory
// anew between cache and shared memory must be empty first.
template <auto kKernel>
void prefer_shared_memory() {
  static const cudaError_t preferred = cudaFuncSetAttribute(
      kKernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  (void)preferred;
}

// Whether the binary has a kernel's own code for this GPU: what other architectures have of it is empty and
// takes a handful of registers.
template <auto kKernel>
bool has_own_code() {
  static const bool found = [] {
    cudaFuncAttributes attributes = {};
    return cudaFuncGetAttributes(&attributes, kKernel) == cudaSuccess && attributes.numRegs > 64;
  }();
  return found;
}

template <class... Parameters, class... Arguments>
void launch_clusters(void (*kernel)(Parameters...), dim3 grid, unsigned cluster, dim3 block,
                     size_t shared_bytes, void* stream, Arguments... arguments) {
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {cluster, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
            Arguments... arguments) {
  launch_clusters(kernel, grid, 1, block, shared_bytes, stream, arguments...);
}

__device__ inline void store_output(const Activations& y, int64_t at, float value) {
  if (y.dtype == DType::kF32) {
    static_cast<float*>(y.data)[at] = value;
  } else {
    static_cast<uint16_t*>(y.data)[at] = f32_to_bf16(value);
  }
}

}  // namespace
}  // namespace lowbit
