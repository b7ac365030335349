// Products of int8 on Hopper. A block of three warpgroups: one fetches, by bulk copies of the blocks that
// matmul_int8.h describes, through a ring of slots in shared memory; two multiply, each 64 rows by 192
// outputs, whose sums stay in registers. Blocks take tiles in turn until there are none left; what is fetched
// runs ahead into the next tile. What limits it is the second-level cache, which gives a multiprocessor less
// than the 53 bytes a cycle that full speed would take. (Two blocks that fetch the weights for each other, by
// copies to both, were slower yet.)
//
// A slot has 128 bytes of each of 128 rows of x and 192 of w: 128 codes, summed as integers; or, behind
// those, 64 outlier columns in BF16, summed as floats in the registers that the integers have left.
#include "ops/cuda/matmul_int8.h"
#include "ops/cuda/multiprocessors.h"
#include "ops/cuda/prompt_tiles.cuh"

#include <algorithm>

namespace lowbit {
namespace {

constexpr int kOutputs = kInt8TileOutputs, kRows = kInt8TileRows;
constexpr int kRowBlocks = kRows / kInt8BlockRows, kOutputBlocks = kOutputs / kInt8BlockRows;
constexpr int kSlotBytes = (kRowBlocks + kOutputBlocks) * kInt8BlockBytes;
constexpr int kSlots = 5;
constexpr int kSharedBytes = kSlots * kSlotBytes + 1024;  // slots begin at a multiple of 1024
constexpr int kThreads = 3 * kWarpgroup;

using Tiles = TileList<kRows, kOutputs>;
using Control = RingBarriers<kSlots>;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int kMultipliers = 2;      // warpgroups
constexpr int kSums = kOutputs / 2;  // a thread's: 64 x 192 by 128 threads

#define LOWBIT_8_SUMS(kind, s, i)                                                             \
  kind(s[i]), kind(s[i + 1]), kind(s[i + 2]), kind(s[i + 3]), kind(s[i + 4]), kind(s[i + 5]), \
      kind(s[i + 6]), kind(s[i + 7])
#define LOWBIT_32_SUMS(kind, s, i)                                                          \
  LOWBIT_8_SUMS(kind, s, i), LOWBIT_8_SUMS(kind, s, i + 8), LOWBIT_8_SUMS(kind, s, i + 16), \
      LOWBIT_8_SUMS(kind, s, i + 24)
#define LOWBIT_96_SUMS(kind, s) \
  LOWBIT_32_SUMS(kind, s, 0), LOWBIT_32_SUMS(kind, s, 32), LOWBIT_32_SUMS(kind, s, 64)
#define LOWBIT_96_NAMES                                                                              \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"           \
  "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71," \
  "%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define LOWBIT_INTEGER "+r"
#define LOWBIT_FLOAT "+f"

// sum = a b^T, plus sum where adds is not 0: 64 x 192, over 32 codes of the panels of a and b.
__device__ inline void multiply_codes(int (&sum)[kSums], uint64_t a, uint64_t b, int adds) {
  asm volatile(
      "{ .reg .pred adds; setp.ne.b32 adds, %98, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n192k32.s32.s8.s8 {" LOWBIT_96_NAMES "}, %96, %97, adds; }"
      : LOWBIT_96_SUMS(LOWBIT_INTEGER, sum)
      : "l"(a), "l"(b), "r"(adds));
}
// sum += a b^T: 64 x 192, over 16 columns of BF16.
__device__ inline void multiply_outliers(float (&sum)[kSums], uint64_t a, uint64_t b) {
  asm volatile(
      "{ .reg .pred adds; setp.ne.b32 adds, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {" LOWBIT_96_NAMES
      "}, %96, %97, adds, 1, 1, 0, 0; }"
      : LOWBIT_96_SUMS(LOWBIT_FLOAT, sum)
      : "l"(a), "l"(b));
}
__device__ inline void pin(int (&values)[kSums]) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) asm volatile("" : "+r"(values[i])::"memory");
}

