// Weights as the operators of a GPU read them: dense matrices as BF16 rows, vectors as F32, codes as
// fragments.h says. Where they lie and how bytes come there is the caller's choice, so that a layer's weights
// can share one piece of memory and arrive through pinned buffers.
#pragma once

#include "base/function_ref.h"
#include "base/staged_copies.h"
#include "format/weight.h"
#include "ops/context.h"

#include <map>
#include <string>
#include <vector>

namespace lowbit {

using TakeTensor = FunctionRef<Tensor(DType dtype, Shape shape)>;
using CopyIn = FunctionRef<void(void* to_gpu, const void* from, size_t bytes)>;

// Dense matrices that become codes on their way (fragments_gpu.h): nf4 or fp4 with groups of kTableGroup
// inputs, or rows of int8 whose inputs are rounded too.
struct GpuEncoding {
  Format format = Format::kNf4;
  float outlier_threshold = 0;            // of int8
  std::vector<std::string> modules;       // names of the matrices
  std::map<const void*, size_t> indices;  // by where a matrix lies: which of them it is
  Tensor failed;                          // U32 [1] on the GPU, for filling: see check_encoding
};
inline bool becomes_codes(const GpuEncoding* encoding, const Weight& weight) {
  const Tensor* dense = std::get_if<Tensor>(&weight);
  return encoding && dense && encoding->indices.contains(dense->bytes());
}
// After what was queued has been waited for. kInvalidArgument naming the first matrix that has no codes:
// a value is not finite, or a scale beyond F16.
void check_encoding(const OpContext& context, const GpuEncoding& encoding);

// The weight with every tensor replaced by what `take` gives; nothing is copied.
Weight gpu_layout(const Weight& weight, TakeTensor take, const GpuEncoding* encoding = nullptr);
// Fills what gpu_layout made of the weight, which is in this machine's memory. Queued; copies go by `copy`,
// which must be done with its bytes when it returns.
void fill_gpu_weight(const OpContext& context, const Weight& weight, Weight& there, CopyIn copy,
                     const GpuEncoding* encoding = nullptr);
// Bytes of the workspace that filling takes.
size_t fill_scratch_bytes(const Weight& weight, const GpuEncoding* encoding = nullptr);

// Both, into memory of its own.
Weight to_gpu(const OpContext& context, const Weight& weight);

// The same for many weights, through pinned buffers; what it gives may be read by what is queued later.
class WeightMover {
 public:
  explicit WeightMover(const OpContext& context)
      : context_(context), copies_(*context.gpu, *context.threads) {}
  Weight operator()(const Weight& weight);

 private:
  const OpContext& context_;
  StagedCopies copies_;
};

}  // namespace lowbit
