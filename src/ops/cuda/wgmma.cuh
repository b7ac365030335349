// Products of a warpgroup (four warps) by Hopper's wgmma, and the barriers that such kernels live by. Only
// for code under __CUDA_ARCH_FEAT_SM90_ALL; PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions".
//
// Matrices in shared memory are panels: rows of 64 BF16 (128 bytes), the 16-byte pieces of row r swapped by
// r % 8, eight rows (1024 bytes, at a multiple of 1024) behind the other:
//
//   byte        0   16   32   48   64   80   96  112
//   row 0      p0   p1   p2   p3   p4   p5   p6   p7
//   row 1      p1   p0   p3   p2   p5   p4   p7   p6
//   ...
//   row 7      p7   p6   p5   p4   p3   p2   p1   p0
//   row 8      p0   p1   ...                              at byte 1024
//
// A matrix with more columns is several panels. What is summed over may run along a row (both operands of
// `multiply`; 16 elements further is 32 bytes further, and the hardware swaps what it reads by the address),
// or from row to row (the second operand of `multiply_rows`; 16 rows further is 2048 bytes further).
//
// Or they are pieces without swaps (`multiply_few`): of eight rows x 16 bytes, 128 bytes in a row.
//
// A thread's sums of a product 64 x N: with g = lane / 4, c = lane % 4, warp w of the group,
//   sum[4 n + j]: row 16 w + g + (j / 2) * 8, column 8 n + 2 c + j % 2
#pragma once

#include "ops/cuda/device.cuh"

#include <cstdint>

namespace lowbit {
namespace {

constexpr int kPanelRowBytes = 128, kWarpgroup = 128;

__device__ inline uint32_t panel_place(int row, int piece) {
  return static_cast<uint32_t>(row * kPanelRowBytes + (piece ^ row % 8) * 16);
}

// Bits 0-13: address / 16; 16-29: bytes / 16 to the next panel, where columns are not what is summed over;
// 32-45: bytes / 16 to the next eight rows; 62-63: 1, pieces swapped within 128 bytes.
__device__ inline uint64_t panel_descriptor(uint32_t address, int panel_bytes) {
  return uint64_t{1} << 62 | uint64_t{1024 / 16} << 32 | static_cast<uint64_t>(panel_bytes / 16) << 16 |
         (address & 0x3ffff) / 16;
}
// Its halves for pieces. next_k, next_rows: bytes from a piece to that of the next eight of what is summed
// over, of the next rows. 16 bytes further is 1 more in the lower half.
__device__ inline uint32_t piece_lower(uint32_t address, int next_k) {
  return (address & 0x3ffff) / 16 | static_cast<uint32_t>(next_k / 16) << 16;
}
constexpr uint32_t piece_upper(int next_rows) { return static_cast<uint32_t>(next_rows / 16); }
__device__ inline uint64_t with_upper(uint32_t lower, uint32_t upper) {
  return static_cast<uint64_t>(upper) << 32 | lower;
}
__device__ inline uint64_t moved(uint64_t descriptor, int bytes) {
  return descriptor + static_cast<uint64_t>(bytes / 16);
}

// Before products whose registers others have written.
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most so many of the commits are not done. The registers of those that are must be `pinned` next.
template <int kLeft>
__device__ inline void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}
// The compiler does not know that a product goes on behind its instruction: it may neither use nor move these
// registers across this place.
template <int kCount>
__device__ inline void pin(float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(values[i])::"memory");
}
template <int kCount>
__device__ inline void pin(float (&values)[kCount][4]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) pin(values[i]);
}
template <int kCount>
__device__ inline void pin(Operand (&operands)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) asm volatile("" : "+r"(operands[i].pair[j])::"memory");
  }
}

#define LOWBIT_8_SUMS(s, i)                                                                   \
  "+f"(s[i]), "+f"(s[i + 1]), "+f"(s[i + 2]), "+f"(s[i + 3]), "+f"(s[i + 4]), "+f"(s[i + 5]), \
      "+f"(s[i + 6]), "+f"(s[i + 7])
#define LOWBIT_32_SUMS(s, i) \
  LOWBIT_8_SUMS(s, i), LOWBIT_8_SUMS(s, i + 8), LOWBIT_8_SUMS(s, i + 16), LOWBIT_8_SUMS(s, i + 24)
#define LOWBIT_32_NAMES                                                                                     \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%" \
  "28,"                                                                                                     \
  "%29,%30,%31"
#define LOWBIT_64_NAMES                                                                           \
  LOWBIT_32_NAMES                                                                                 \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54," \
  "%55,%56,%57,%58,%59,%60,%61,%62,%63"

// sum = a b^T, plus sum where kAdds: 64 x 128, over 16 columns of the panels of a and b.
template <bool kAdds>
__device__ inline void multiply(float (&sum)[64], uint64_t a, uint64_t b) {
  asm volatile(
      "{ .reg .pred adds; setp.ne.b32 adds, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" LOWBIT_64_NAMES
      "}, %64, %65, adds, 1, 1, 0, 0; }"
      : LOWBIT_32_SUMS(sum, 0), LOWBIT_32_SUMS(sum, 32)
      : "l"(a), "l"(b), "n"(kAdds ? 1 : 0));
}