// By one thread. Neighbouring blocks along the columns are `blocks` apart from those of the next 64 rows.
__device__ inline void fetch(uint32_t to, const char* x, const char* w, int64_t blocks, uint64_t* filled) {
  expect_copies(filled, kSlotBytes);
#pragma unroll
  for (int i = 0; i < kRowBlocks; ++i)
    copy_bulk(to + i * kInt8BlockBytes, x + i * blocks * kInt8BlockBytes, kInt8BlockBytes, filled);
  to += kRowBlocks * kInt8BlockBytes;
#pragma unroll
  for (int i = 0; i < kOutputBlocks; ++i)
    copy_bulk(to + i * kInt8BlockBytes, w + i * blocks * kInt8BlockBytes, kInt8BlockBytes, filled);
}

__device__ inline void fetch_tiles(const GpuInt8Product& args, const Tiles& tiles, int outlier_blocks,
                                   uint32_t slots, Control& control) {
  const int64_t code_blocks = padded_inputs(args.x.in) / 128, room = args.capacity / 64;
  Ring<kSlots> ring;
  auto fetch_next = [&](const char* x, const char* w, int64_t blocks) {
    wait_for_phase(&control.emptied[ring.slot], ring.parity ^ 1);
    fetch(slots + ring.slot * kSlotBytes, x, w, blocks, &control.filled[ring.slot]);
    ring.advance();
  };
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles.count(); tile += static_cast<int>(gridDim.x)) {
    const Tiles::Place place = tiles.at(tile);
    const GpuInt8Matrix& matrix = args.matrix[place.matrix];
    const int64_t x_block = place.row_tile * kRowBlocks;
    const int64_t output_block = place.output_tile * kOutputBlocks;
    const char* x = reinterpret_cast<const char*>(args.x.codes) + x_block * code_blocks * kInt8BlockBytes;
    const char* w =
        reinterpret_cast<const char*>(matrix.codes) + output_block * code_blocks * kInt8BlockBytes;
    for (int64_t block = 0; block < code_blocks; ++block)
      fetch_next(x + block * kInt8BlockBytes, w + block * kInt8BlockBytes, code_blocks);
    x = reinterpret_cast<const char*>(args.x_outliers) + x_block * room * kInt8BlockBytes;
    w = reinterpret_cast<const char*>(matrix.outliers) + output_block * room * kInt8BlockBytes;
    for (int64_t block = 0; block < outlier_blocks; ++block)
      fetch_next(x + block * kInt8BlockBytes, w + block * kInt8BlockBytes, room);
  }
}

// A thread's rows of a tile and the places of its outputs: wgmma.cuh.
struct Mine {
  int64_t row;  // and row + 8
  int n;        // and n + 1, and those 8 i further
};

// Four words of each of four neighbouring lanes: word i goes to lane i of them.
__device__ inline void transpose(uint32_t (&words)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int distance = 1; distance < 4; distance *= 2) {
    const bool is_upper = (lane & distance) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & distance) continue;
      uint32_t &low = words[i], &high = words[i | distance];
      const uint32_t other = __shfl_xor_sync(0xffffffffu, is_upper ? low : high, distance);
      (is_upper ? low : high) = other;
    }
  }
}

__device__ inline float2 two(const float* from) { return *reinterpret_cast<const float2*>(from); }

