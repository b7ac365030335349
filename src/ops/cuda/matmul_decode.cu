#include "ops/cuda/fragments.h"
#include "ops/cuda/matmul_decode.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace lowbit {
namespace {

constexpr int kWarps = 8;  // of a block, which makes one tile of 16 outputs
constexpr int kAhead = 4;  // pieces that a warp has asked for before it works on the first
constexpr int kMostRows = 8;

// Four pairs of BF16: a thread's part of the first operand for 16 inputs.
struct Operand {
  uint32_t pair[4];
};

__device__ inline void multiply_add(float (&sum)[4], const Operand& a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a.pair[0]), "r"(a.pair[1]), "r"(a.pair[2]), "r"(a.pair[3]), "r"(b0), "r"(b1));
}

__device__ inline uint32_t subtract(uint32_t a, uint32_t b) {
  __nv_bfloat162 x, y;
  memcpy(&x, &a, 4);
  memcpy(&y, &b, 4);
  const __nv_bfloat162 z = __hsub2(x, y);
  uint32_t bits;
  memcpy(&bits, &z, 4);
  return bits;
}

// Two floats that BF16 holds exactly.
__device__ inline uint32_t upper_halves(float first, float second) {
  return __byte_perm(__float_as_uint(first), __float_as_uint(second), 0x7632);
}

// A thread's codes of a piece, and the operands that codes minus zero points become: exact in BF16. zero,
// zero8: of rows g and g + 8.
template <int kBits>
struct Codes;

template <>
struct Codes<16> {
  static constexpr int kSteps = 1;
  static __device__ inline Operand operand(const uint4& piece, int, uint32_t, uint32_t) {
    return {{piece.x, piece.y, piece.z, piece.w}};
  }
};

template <>
struct Codes<4> {
  static constexpr int kSteps = 4;
  // 128 + code is 0x4300 | code in BF16.
  static __device__ inline uint32_t prepared_zero(int zero) {
    const uint32_t one = 0x4300u | static_cast<uint32_t>(zero);
    return one | one << 16;
  }
  static __device__ inline Operand operand(const uint4& piece, int step, uint32_t zero, uint32_t zero8) {
    const uint32_t word = step == 0 ? piece.x : step == 1 ? piece.y : step == 2 ? piece.z : piece.w;
    Operand a;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t shifted = (word >> (4 * i)) & 0x000f000fu;
      a.pair[i] = subtract(shifted | 0x43004300u, i % 2 ? zero8 : zero);
    }
    return a;
  }
};

template <>
struct Codes<8> {
  static constexpr int kSteps = 2;
  // 2^23 + code is 0x4b000000 | code in F32; the difference to 2^23 + zero is exact, and BF16 holds it.
  static __device__ inline uint32_t prepared_zero(int zero) {
    return __float_as_uint(8388608.0f + static_cast<float>(zero));
  }
  static __device__ inline Operand operand(const uint4& piece, int step, uint32_t zero, uint32_t zero8) {
    const uint32_t first = step == 0 ? piece.x : piece.z, second = step == 0 ? piece.y : piece.w;
    Operand a;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float middle = __uint_as_float(i % 2 ? zero8 : zero);
      const uint32_t selector = 0x7440u | static_cast<uint32_t>(i);  // byte i below the bytes 0, 0, 0x4b
      const float one = __uint_as_float(__byte_perm(first, 0x4b000000u, selector)) - middle;
      const float two = __uint_as_float(__byte_perm(second, 0x4b000000u, selector)) - middle;
      a.pair[i] = upper_halves(one, two);
    }
    return a;
  }
};

