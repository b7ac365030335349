#include "ops/kernel_table.h"

namespace lowbit {

bool isa_available(Isa isa) {
  const CpuFeatures& cpu = cpu_features();
  switch (isa) {
    case Isa::kRef:
      return true;
    case Isa::kAvx2:
      return cpu.avx2;
    case Isa::kAvx512:
      return cpu.avx512;
    case Isa::kAvx512Vnni:
      return cpu.avx512_vnni;
    case Isa::kAmxBf16:
      return cpu.avx512_bf16 && cpu.amx_bf16;  // every AMX processor so far has both
    case Isa::kAmxInt8:
      return cpu.avx512 && cpu.amx_int8;
  }
  return false;
}

const char* isa_requirement(Isa isa) {
  switch (isa) {
    case Isa::kRef:
      return "any processor";
    case Isa::kAvx2:
      return "AVX2, FMA, F16C";
    case Isa::kAvx512:
      return "AVX-512 F, BW, VL, DQ";
    case Isa::kAvx512Vnni:
      return "AVX-512 VNNI";
    case Isa::kAmxBf16:
      return "AMX BF16, AVX-512 BF16";
    case Isa::kAmxInt8:
      return "AMX INT8";
  }
  return "";
}

std::string_view forced_kernel(const OpContext& context, std::string_view op) {
  if (!context.kernels) return {};
  for (const auto& [name, kernel] : context.kernels->by_op) {
    if (name == op) return kernel;
  }
  return context.kernels->all;
}

void fail_forced_kernel(std::string_view op, std::string_view name, std::string_view reason) {
  fail(ErrorCode::kInvalidArgument, "kernel \"{}\" was asked for {}, but {} (see: lowbit doctor)", name, op,
       reason);
}

}  // namespace lowbit
