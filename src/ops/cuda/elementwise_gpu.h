// The small operators on a GPU, as ops/elementwise.h and ops/softmax.h describe them. All pointers are to the
// GPU's memory.
#pragma once

#include "ops/cuda/matmul_decode.h"
#include "ops/elementwise_args.h"
#include "tensor/activations.h"

#include <cstdint>

namespace lowbit {

struct GpuRmsNormArgs {
  ConstActivations x;  // F32 or BF16 [rows, width]
  Activations y;       // BF16 or F32 [rows, width], may be x
  const float* weight = nullptr;
  int64_t rows = 0, width = 0;
  float epsilon = 0;
};
void gpu_rms_norm(const GpuRmsNormArgs& args, void* stream);

struct GpuLayerNormArgs {
  ConstActivations x;  // F32 or BF16 [rows, width]
  Activations y;       // BF16 or F32 [rows, width], may be x
  const float *weight = nullptr, *bias = nullptr;
  int64_t rows = 0, width = 0;
  float epsilon = 0;
};
void gpu_layer_norm(const GpuLayerNormArgs& args, void* stream);

// The norm as decode products do it, for rows that they do not prepare themselves: to[r][i] = BF16 of x[r][j]
// * weight[j] for j = order[i] (order null: i), and the factors that go to the products. width: a multiple
// of 8.
struct GpuNormRowsArgs {
  const float* x = nullptr;  // [rows, width]
  const float* weight = nullptr;
  const int32_t* order = nullptr;
  int64_t rows = 0, width = 0;
  float epsilon = 0;
  uint16_t* to = nullptr;    // BF16 [rows, width]
  float* factors = nullptr;  // [rows]
};
void gpu_norm_rows(const GpuNormRowsArgs& args, void* stream);

struct GpuRopeArgs {
  uint16_t* x = nullptr;  // BF16 [tokens, heads * head_dim]
  const int32_t* positions = nullptr;
  const float *cosines = nullptr, *sines = nullptr;
  int64_t tokens = 0, heads = 0, head_dim = 0, half = 0;
};
void gpu_rope(const GpuRopeArgs& args, void* stream);

// BF16, count elements.
void gpu_swiglu(const uint16_t* gate, const uint16_t* up, uint16_t* out, int64_t count, void* stream);

// BF16, count elements: out = f(x), times up where there is one. out may be x.
struct GpuActivateArgs {
  Activation f = Activation::kSilu;
  const uint16_t *x = nullptr, *up = nullptr;
  uint16_t* out = nullptr;
  int64_t count = 0;
};
void gpu_activate(const GpuActivateArgs& args, void* stream);

// BF16. A row of x is all parts side by side; out of a part: [rows, width].
struct GpuSplitArgs {
  static constexpr int kMost = 3;
  struct Part {
    int64_t width = 0;
    uint16_t* out = nullptr;
  };
  const uint16_t* x = nullptr;
  int64_t rows = 0, stride = 0;  // stride: the sum of the widths
  Part part[kMost];
  int parts = 0;
};
void gpu_split_columns(const GpuSplitArgs& args, void* stream);

// to[i] += x[i]; x: F32 or BF16.
void gpu_add(ConstActivations x, int64_t count, float* to, void* stream);
void gpu_scale(float factor, int64_t count, float* x, void* stream);

// to[t] += table[rows[t] + offset], F32 += BF16 [., width]; rows null: all are 0.
struct GpuAddRowsArgs {
  const uint16_t* table = nullptr;
  const int32_t* rows = nullptr;
  int64_t offset = 0, count = 0, width = 0;
  float* to = nullptr;
};
void gpu_add_rows(const GpuAddRowsArgs& args, void* stream);

struct GpuEmbeddingTable {
  GpuMatrix matrix;  // [vocab, width]; only the weight
  int bits = 16;     // these as in GpuDecodeArgs
  int64_t group_size = 0;
  bool has_table = false;
  CodeTable table;
  const int32_t* column_order = nullptr;
  int64_t width = 0;
};
struct GpuEmbeddingArgs {
  GpuEmbeddingTable table;
  const int32_t* ids = nullptr;
  int64_t count = 0;
  float* out = nullptr;  // [count, width]
};
void gpu_embedding(const GpuEmbeddingArgs& args, void* stream);

// x of a weight whose columns stand in another order: to[r][i] = x[r][order[i]]. BF16.
void gpu_gather_columns(const uint16_t* x, const int32_t* order, int64_t rows, int64_t width, uint16_t* to,
                        void* stream);

// Numbers of another floating type.
void gpu_convert_to_bf16(ConstActivations from, int64_t count, uint16_t* to, void* stream);

// y[r][n] += bias[n], F32.
void gpu_add_bias(float* y, const float* bias, int64_t rows, int64_t width, void* stream);

// log(sum(exp(x[r]))) - x[r][targets[r]]; targets on the GPU too.
void gpu_token_nll(const float* x, const int32_t* targets, int64_t rows, int64_t vocab, double* out,
                   void* stream);
void gpu_log_sum_exp(const float* x, int64_t rows, int64_t vocab, double* out, void* stream);
void gpu_divergence(const float* reference, const float* x, int64_t rows, int64_t vocab, double* out,
                    void* stream);

}  // namespace lowbit
