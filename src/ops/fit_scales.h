// The scales of a group that suit its codes best: part of coordinate descent (quantize/refine.h).
#pragma once

#include "ops/context.h"
#include "ops/fit_scales_args.h"

namespace lowbit {

// For each row, with c = codes - zero_points of the group, or what a codebook says of the codes, and H its
// own part of the block:
//   scale += c^T gradient / c^T H c, rounded to F16 where the format is affine
// which is the least squares of (W - Q)^T H (W - Q) in the scale. A scale that would leave [1/2, 2] of the
// present one stays: its codes say nothing about it.
void fit_scales(const OpContext& context, const FitScalesArgs& args);

}  // namespace lowbit
