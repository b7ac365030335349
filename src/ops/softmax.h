// Row statistics of logits: [rows, vocab] F32, which lie where the operators compute. What comes out, and
// targets, are in this machine's memory.
#pragma once

#include "ops/context.h"
#include "ops/kernel_table.h"

#include <cstdint>
#include <vector>

namespace lowbit {

// log(sum(exp(x[r]))), accumulated in double over blocks. -inf when all are -inf, +inf when one is, NaN when
// one is.
void log_sum_exp(const OpContext& context, const float* x, int64_t rows, int64_t vocab, double* out);

// log_sum_exp(x[r]) - x[r][targets[r]]: what a token that came next was unlikely, in nats.
void token_nll(const OpContext& context, const float* x, const int32_t* targets, int64_t rows, int64_t vocab,
               double* out);

// The index of the largest element of each row; of equal ones the first. NaN never wins; -1 when all are NaN.
void argmax(const OpContext& context, const float* x, int64_t rows, int64_t vocab, int32_t* out);
// Likewise, and -1 when the largest is infinite.
void finite_argmax(const OpContext& context, const float* x, int64_t rows, int64_t vocab, int32_t* out);

// KL(reference || x) of the two softmax distributions, per row, in nats. Terms with weight 0 count 0. +inf
// when an element that the reference thinks possible is -inf in x; NaN for rows with +inf or NaN.
void divergence(const OpContext& context, const float* reference, const float* x, int64_t rows, int64_t vocab,
                double* out);

std::vector<KernelListing> softmax_kernels();

}  // namespace lowbit
