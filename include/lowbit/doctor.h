// The machine as lowbit sees it: processor, memory, measured limits, and the kernels that would run, and why.
#pragma once

#include "lowbit/version.h"

#include <cstdint>
#include <filesystem>
#include <string>

namespace lowbit {

// A JSON object: version, processor, instruction_sets [{name, available}], processors, threads, memory bytes,
// cuda {built, driver, runtime, problem, with a usable GPU also cublaslt_problem, cusolver_problem}, gpus
// [{device, name, compute_capability, memory_bytes, ..., problem, copy_gbps, read_gbps, bf16_tflops}], limits
// {buffer_bytes, read_gbps_1, read_gbps_all, read_gbps_all_best, fp32_gflops_all, bf16_gflops_all,
// int8_gops_all}, kernels [{op, kernel, available, chosen, requirement}], gpu_kernels [{op, kernel,
// available, used_for}]. A problem is null, or says what is wrong and what to do. Reading is measured over
// 256 MiB or, where a model's folder is named, as many bytes as its files and a BF16 cache of `context`
// tokens hold, 1 GiB at most: what its decoding can reach, since part of a small model stays in the caches.
// Measuring takes about two seconds, and half a second for each GPU. Errors: those of reading a checkpoint.
std::string doctor_json(int threads = 0, const std::filesystem::path& model = {}, int64_t context = 0);

}  // namespace lowbit
