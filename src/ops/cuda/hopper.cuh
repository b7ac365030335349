// wgmma (PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate"): compute capability 9.0 alone,
// its own code (sm_90a). Elsewhere the functions do nothing, and no kernel that calls them is launched.
#pragma once

#include "ops/cuda/device.cuh"

#include <cstdint>

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define LOWBIT_HAS_WGMMA 1
#endif

namespace lowbit {
namespace {

// A second operand in shared memory without swizzle: pieces of eight rows x 16 bytes (eight of k), 128 bytes
// in a row. next_k, next_rows: bytes from a piece to the one of the next eight of k, and of the next rows.
__device__ inline uint64_t plain_operand(uint32_t address, int next_k, int next_rows) {
  auto field = [](uint32_t bytes) { return static_cast<uint64_t>((bytes & 0x3ffffu) >> 4); };
  return field(address) | field(static_cast<uint32_t>(next_k)) << 16 |
         field(static_cast<uint32_t>(next_rows)) << 32;
}
// The operand so many bytes behind.
__device__ inline uint64_t moved(uint64_t operand, int bytes) {
  return operand + static_cast<uint64_t>(bytes >> 4);
}

// What ordinary stores have written to shared memory may then be read by wgmma, behind a barrier.
__device__ inline void publish_shared() {
#if LOWBIT_HAS_WGMMA
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
// Registers that were written before may be operands and sums of what follows.
__device__ inline void begin_products() {
#if LOWBIT_HAS_WGMMA
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ inline void commit_products() {
#if LOWBIT_HAS_WGMMA
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Until at most kLeft of the commits are at work; the sums may be read then.
template <int kLeft, int kBlocks>
__device__ inline void wait_for_products(float (&sums)[kBlocks][4]) {
#if LOWBIT_HAS_WGMMA
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
    for (int j = 0; j < 4; ++j) asm volatile("" : "+f"(sums[b][j])::"memory");
  }
#endif
}

// sums (+)= a b, 64 x 16 by 16 x 8 kBlocks, by four warps of 16 rows each; a warp's part of `a` and of the
// sums is that of mma.m16n8k16. adds: 0 or 1.
template <int kBlocks>
__device__ inline void queue_product(float (&s)[kBlocks][4], const Operand& a, uint64_t b, int adds) {
  static_assert(kBlocks == 1 || kBlocks == 2 || kBlocks == 4);
#if LOWBIT_HAS_WGMMA
  if constexpr (kBlocks == 1) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %9, 0; "
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}, {%4,%5,%6,%7}, %8, p, 1, 1, 0; }"
        : "+f"(s[0][0]), "+f"(s[0][1]), "+f"(s[0][2]), "+f"(s[0][3])
        : "r"(a.pair[0]), "r"(a.pair[1]), "r"(a.pair[2]), "r"(a.pair[3]), "l"(b), "r"(adds));
  } else if constexpr (kBlocks == 2) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %13, 0; "
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9,%10,%11}, "
        "%12, p, 1, 1, 0; }"
        : "+f"(s[0][0]), "+f"(s[0][1]), "+f"(s[0][2]), "+f"(s[0][3]), "+f"(s[1][0]), "+f"(s[1][1]),
          "+f"(s[1][2]), "+f"(s[1][3])
        : "r"(a.pair[0]), "r"(a.pair[1]), "r"(a.pair[2]), "r"(a.pair[3]), "l"(b), "r"(adds));
  } else {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %21, 0; "
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,"
        "%14,%15}, {%16,%17,%18,%19}, %20, p, 1, 1, 0; }"
        : "+f"(s[0][0]), "+f"(s[0][1]), "+f"(s[0][2]), "+f"(s[0][3]), "+f"(s[1][0]), "+f"(s[1][1]),
          "+f"(s[1][2]), "+f"(s[1][3]), "+f"(s[2][0]), "+f"(s[2][1]), "+f"(s[2][2]), "+f"(s[2][3]),
          "+f"(s[3][0]), "+f"(s[3][1]), "+f"(s[3][2]), "+f"(s[3][3])
        : "r"(a.pair[0]), "r"(a.pair[1]), "r"(a.pair[2]), "r"(a.pair[3]), "l"(b), "r"(adds));
  }
#endif
}

}  // namespace
}  // namespace lowbit
