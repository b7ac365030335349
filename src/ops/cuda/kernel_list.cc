#include "ops/cuda/kernel_list.h"

#include "ops/cuda/attention_gpu.h"
#include "ops/cuda/matmul_batch.h"
#include "ops/cuda/matmul_decode.h"
#include "ops/cuda/matmul_int8.h"
#include "ops/cuda/matmul_prompt.h"

#include <fmt/format.h>

namespace lowbit {

std::vector<GpuKernelListing> list_gpu_kernels(GpuLibraries& libraries) {
  const bool has_gemm = libraries.gemm_problem().empty(), has_solver = libraries.solver_problem().empty();
  const std::string few = has_gemm ? fmt::format("decoding, and up to {} rows", kDecodeRows) : "any rows";
  return {
      {"matmul", "tensor-core decode",
       few + "; 16 bits, codes in groups of 32 or 128, nf4 and fp4 in groups of 64"},
      {"matmul", "batch decode",
       fmt::format("two to {} rows on compute capability 9.0; above 16 by wgmma", kDecodeRows),
       has_gpu_batch()},
      {"matmul", "wgmma",
       fmt::format("prompts of {} to {} rows by codes on compute capability 9.0, in the groups of decoding; "
                   "up to {} where three matrices share them",
                   kDecodeRows + 1, most_prompt_rows(1), most_prompt_rows(3)),
       has_gemm && has_prompt_product()},
      {"matmul", "wgmma int8",
       fmt::format("prompts of more than {} rows whose inputs are rounded to int8, on compute capability 9.0",
                   kMostRoundedRows),
       has_int8_product()},
      {"matmul", "cublaslt",
       fmt::format("all other prompts of more than {} rows; codes become BF16 once", kDecodeRows), has_gemm},
      {"matmul", "plain", few + "; every other shape, slow"},
      {"matmul_normed", "tensor-core decode",
       has_gpu_batch() ? "norm and product in one for one row; of more the product before norms"
                       : "norm and product in one, up to 8 rows; above, the norm before"},
      {"matmul_gated", "tensor-core decode",
       has_gpu_batch() ? "gate, up and SwiGLU in one, up to 32 rows; the norm as for matmul_normed"
                       : "norm, gate, up and SwiGLU in one, up to 16 rows; the norm before above 8"},
      {"gated_mlp", "batch decode", "what gate and up leave is what down copies, two to 32 rows",
       has_gpu_batch()},
      {"rope_attention", "split keys",
       "decoding without ALiBi; heads of 32, 64, 80, 96 or 128, at most 16 query heads to a key head"},
      {"rope_attention", "wgmma",
       "causal prompts without ALiBi on compute capability 9.0; heads of 64 or 128", has_prompt_attention()},
      {"rope_attention", "tensor-core blocks", "all else, with heads of 32, 64, 80, 96 or 128"},
      {"rope_attention", "plain", "every other head up to 256"},
      {"rms_norm", "gpu", "every width"},
      {"layer_norm", "gpu", "every width"},
      {"rope", "gpu", "apart from attention"},
      {"swiglu", "gpu", "more rows than decoding has"},
      {"activate", "gpu", "every function, gated or not"},
      {"embedding", "gpu", "dense tables and codes"},
      {"sample", "gpu", "greedy, temperature, top-k, top-p, repetition penalty; part of the decoding graph"},
      {"argmax", "gpu", "evaluation"},
      {"log_sum_exp", "gpu", "evaluation"},
      {"divergence", "gpu", "evaluation"},
      {"encode", "gpu", "loading in 4 bits: nf4 and fp4, groups of 64"},
      {"gram", "cublaslt", "quantizing: X^T X", has_gemm},
      {"gemm", "cublaslt", "quantizing: updates of the columns left", has_gemm},
      {"inverse_cholesky", "cusolver", "quantizing: the factor of GPTQ", has_solver},
      {"gptq_block", "gpu", "quantizing: a block of columns"},
      {"clip_search", "gpu", "quantizing: scales and zero points"},
      {"fit_scales", "gpu", "quantizing: refinement of scales"},
      {"columns", "gpu", "quantizing: loading, decoding and packing of columns"}};
}

}  // namespace lowbit
