// Matrices as quantization works on them: [columns][rows], so that the same column of neighbouring rows is
// one load. What is done to them before, between and after the loops of ops/gptq_block.h.
#pragma once

#include "ops/columns_args.h"
#include "ops/context.h"

#include <cstdint>

namespace lowbit {

// Rows of a dense tensor [out, in] of any floating type, in this machine's memory. values: F32 [rows, in].
void read_rows(const Tensor& weight, int64_t first_row, int64_t rows, float* values);

// w[i][row] = weight[first_row + row][columns[i]], i < count. weight: dense [out, in] of any floating type.
// Whether all of them are finite.
[[nodiscard]] bool load_columns(const OpContext& context, const Tensor& weight, int64_t first_row,
                                int64_t rows, const int32_t* columns, int64_t count, float* w);

// values[i - begin][row] = scale * (code - zero_point), or scale * codebook[code], of the columns [begin,
// end).
void decode_columns(const OpContext& context, const CodeColumns& columns, int64_t begin, int64_t end,
                    float* values);

// out = a - b; out may be either.
void subtract(const OpContext& context, const float* a, const float* b, int64_t count, float* out);

// *sum += sum over i, row of weights[i] * a[i][row] * b[i][row], weights null for 1; in double precision.
void add_dot(const OpContext& context, const float* a, const float* b, const float* weights, int64_t columns,
             int64_t rows, double* sum);

// kInternal where a codebook is asked for on a GPU: its kernels know the affine grid alone.
void refuse_levels_on_gpu(const OpContext& context, const Levels* levels);

// Each row's codes as the bit stream of format/bits.h.
void pack_columns(const OpContext& context, const PackColumnsArgs& args);

}  // namespace lowbit
