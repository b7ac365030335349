#include "ops/attention.h"
#include "ops/clip_search.h"
#include "ops/elementwise.h"
#include "ops/encode.h"
#include "ops/gemm.h"
#include "ops/gptq_block.h"
#include "ops/gram.h"
#include "ops/kernel_table.h"
#include "ops/matmul.h"
#include "ops/packed_gemm.h"
#include "ops/softmax.h"

namespace lowbit {

std::vector<KernelListing> list_kernels() {
  std::vector<KernelListing> all;
  for (auto kernels_of :
       {matmul_kernels, attention_kernels, clip_search_kernels, elementwise_kernels, encode_kernels,
        softmax_kernels, gemm_kernels, packed_gemm_kernels, gram_kernels, gptq_block_kernels}) {
    const std::vector<KernelListing> some = kernels_of();
    all.insert(all.end(), some.begin(), some.end());
  }
  return all;
}

}  // namespace lowbit