template <int kBits>
__global__ void __launch_bounds__(kWarps * 32) decode_kernel(const GpuDecodeArgs args) {
  __shared__ float partial[kWarps][kTileOutputs][kMostRows];
  const int warp = threadIdx.x / 32, thread = threadIdx.x % 32, g = thread / 4, c = thread % 4;
  const int64_t tile = blockIdx.x, n = tile * kTileOutputs;
  const int pieces = static_cast<int>(piece_count(args.in, kBits));
  const uint4* const from = static_cast<const uint4*>(args.fragments) + tile * pieces * 32 + thread;

  // Rows g of x are columns of the second operand; a row that is not there is zero.
  const bool has_row = g < args.rows;
  const uint32_t* const x = reinterpret_cast<const uint32_t*>(args.x + (has_row ? g : 0) * args.in) + c;
  const int64_t row = n + g, row8 = n + g + 8;

  float sum[4] = {}, group_sum[4] = {};
  uint4 ahead[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    const int piece = warp + i * kWarps;
    if (piece < pieces) ahead[i] = __ldcs(from + static_cast<int64_t>(piece) * 32);
  }

  int64_t group = -1;
  uint32_t zero = 0, zero8 = 0;
  float scale = 1, scale8 = 1;
  for (int begin = warp; begin < pieces; begin += kAhead * kWarps) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int piece = begin + i * kWarps;
      if (piece >= pieces) break;
      const uint4 codes = ahead[i];
      const int next = piece + kAhead * kWarps;
      if (next < pieces) ahead[i] = __ldcs(from + static_cast<int64_t>(next) * 32);
#pragma unroll
      for (int step = 0; step < Codes<kBits>::kSteps; ++step) {
        const int64_t k = static_cast<int64_t>(piece) * piece_inputs(kBits) + step * kStepInputs;
        if (k >= args.in) break;
        if constexpr (kBits != 16) {
          if (k / args.group_size != group) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              sum[j] += (j < 2 ? scale : scale8) * group_sum[j];
              group_sum[j] = 0;
            }
            group = k / args.group_size;
            const int64_t at = group * args.out;
            const bool has = row < args.out, has8 = row8 < args.out;
            const uint16_t bits = has ? args.scales[at + row] : 0, bits8 = has8 ? args.scales[at + row8] : 0;
            scale = __half2float(__ushort_as_half(bits));
            scale8 = __half2float(__ushort_as_half(bits8));
            const int middle = 1 << (kBits - 1);
            zero = Codes<kBits>::prepared_zero(args.zero_points && has ? args.zero_points[at + row] : middle);
            zero8 =
                Codes<kBits>::prepared_zero(args.zero_points && has8 ? args.zero_points[at + row8] : middle);
          }
        }
        const uint32_t b0 = has_row ? __ldg(x + k / 2) : 0, b1 = has_row ? __ldg(x + k / 2 + 4) : 0;
        multiply_add(group_sum, Codes<kBits>::operand(codes, step, zero, zero8), b0, b1);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) sum[j] += (j < 2 ? scale : scale8) * group_sum[j];

  partial[warp][g][2 * c] = sum[0];
  partial[warp][g][2 * c + 1] = sum[1];
  partial[warp][g + 8][2 * c] = sum[2];
  partial[warp][g + 8][2 * c + 1] = sum[3];
  __syncthreads();
  if (threadIdx.x >= kTileOutputs * kMostRows) return;
  const int output = threadIdx.x % kTileOutputs, token = threadIdx.x / kTileOutputs;
  const int64_t column = n + output;
  if (token >= args.rows || column >= args.out) return;
  float total = args.bias ? args.bias[column] : 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += partial[w][output][token];
  const int64_t at = token * args.out + column;
  if (args.add_to) {
    args.add_to[at] += total;
  } else if (args.y_float) {
    args.y_float[at] = total;
  } else {
    args.y[at] = __bfloat16_as_ushort(__float2bfloat16_rn(total));
  }
}

// A thread per 16 bytes of fragments.
template <int kBits>
__global__ void pack_kernel(const void* weight, int64_t out, int64_t in, uint4* fragments, int64_t count) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= count) return;
  const int64_t pieces = piece_count(in, kBits);
  const int thread = static_cast<int>(index % 32);
  const int64_t piece = index / 32 % pieces, tile = index / 32 / pieces;
  uint32_t words[4] = {};
  for (int step = 0; step < piece_inputs(kBits) / kStepInputs; ++step) {
    for (int pair = 0; pair < 4; ++pair) {
      for (int second = 0; second < 2; ++second) {
        const int64_t n = tile * kTileOutputs + thread / 4 + pair % 2 * 8;
        const int64_t k =
            piece * piece_inputs(kBits) + step * kStepInputs + thread % 4 * 2 + pair / 2 * 8 + second;
        if (n >= out || k >= in) continue;
        if constexpr (kBits == 16) {
          words[pair] |= static_cast<uint32_t>(static_cast<const uint16_t*>(weight)[n * in + k])
                         << (16 * second);
        } else {
          constexpr int kInWord = 32 / kBits;
          const uint32_t word = static_cast<const uint32_t*>(weight)[k / kInWord * out + n];
          const uint32_t code = word >> (k % kInWord * kBits) & ((1u << kBits) - 1);
          if constexpr (kBits == 8) {
            words[step * 2 + second] |= code << (8 * pair);
          } else {
            words[step] |= code << (4 * (second * 4 + pair));
          }
        }
      }
    }
  }
  fragments[index] = make_uint4(words[0], words[1], words[2], words[3]);
}

}  // namespace

void gpu_matmul_decode(const GpuDecodeArgs& args, void* stream) {
  const dim3 grid(static_cast<unsigned>(tile_count(args.out)));
  const auto on = static_cast<cudaStream_t>(stream);
  switch (args.bits) {
    case 16:
      decode_kernel<16><<<grid, kWarps * 32, 0, on>>>(args);
      return;
    case 8:
      decode_kernel<8><<<grid, kWarps * 32, 0, on>>>(args);
      return;
    default:
      decode_kernel<4><<<grid, kWarps * 32, 0, on>>>(args);
      return;
  }
}

void gpu_pack_fragments(const void* weight, int64_t out, int64_t in, int bits, void* fragments,
                        void* stream) {
  const int64_t count = fragment_bytes(out, in, bits) / 16;
  const dim3 grid(static_cast<unsigned>((count + 255) / 256));
  const auto on = static_cast<cudaStream_t>(stream);
  uint4* const to = static_cast<uint4*>(fragments);
  switch (bits) {
    case 16:
      pack_kernel<16><<<grid, 256, 0, on>>>(weight, out, in, to, count);
      return;
    case 8:
      pack_kernel<8><<<grid, 256, 0, on>>>(weight, out, in, to, count);
      return;
    default:
      pack_kernel<4><<<grid, 256, 0, on>>>(weight, out, in, to, count);
      return;
  }
}

}  // namespace lowbit
