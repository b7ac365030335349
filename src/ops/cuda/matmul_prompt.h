// y = x W^T on Hopper for the rows of a prompt, where W is codes that become BF16 in registers, as wgmma's
// first operand: no BF16 matrix is written and read again, which takes as long for 50 rows as for 50,000.
#pragma once

#include "ops/cuda/matmul_decode.h"

#include <cstddef>
#include <cstdint>

namespace lowbit {

// Most rows of x for so many matrices in one call: with more the library is faster, with matrices that are
// BF16 first, one after the other.
constexpr int64_t most_prompt_rows(size_t matrices) { return 256 * static_cast<int64_t>(matrices); }
// Rows of x as the products read them: of each tile of rows, for each 64 inputs, a panel of wgmma.cuh, in
// which 32 inputs are four pieces as GpuKeptRows has them.
constexpr int64_t prompt_block_bytes(int64_t rows, int64_t in) {
  return (rows + 127) / 128 * 128 * padded_inputs(in) * 2;
}

// Whether this GPU has the kernels, and they take such weights: codes in groups of 32 or 128; of 64 that
// point into a table or are floats; outputs in multiples of 8.
bool has_prompt_product();
bool fits_prompt_product(const GpuDecodeArgs& args);

// args: x, with its column_order, not hidden; codes; no `next`. arranged: prompt_block_bytes. Weights are
// scale * (code - zero_point), or scale * the table's value, rounded to BF16. Queued on `stream`.
void gpu_prompt_product(const GpuDecodeArgs& args, void* arranged, void* stream);

}  // namespace lowbit
