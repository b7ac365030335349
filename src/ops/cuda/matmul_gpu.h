// ops/matmul.h on a GPU.
#pragma once

#include "ops/cuda/matmul_decode.h"
#include "ops/fused.h"

namespace lowbit {

void matmul_on_gpu(const OpContext& context, ConstActivations x, int64_t tokens,
                   std::span<const MatmulOutput> outputs, MatmulMode mode);

// ops/fused.h in one kernel, or two where the rows are many; false where there is none for these weights.
bool matmul_normed_on_gpu(const OpContext& context, const NormedRows& x, int64_t tokens,
                          std::span<const MatmulOutput> outputs, MatmulMode mode);
bool matmul_gated_on_gpu(const OpContext& context, const NormedRows& x, int64_t tokens,
                         const MatmulOutput& gate, const MatmulOutput& up, Activations out, MatmulMode mode);

bool gated_mlp_on_gpu(const OpContext& context, const NormedRows& x, int64_t tokens, const MatmulOutput& gate,
                      const MatmulOutput& up, const MatmulOutput& down, MatmulMode mode);

// Of the workspace that a prompt's product takes: for the weight, as BF16 or as blocks of codes, or instead
// for the rows of a short one; for rows that are rounded to int8.
int64_t matmul_weight_bytes(const Weight& weight);
int64_t matmul_rows_bytes(const Weight& weight, int64_t rows);

// How the kernels take a weight that lies as weights_gpu.h says.
struct GpuWeightKind {
  Format format = Format::kAffine;  // of codes
  int bits = 16;
  int64_t group_size = 0;
  bool has_zero_points = false;
  const int32_t* column_order = nullptr;
  ActivationFormat activations = ActivationFormat::kNone;  // what prompts' inputs are rounded to, and how:
  float outlier_threshold = 0;                             // see format/weight.h
  InputGrid input_grid = {};
  CodeTable table = {};
  bool operator==(const GpuWeightKind&) const = default;
};
GpuWeightKind kind_of(const Weight& weight);
CodeTable code_table(Format format, std::span<const float> codebook);  // of none: empty
CodeTable code_table(Format format);     // whose codebook the format says, or none
float kept_scale_factor(Format format);  // what a GPU's scales are multiplied by, and values divided
GpuMatrix matrix_of(const MatmulOutput& output);

}  // namespace lowbit
