// How matrices lie on a GPU: in the order in which the threads of a warp hold the first operand of
// mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"), so that a thread's 16 bytes become operands by
// shifts and masks, without shuffles. Plain data and arithmetic, for host and device.
//
// The matrix [out, in] is cut into tiles of 16 outputs; a tile is a run of pieces, one behind the other along
// `in`; a piece is 32 threads x 16 bytes = 512 bytes. Both edges are filled up with codes that nothing reads
// (outputs) or that meet zeros of x (inputs). Thread t holds rows g = t / 4 and g + 8, and within each 16
// inputs the columns 2 c, 2 c + 1, 2 c + 8, 2 c + 9 with c = t % 4: four pairs
//   pair 0: row g,     from 2 c on        pair 2: row g,     from 2 c + 8 on
//   pair 1: row g + 8, from 2 c on        pair 3: row g + 8, from 2 c + 8 on
//
//   bits  inputs of a piece  a thread's 16 bytes
//   16    16                 the four pairs as BF16
//   8     32                 for each 16 inputs 8 bytes: first elements of the pairs, then second ones
//   4     64                 for each 16 inputs a word: digit i is the first element of pair i, digit 4 + i
//                            the second
#pragma once

#include <cstdint>

namespace lowbit {

constexpr int kTileOutputs = 16, kStepInputs = 16, kPieceBytes = 512;

constexpr int piece_inputs(int bits) { return kPieceBytes * 8 / (kTileOutputs * bits); }
constexpr int64_t tile_count(int64_t out) { return (out + kTileOutputs - 1) / kTileOutputs; }
constexpr int64_t piece_count(int64_t in, int bits) {
  return (in + piece_inputs(bits) - 1) / piece_inputs(bits);
}
constexpr int64_t fragment_bytes(int64_t out, int64_t in, int bits) {
  return tile_count(out) * piece_count(in, bits) * kPieceBytes;
}

struct FragmentPlace {
  int64_t byte;  // of the element, from the beginning of the matrix
  int shift;     // of a code below 8 bits within the byte
};

// Where element [n, k] lies.
constexpr FragmentPlace fragment_place(int64_t n, int64_t k, int64_t in, int bits) {
  const int64_t tile = n / kTileOutputs, piece = k / piece_inputs(bits);
  const int row = static_cast<int>(n % kTileOutputs), in_piece = static_cast<int>(k % piece_inputs(bits));
  const int step = in_piece / kStepInputs, column = in_piece % kStepInputs;
  const int thread = row % 8 * 4 + column % 8 / 2, pair = row / 8 + column / 8 * 2, second = column % 2;
  const int64_t base = (tile * piece_count(in, bits) + piece) * kPieceBytes + thread * 16;
  if (bits == 16) return {base + pair * 4 + second * 2, 0};
  if (bits == 8) return {base + step * 8 + second * 4 + pair, 0};
  const int digit = second * 4 + pair;
  return {base + step * 4 + digit / 2, digit % 2 * 4};
}

}  // namespace lowbit
