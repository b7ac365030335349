// The machine as lowbit sees it: processor, memory, measured limits, and the kernels that would run, and why.
#pragma once

#include "lowbit/version.h"

#include <string>

namespace lowbit {

// A JSON object: version, processor, instruction_sets [{name, available}], processors, threads, memory bytes,
// limits {read_gbps_1, read_gbps_all, fp32_gflops_all, bf16_gflops_all, int8_gops_all}, kernels [{op, kernel,
// available, chosen, requirement}]. Measuring takes about two seconds.
std::string doctor_json(int threads = 0);

}  // namespace lowbit
