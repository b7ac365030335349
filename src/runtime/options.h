// The checks of runtime/'s options at its door.
#pragma once

#include "lowbit/embed.h"
#include "lowbit/fields.h"
#include "lowbit/generate.h"
#include "lowbit/log.h"
#include "ops/context.h"
#include "tensor/dtype.h"

namespace lowbit {

// kInvalidArgument with the range.
void validate(const RuntimeOptions& options);
void validate(const GenerateOptions& options);
void validate(const EmbedOptions& options);
void validate_llm_int8_threshold(float threshold);
// "cpu": kHost, "cuda": 0, "cuda:1": 1, "auto": kAnyDevice.
constexpr int kAnyDevice = -2;
int parse_device(std::string_view name);
std::string device_name(int device);  // "cpu", "cuda:1"
// The device that `name` means. `cpu_only`: an option that only the CPU can follow, as 'kernel "avx2"', or
// empty; "auto" then is the CPU, with a line that says so, and a GPU kUnsupported. Otherwise "auto" is the
// first GPU that can be used, or the CPU. A GPU that cannot be used: kDevice.
int choose_device(std::string_view name, std::string_view cpu_only, const Log& log);
// The option that only the CPU can follow, for choose_device, or "".
std::string cpu_only(const RuntimeOptions& options);
DType parse_cache_dtype(std::string_view name);           // "bfloat16", "float32"
KernelChoice parse_kernel_choice(std::string_view text);  // "ref" or "matmul_dense_decode=avx2,attention=ref"
// What `kernel` says; for bnb_4bit_compute_dtype "float32" those for codebooks that keep inputs as they are.
KernelChoice kernel_choice(const RuntimeOptions& options);

}  // namespace lowbit
