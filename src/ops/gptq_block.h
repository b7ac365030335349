// GPTQ's inner loop over the columns of a block (Frantar et al., arXiv 2210.17323, algorithm 1), for all rows
// at once.
#pragma once

#include "ops/context.h"
#include "ops/gptq_block_args.h"
#include "ops/kernel_table.h"

#include <vector>

namespace lowbit {

// For columns i in [begin, end), in order, for every row:
//   codes[i]  = clamp(round_half_even(w[i] / scale) + zero_point, 0, max_code); NaN gets the zero_point
//   errors[i] = (w[i] - scale * (codes[i] - zero_point)) / u[i][i]
//   w[j]     -= errors[i] * u[i][j] for all j > i of the block, also those behind `end`
// or with `levels`: codes[i] = the nearest of w[i] * (1 / scale), NaN getting that of 0, and errors[i] from
// what it means, scaled; 1 / scale is rounded, scale being kLeastScale at least. All
// so that the block can be run in parts, group parameters being chosen from the updated w in between. w[i]
// keeps its value before rounding. Updates are fused multiply-adds in the order of i: every kernel gives the
// same bits. kInvalidArgument: more than kGptqBlockColumns columns, or a range outside of them.
//
// With `previous` set it is a step of coordinate descent (Behdin et al., QuantEase, arXiv 2309.01885)
// instead: u is the block of H, w is H (W - Q), and
//   codes[i]  = nearest code of previous[i] + w[i] / u[i][i]
//   errors[i] = decoded code - previous[i]
//   w[j]     -= errors[i] * u[i][j] for all j > i of the block
void gptq_block(const OpContext& context, const GptqBlockArgs& args, int64_t rows);

std::vector<KernelListing> gptq_block_kernels();

}  // namespace lowbit
