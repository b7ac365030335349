// The matmul kernels of this folder and of ref/, for the tables in ops/matmul.cc. Signature:
// ops/kernel_table.h.
#pragma once

#include "ops/matmul_args.h"

namespace lowbit {

// Any weight but kInt8; x kPlain. Sums in double.
void matmul_ref(const MatmulArgs&, int64_t begin, int64_t end, void* scratch) noexcept;

// Decode, affine: group_size a multiple of unit_columns(bits) or one group; x kInt16.
void matmul_decode_affine_avx2(const MatmulArgs&, int64_t begin, int64_t end, void* scratch) noexcept;
void matmul_decode_affine_avx512(const MatmulArgs&, int64_t begin, int64_t end, void* scratch) noexcept;
void matmul_decode_affine_avx512vnni(const MatmulArgs&, int64_t begin, int64_t end, void* scratch) noexcept;

// int8 with inputs in int8, decode and prefill; x kInt8. All give the bits of the first: sums of codes are
// exact, and
//   y = w_scale * (x_scale * sum + outliers, one after the other, each a fused multiply-add) + bias
// where static inputs have a zero point, sum is less by input_offsets, exactly too.
void matmul_int8_ref(const MatmulArgs&, int64_t begin, int64_t end, void* scratch) noexcept;
void matmul_int8_avx2(const MatmulArgs&, int64_t begin, int64_t end, void* scratch) noexcept;
void matmul_int8_avx512(const MatmulArgs&, int64_t begin, int64_t end, void* scratch) noexcept;
void matmul_int8_avx512vnni(const MatmulArgs&, int64_t begin, int64_t end, void* scratch) noexcept;
void matmul_int8_amx(const MatmulArgs&, int64_t begin, int64_t end, void* scratch) noexcept;

// Decode, dense; x kEvenOdd for BF16, else kPadded.
void matmul_decode_dense_avx2(const MatmulArgs&, int64_t begin, int64_t end, void* scratch) noexcept;
void matmul_decode_dense_avx512(const MatmulArgs&, int64_t begin, int64_t end, void* scratch) noexcept;

// Decode, codebook: group_size a multiple of unit_columns(bits) or one group; x kPadded.
void matmul_decode_codebook_avx2(const MatmulArgs&, int64_t begin, int64_t end, void* scratch) noexcept;
void matmul_decode_codebook_avx512(const MatmulArgs&, int64_t begin, int64_t end, void* scratch) noexcept;
// The same of 4 bits, and of powers of a base by 5 to 8, where the smallest value that is not 0 is at least a
// 256th of the largest; x kInt16.
void matmul_decode_codebook_int16_avx2(const MatmulArgs&, int64_t begin, int64_t end, void* scratch) noexcept;
void matmul_decode_codebook_int16_avx512vnni(const MatmulArgs&, int64_t begin, int64_t end,
                                             void* scratch) noexcept;

// Prefill in FP32; codes as above; x kPlain.
void matmul_prefill_avx2(const MatmulArgs&, int64_t begin, int64_t end, void* scratch) noexcept;
void matmul_prefill_avx512(const MatmulArgs&, int64_t begin, int64_t end, void* scratch) noexcept;

// Prefill with x and W rounded to BF16, sums in FP32; BF16 or codes as above, with a codebook those of 4
// bits; x kBf16Tiles.
void matmul_prefill_amx(const MatmulArgs&, int64_t begin, int64_t end, void* scratch) noexcept;
// Fills x_tiles of row blocks [begin, end) of 16 rows from x (x_stride); `order` is position_order(bits).
void prepare_bf16_tiles(const MatmulArgs&, const uint8_t* order, int64_t begin, int64_t end) noexcept;

}  // namespace lowbit