// Times the outputs' scales, plus bias, to where they go. By four blocks of eight outputs, so that no more
// registers are wanted than there are.
__device__ inline void write(const GpuInt8Product& args, const GpuInt8Matrix& matrix, const Mine& mine,
                             const float (&values)[kSums]) {
  const int out = static_cast<int>(matrix.out), lane = static_cast<int>(threadIdx.x) % 4;
  const bool is_packed = !matrix.add_to && matrix.y.dtype == DType::kBF16;
  float* const sums = matrix.add_to ? matrix.add_to : static_cast<float*>(matrix.y.data);
#pragma unroll
  for (int first = 0; first < kSums; first += 16) {
    const int n = mine.n + 2 * first;  // of the first block
    float2 scale[4], bias[4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool is_there = n + 8 * i < out;
      scale[i] = is_there ? two(matrix.wide_scales + n + 8 * i) : float2{};
      if (matrix.bias && is_there) bias[i] = two(matrix.bias + n + 8 * i);
    }
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const int64_t row = mine.row + 8 * upper;
      const bool is_row = row < args.x.rows;
      float2 y[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* const value = values + first + 4 * i + 2 * upper;
        y[i] = {fmaf(value[0], scale[i].x, bias[i].x), fmaf(value[1], scale[i].y, bias[i].y)};
      }
      if (is_packed) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) words[i] = bf16_pair(y[i].x, y[i].y);
        transpose(words);
        const int at = n + 6 * lane;  // this lane's block
        if (is_row && at < out)
          *reinterpret_cast<uint4*>(static_cast<uint16_t*>(matrix.y.data) + row * out + at) =
              make_uint4(words[0], words[1], words[2], words[3]);
        continue;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (!is_row || n + 8 * i >= out) continue;
        float* const to = sums + row * out + n + 8 * i;
        if (matrix.add_to) {
          add_in_memory(to, y[i]);
        } else {
          *reinterpret_cast<float2*>(to) = y[i];
        }
      }
    }
    asm volatile("" ::: "memory");
  }
}

__device__ inline void multiply_tiles(const GpuInt8Product& args, const Tiles& tiles, int outlier_blocks,
                                      uint32_t slots, Control& control) {
  const int group = static_cast<int>(threadIdx.x) / kWarpgroup - 1,
            warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int g = static_cast<int>(threadIdx.x) % 32 / 4, c = static_cast<int>(threadIdx.x) % 4;
  const int code_blocks = static_cast<int>(padded_inputs(args.x.in) / 128);
  Ring<kSlots> ring;
  auto operands = [&](uint64_t& a, uint64_t& b) {
    wait_for_phase(&control.filled[ring.slot], ring.parity);
    const uint32_t slot = slots + ring.slot * kSlotBytes;
    a = panel_descriptor(slot + group * kInt8BlockBytes, 0);
    b = panel_descriptor(slot + kRowBlocks * kInt8BlockBytes, 0);
  };
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles.count(); tile += static_cast<int>(gridDim.x)) {
    const Tiles::Place place = tiles.at(tile);
    const GpuInt8Matrix& matrix = args.matrix[place.matrix];
    int sums[kSums];
    uint64_t a, b;
    for (int block = 0; block < code_blocks; ++block) {
      operands(a, b);
      begin_products();
#pragma unroll
      for (int i = 0; i < 4; ++i) multiply_codes(sums, moved(a, 32 * i), moved(b, 32 * i), block + i);
      commit_products();
      if (block > 0) {
        wait_for_products<1>();
        release(&control.emptied[ring.before()]);
      }
      ring.advance();
    }
    wait_for_products<0>();
    pin(sums);
    release(&control.emptied[ring.before()]);

    const Mine mine = {place.row() + group * 64 + warp * 16 + g, static_cast<int>(place.n()) + 2 * c};
    const float scale = mine.row < args.x.rows ? args.x.scales[mine.row] : 0.0f;
    const float scale8 = mine.row + 8 < args.x.rows ? args.x.scales[mine.row + 8] : 0.0f;
    float values[kSums];
#pragma unroll
    for (int i = 0; i < kSums; i += 4) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int n = mine.n + 2 * i + j;
        const int offset = matrix.input_offsets && n < matrix.out ? matrix.input_offsets[n] : 0;
        values[i + j] = static_cast<float>(sums[i + j] - offset) * scale;
        values[i + 2 + j] = static_cast<float>(sums[i + 2 + j] - offset) * scale8;
      }
    }
    for (int block = 0; block < outlier_blocks; ++block) {
      operands(a, b);
      pin(values);
      begin_products();
#pragma unroll
      for (int i = 0; i < 4; ++i) multiply_outliers(values, moved(a, 32 * i), moved(b, 32 * i));
      commit_products();
      wait_for_products<0>();
      pin(values);
      release(&control.emptied[ring.slot]);
      ring.advance();
    }
    write(args, matrix, mine, values);
  }
}

