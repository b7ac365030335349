// The checks of runtime/'s options at its door.
#pragma once

#include "lowbit/fields.h"
#include "lowbit/generate.h"
#include "ops/context.h"
#include "tensor/dtype.h"

namespace lowbit {

void validate(const GenerateOptions& options);  // kInvalidArgument with the range
// "cpu": kHost, "cuda": 0, "cuda:1": 1, "auto": kAnyDevice.
constexpr int kAnyDevice = -2;
int parse_device(std::string_view name);
DType parse_cache_dtype(std::string_view name);           // "bfloat16", "float32"
KernelChoice parse_kernel_choice(std::string_view text);  // "ref" or "matmul_dense_decode=avx2,attention=ref"

}  // namespace lowbit
