#include "ops/gptq_block.h"

#include "ops/columns.h"
#include "ops/cuda/quantize_gpu.h"
#include "ops/parallel.h"

namespace lowbit {
namespace {

constexpr Kernel<GptqBlockArgs> kTable[] = {
    {"avx512", Isa::kAvx512, nullptr, gptq_block_avx512},
    {"avx2", Isa::kAvx2, nullptr, gptq_block_avx2},
    {"ref", Isa::kRef, nullptr, gptq_block_ref},
};

}  // namespace

void gptq_block(const OpContext& context, const GptqBlockArgs& args, int64_t rows) {
  if (args.columns > kGptqBlockColumns || args.begin < 0 || args.begin > args.end ||
      args.end > args.columns) {
    fail(ErrorCode::kInvalidArgument,
         "gptq_block: columns {} to {} of {} cannot be run, at most {} fit a block", args.begin, args.end,
         args.columns, kGptqBlockColumns);
  }
  if constexpr (kHasCuda) {
    refuse_levels_on_gpu(context, args.levels);
    if (context.gpu) return gpu_gptq_block(args, rows, context.gpu->stream());
  }
  const auto& kernel = choose_kernel<GptqBlockArgs>(context, "gptq_block", kTable, args);
  run_kernel(context, kernel, args, rows, kGptqBlockRows, kGptqBlockScratchBytes);
}

std::vector<KernelListing> gptq_block_kernels() {
  std::vector<KernelListing> list;
  append_listing<GptqBlockArgs>(list, "gptq_block", kTable);
  return list;
}

}  // namespace lowbit
