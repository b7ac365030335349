// Brings x into the form that a matmul kernel wants: once per call, for all outputs that share it.
#pragma once

#include "ops/context.h"
#include "ops/matmul_args.h"

namespace lowbit {

// Codes that `bits` bits pack into whole words: 32 / bits for 2, 4 and 8 bits, else 32. A kernel works on
// such units.
constexpr int64_t unit_columns(int bits) { return 32 % bits == 0 ? 32 / bits : 32; }

// Where the codes of a unit go: prepared position i holds column position_order(bits)[i]. A vector kernel
// takes pairs of 16-bit codes out of a 32-bit lane by a shift and a mask:
//   4 bits, word 7654 3210 (one digit a code): (w >> 4i) & 0x000f000f holds codes i and 4 + i
//   8 bits i and 2 + i; 2 bits i and 8 + i
//   3 bits: words 0, 1, 2 hold the codes 0..9 | 11..20 | 22..31 whole, pairs are i and 5 + i of each; 10 and
//   21 lie across two words and are the last pair
const uint8_t* position_order(int bits);

// Points the x members of args at memory that the returned scratch holds; fill_x then brings x [rows, in],
// which is kPlain, into it. Apart, since all that a loop over columns needs to begin is where things are.
// rows, in, and for affine weights bits and group_size must be set.
Scratch place_x(const OpContext& context, XForm form, MatmulArgs& args);

// Many rows are worth the threads; a single one is not.
constexpr bool is_prepared_by_one(const MatmulArgs& args) { return args.rows * args.in < 65536; }

// x is args.x from before place_x. `prepare_tiles` is the kernel's own preparation for kBf16Tiles (row blocks
// [begin, end) of 16 rows). Throws nothing.
void fill_x(const OpContext& context, XForm form, const MatmulArgs& args, const float* x,
            void (*prepare_tiles)(const MatmulArgs&, const uint8_t* order, int64_t begin,
                                  int64_t end) noexcept);

}  // namespace lowbit