// The outliers of columns that the list has beyond those that there was room for: none, nearly always.
__device__ void add_other_outliers(const GpuInt8Product& args, const Tiles& tiles, int listed) {
  const GpuInt8Rows& x = args.x;
  wait_at(1, kMultipliers * kWarpgroup);  // what is added to was written by other threads
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles.count(); tile += static_cast<int>(gridDim.x)) {
    const Tiles::Place place = tiles.at(tile);
    const GpuInt8Matrix& matrix = args.matrix[place.matrix];
    for (int i = static_cast<int>(threadIdx.x) - kWarpgroup; i < kRows * kOutputs;
         i += kMultipliers * kWarpgroup) {
      const int64_t row = place.row() + i / kOutputs, n = place.n() + i % kOutputs;
      if (row >= x.rows || n >= matrix.out) continue;
      float sum = 0;
      for (int j = static_cast<int>(args.capacity); j < listed; ++j) {
        const int column = x.outlier_columns[j];
        const float value = bf16_to_f32(x.x[row * x.in + column]);
        if (!(fabsf(value) >= x.threshold)) continue;
        const int64_t at = fragment_place(n, column, x.in, 8).byte;
        sum = fmaf(value, static_cast<float>(static_cast<const uint8_t*>(matrix.fragments)[at] - 128), sum);
      }
      sum *= matrix.wide_scales[n];
      const int64_t at = row * matrix.out + n;
      if (matrix.add_to) {
        matrix.add_to[at] += sum;
      } else if (matrix.y.dtype == DType::kF32) {
        static_cast<float*>(matrix.y.data)[at] += sum;
      } else {
        uint16_t& y = static_cast<uint16_t*>(matrix.y.data)[at];
        y = f32_to_bf16(bf16_to_f32(y) + sum);
      }
    }
  }
}

#endif

__global__ void __launch_bounds__(kThreads, 1)
    int8_product_kernel(const __grid_constant__ GpuInt8Product args, const __grid_constant__ Tiles tiles) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ char shared[];
  __shared__ Control control;
  const uint32_t slots = (shared_address(shared) + 1023) / 1024 * 1024;
  if (threadIdx.x == 0) control.make(4 * kMultipliers);
  __syncthreads();
  follow_predecessor();
  const int listed = args.x.threshold > 0 ? *args.x.outlier_count : 0;
  const int outlier_blocks = (min(listed, static_cast<int>(args.capacity)) + 63) / 64;
  if (threadIdx.x < kWarpgroup) {
    give_registers<40>();
    if (threadIdx.x == 0) fetch_tiles(args, tiles, outlier_blocks, slots, control);
  } else {
    take_registers<232>();
    multiply_tiles(args, tiles, outlier_blocks, slots, control);
    if (listed > args.capacity) add_other_outliers(args, tiles, listed);
  }
#endif
}

}  // namespace

bool has_int8_product() { return has_own_code<int8_product_kernel>(); }

void gpu_int8_product(const GpuInt8Product& args, void* stream) {
  const Tiles tiles(args.x.rows, args.matrix, args.matrices);
  allow_shared_memory<int8_product_kernel>(kSharedBytes);
  launch(int8_product_kernel, dim3(static_cast<unsigned>(std::min(tiles.count(), multiprocessors()))),
         dim3(kThreads), kSharedBytes, stream, args, tiles);
}

}  // namespace lowbit
