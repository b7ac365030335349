// A weight matrix as the methods work on it: [columns][rows], so that one load holds the same column of
// neighbouring rows. From dense weights, and back into codes. Matrices are taken in slabs of rows: rows are
// independent, so each thread works through slabs of its own, whose data stay in its cache.
#pragma once

#include "format/levels.h"
#include "format/weight.h"
#include "lowbit/quantize.h"
#include "ops/columns.h"

#include <functional>
#include <optional>
#include <span>
#include <string>

namespace lowbit {

// A format with a codebook, as the operators want it; one for all matrices of a run.
struct CodebookChoice {
  Format format = Format::kNf4;
  int bits = 4;
  Levels levels;
  Tensor codebook;  // see QuantizedTensor
};
// Nothing where the format is affine. Options are settled.
std::optional<CodebookChoice> codebook_choice(const QuantizeOptions& options);

// One matrix and how it is to be quantized.
struct MatrixProblem {
  std::string module;
  Tensor weight;                             // dense [out, in], any floating type, mapped or not
  Tensor weight_there;                       // the same on the GPU that is to work on it, or empty
  AffineOptions affine;                      // where there is a codebook, its group_size alone
  const CodebookChoice* codebook = nullptr;  // null: affine
  GptqOptions gptq;
  bool as_autogptq = false;
  int least_zero_point = 0;  // 1 where a version 1 file is written
  bool is_last = false;      // no other matrix of the same Hessian follows

  const Levels* levels() const { return codebook ? &codebook->levels : nullptr; }
};

// Rows of a slab. A constant, so that sums over slabs do not depend on the number of threads; 96 cuts the
// usual 192 rows of a key projection in two.
inline constexpr int64_t kSlabRows = 96;

// Calls body(context, slab, first_row, rows) for all slabs, on all threads; inside, ops run on one thread. On
// a GPU all rows are one slab.
void for_each_slab(const OpContext& ops, int64_t rows,
                   const std::function<void(const OpContext& one_thread, int64_t slab, int64_t first_row,
                                            int64_t rows)>& body);
inline int64_t slab_count(int64_t rows) { return (rows + kSlabRows - 1) / kSlabRows; }

// load_columns of the problem's weight, which lies where the operators compute. kCorruptFile names the module
// when a value is not finite.
void load_weights(const OpContext& ops, const MatrixProblem& problem, int64_t first_row, int64_t rows,
                  const int32_t* columns, int64_t count, float* w);

QuantizedTensor allocate_quantized(const MatrixProblem& problem);

// Codes, scales and zero points of a slab where the operators compute, [step or group][rows].
struct CodeSlab {
  int64_t first_row = 0, rows = 0;
  const uint8_t* codes = nullptr;
  const int32_t* step_of = nullptr;  // of each position where codes are stored; null: they are the same
  const float* scales = nullptr;
  const float* zero_points = nullptr;  // not read where `out` has no zero points
};
// `out` lies in this machine's memory.
void store_slab(const OpContext& ops, const CodeSlab& slab, QuantizedTensor& out);

// values: F32 [rows, in], columns in their own order.
void decode_rows(const QuantizedTensor& weight, int64_t first_row, int64_t rows, float* values);

}  // namespace lowbit