// sum += a b: 64 x 128 or 64 x 64, over 16 rows of the panels of b; a: as of mma.m16n8k16 for each warp.
__device__ inline void multiply_rows(float (&sum)[64], const Operand& a, uint64_t b) {
  asm volatile(
      "{ .reg .pred adds; setp.ne.b32 adds, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" LOWBIT_64_NAMES
      "}, {%64,%65,%66,%67}, %68, adds, 1, 1, 1; }"
      : LOWBIT_32_SUMS(sum, 0), LOWBIT_32_SUMS(sum, 32)
      : "r"(a.pair[0]), "r"(a.pair[1]), "r"(a.pair[2]), "r"(a.pair[3]), "l"(b));
}
__device__ inline void multiply_rows(float (&sum)[32], const Operand& a, uint64_t b) {
  asm volatile(
      "{ .reg .pred adds; setp.ne.b32 adds, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" LOWBIT_32_NAMES
      "}, {%32,%33,%34,%35}, %36, adds, 1, 1, 1; }"
      : LOWBIT_32_SUMS(sum, 0)
      : "r"(a.pair[0]), "r"(a.pair[1]), "r"(a.pair[2]), "r"(a.pair[3]), "l"(b));
}

// sum = a b^T, plus sum where `adds` is not 0: 64 x 64 or 64 x 128, over 16 columns of the panels of b.
__device__ inline void multiply(float (&sum)[32], const Operand& a, uint64_t b, int adds) {
  asm volatile(
      "{ .reg .pred adds; setp.ne.b32 adds, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" LOWBIT_32_NAMES
      "}, {%32,%33,%34,%35}, %36, adds, 1, 1, 0; }"
      : LOWBIT_32_SUMS(sum, 0)
      : "r"(a.pair[0]), "r"(a.pair[1]), "r"(a.pair[2]), "r"(a.pair[3]), "l"(b), "r"(adds));
}
__device__ inline void multiply(float (&sum)[64], const Operand& a, uint64_t b, int adds) {
  asm volatile(
      "{ .reg .pred adds; setp.ne.b32 adds, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" LOWBIT_64_NAMES
      "}, {%64,%65,%66,%67}, %68, adds, 1, 1, 0; }"
      : LOWBIT_32_SUMS(sum, 0), LOWBIT_32_SUMS(sum, 32)
      : "r"(a.pair[0]), "r"(a.pair[1]), "r"(a.pair[2]), "r"(a.pair[3]), "l"(b), "r"(adds));
}

// sum = a b, or plus sum where `adds` is 1 and not 0: 64 x 32, over 16 columns of the rows of b, in pieces;
// a: as of mma.m16n8k16 for each warp. sum: [block of eight][j].
__device__ inline void multiply_few(float (&sum)[4][4], const Operand& a, uint64_t b, int adds) {
  float* const s = sum[0];
  asm volatile(
      "{ .reg .pred adds; setp.ne.b32 adds, %21, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,"
      "%14,%15}, {%16,%17,%18,%19}, %20, adds, 1, 1, 0; }"
      : LOWBIT_8_SUMS(s, 0), LOWBIT_8_SUMS(s, 8)
      : "r"(a.pair[0]), "r"(a.pair[1]), "r"(a.pair[2]), "r"(a.pair[3]), "l"(b), "r"(adds));
}

#undef LOWBIT_8_SUMS
#undef LOWBIT_32_SUMS
#undef LOWBIT_32_NAMES
#undef LOWBIT_64_NAMES

// What threads have written or copied to shared memory, products read by another way: between the wait for
// the copies and the products, or before the barrier behind which others' products read it.
__device__ inline void show_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Barriers in shared memory: a phase is over when so many have arrived, and the next begins. Waits are for
// the phase of a parity: 0 for the first; of parity 1 the one before the first counts as over.
__device__ inline void make_barrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
               : "memory");
}
__device__ inline void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// When the copies that this thread has begun are there.
__device__ inline void arrive_after_copies(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
// By one thread, which arrives: the phase is over when so many bytes have come by bulk copies too.
__device__ inline void expect_copies(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
__device__ inline void copy_bulk(uint32_t to, const void* from, int bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}
__device__ inline void wait_for_all_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
// Returns what is not 0, which only the machine knows.
__device__ inline uint32_t wait_for_phase(uint64_t* barrier, uint32_t parity) {
  uint32_t is_over = 0;
  while (!is_over)
    asm volatile(
        "{ .reg .pred over; mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2; selp.u32 %0, 1, 0, "
        "over; }"
        : "=r"(is_over)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  return is_over;
}

// Barriers 1 to 15 of a block, of whole warps: all wait, or some only arrive.
__device__ inline void wait_at(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ inline void arrive_at(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// A warpgroup's registers a thread, from now on; what one gives another may take.
template <int kRegisters>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace
}  // namespace lowbit
