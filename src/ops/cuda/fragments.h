// How codes lie on a GPU: in the order in which the threads of a warp hold the first operand of mma.m16n8k16
// (PTX ISA, "Matrix Fragments for mma.m16n8k16"), so that a thread's 16 bytes become operands by shifts and
// masks, without shuffles. Plain data and arithmetic, for host and device. Matrices of BF16 stay as they are,
// rows of `in`.
//
// The matrix [out, in] is cut into tiles of 16 outputs; a tile is a run of pieces, one behind the other along
// `in`; a piece is 32 threads x 16 bytes = 512 bytes. Both edges are filled up, to whole tiles and to a
// multiple of 128 inputs (and the groups that this makes), with codes that nothing reads (outputs) or that
// meet zeros of x (inputs). Codes of 2 and 3 bits take the place of 4.
//
// In which order the inputs are summed is free, as long as x has the same: thread t holds rows g = t / 4 and
// g + 8, and of each block of 32 inputs the eight from 8 c on, c = t % 4, so that x is read in its own order,
// 16 bytes at a time. They serve two steps of the mma; a step's four inputs k ... k + 3 make four pairs:
//   pair 0: row g,     k, k + 1        pair 2: row g,     k + 2, k + 3
//   pair 1: row g + 8, k, k + 1        pair 3: row g + 8, k + 2, k + 3
//
//   bits  inputs of a piece  a thread's 16 bytes
//   8     32                 for each step 8 bytes: first elements of the pairs, then second ones
//   4     64                 for each step a word: digit i is the first of pair i, digit 4 + i the second
//
// Codes of 8 bits that are floats (fp8) lie as all others do, in groups of 64.
// Codes that point into a table of 16 values (format/codebook.h): digit j is element j of the pairs, 2 i +
// the second's 1. A byte is a pair of codes, to look up at once, and four digits are a byte permute's
// selector.
//
// Scales (F16) and zero points (U16): [tile][group][g][2], those of rows g and g + 8 side by side. Groups are
// kept in one of two sizes, larger ones several times: 128 inputs, or 32 where 128 is not a divisor
// (kept_group_size).
#pragma once

#include <cstdint>

namespace lowbit {

constexpr int kTileOutputs = 16, kBlockInputs = 32, kStepInputs = 4, kPieceBytes = 512, kUnitInputs = 128;
constexpr int kTableGroup = 64;  // inputs of a group of codes that point into a table

constexpr int64_t padded_inputs(int64_t in) { return (in + kUnitInputs - 1) / kUnitInputs * kUnitInputs; }
// Sizes that 32 does not divide stay as they are: no fast kernel reads them. With a table groups are of 64.
constexpr int64_t kept_group_size(int64_t in, int64_t group_size, bool has_table = false) {
  if (has_table) return group_size >= in || group_size % kTableGroup == 0 ? kTableGroup : group_size;
  if (group_size >= in || group_size % kUnitInputs == 0) return kUnitInputs;
  return group_size % kBlockInputs == 0 ? kBlockInputs : group_size;
}
constexpr int64_t kept_groups(int64_t in, int64_t kept_group_size) {
  return (padded_inputs(in) + kept_group_size - 1) / kept_group_size;
}

// Bits in which the codes of a weight are kept.
constexpr int fragment_bits(int bits) { return bits <= 4 ? 4 : 8; }
constexpr int piece_inputs(int fragment_bits) { return kPieceBytes * 8 / (kTileOutputs * fragment_bits); }
constexpr int64_t tile_count(int64_t out) { return (out + kTileOutputs - 1) / kTileOutputs; }
constexpr int64_t piece_count(int64_t in, int fragment_bits) {
  return padded_inputs(in) / piece_inputs(fragment_bits);
}
constexpr int64_t fragment_bytes(int64_t out, int64_t in, int fragment_bits) {
  return tile_count(out) * piece_count(in, fragment_bits) * kPieceBytes;
}

// Which element of its step's pairs input k of output n is: 2 * pair + second.
constexpr int element_of_step(int64_t n, int64_t k) {
  return static_cast<int>((n % kTileOutputs / 8 + k % kStepInputs / 2 * 2) * 2 + k % 2);
}

struct FragmentPlace {
  int64_t byte;  // of the code, from the beginning of the matrix
  int shift;     // of a code of 4 bits within the byte
};

// Where code [n, k] lies.
constexpr FragmentPlace fragment_place(int64_t n, int64_t k, int64_t in, int fragment_bits) {
  const int64_t tile = n / kTileOutputs, piece = k / piece_inputs(fragment_bits);
  const int row = static_cast<int>(n % kTileOutputs),
            in_piece = static_cast<int>(k % piece_inputs(fragment_bits));
  const int block = in_piece / kBlockInputs, in_block = in_piece % kBlockInputs;
  const int thread = row % 8 * 4 + in_block / 8, step = block * 2 + in_block % 8 / kStepInputs;
  const int element = element_of_step(n, k), pair = element / 2, second = element % 2;
  const int64_t base = (tile * piece_count(in, fragment_bits) + piece) * kPieceBytes + thread * 16;
  if (fragment_bits == 8) return {base + step * 8 + second * 4 + pair, 0};
  const int digit = second * 4 + pair;
  return {base + step * 4 + digit / 2, digit % 2 * 4};
}

// Element j of a word of codes that point into a table.
constexpr uint32_t placed_in_word(uint32_t code, int j) { return code << (4 * j); }
constexpr uint32_t code_in_word(uint32_t word, int j) { return word >> (4 * j) & 15; }

// The 16 values of a table as BF16: their lower and their upper bytes, four to a word. Or which floats codes
// of 8 bits are (float_codes).
struct CodeTable {
  uint32_t lower[4] = {}, upper[4] = {};
  bool operator==(const CodeTable&) const = default;
};

// Of fp8, a sign, an exponent and `mantissa` bits: as the upper byte of a BF16 the exponent and the mantissa
// go down by lower[0] bits, and then the value is less by 2^(127 - 7) or 2^(127 - 15), which the pair of BF16
// upper[0] makes up for, but for kFloatShrink.
constexpr int kFloatShrink =
    256;  // values are so much less, and their scales more: F16 holds small ones badly
constexpr CodeTable float_codes(int mantissa) {
  const uint32_t exponent = 127 + (mantissa == 3 ? 127 - 7 : 127 - 15) - 8;
  return {{mantissa == 3 ? 4u : 3u}, {exponent << 7 | exponent << 23}};
}

// Where the scale and the zero point of output n in a group stand.
constexpr int64_t group_place(int64_t n, int64_t group, int64_t groups) {
  const int64_t row = n % kTileOutputs;
  return (n / kTileOutputs * groups + group) * kTileOutputs + row % 8 * 2 + row / 8;
}

}  // namespace lowbit
