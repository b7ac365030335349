// A row of an embedding table, for the kernel of its own and for the one that has chosen the token.
#pragma once

#include "ops/cuda/device.cuh"
#include "ops/cuda/elementwise_gpu.h"

namespace lowbit {
namespace {

// By all threads of a block; out: [width]. Loads do not wait for stores.
__device__ inline void embed_row(const GpuEmbeddingTable& table, int64_t id, float* out) {
  const int width = static_cast<int>(table.width), threads = static_cast<int>(blockDim.x);
  if (table.bits == 16 && !table.column_order && width % 8 == 0) {
    const uint4* const from =
        reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(table.matrix.weight) + id * width);
    float4* const to = reinterpret_cast<float4*>(out);
    for (int i = threadIdx.x; i < width / 8; i += threads) {
      const uint4 eight = __ldg(from + i);
      to[2 * i] = {low_bf16(eight.x), high_bf16(eight.x), low_bf16(eight.y), high_bf16(eight.y)};
      to[2 * i + 1] = {low_bf16(eight.z), high_bf16(eight.z), low_bf16(eight.w), high_bf16(eight.w)};
    }
    return;
  }
  constexpr int kAtOnce = 4;
  for (int first = threadIdx.x; first < width; first += kAtOnce * threads) {
    float values[kAtOnce];
    int columns[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int i = min(first + j * threads, width - 1);
      values[j] = weight_at(table.matrix, table.bits, table.group_size,
                            table.has_table ? &table.table : nullptr, width, id, i);
      columns[j] = table.column_order ? __ldg(table.column_order + i) : i;
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      if (first + j * threads < width) out[columns[j]] = values[j];
  }
}

}  // namespace
}  // namespace lowbit
