// What this processor and machine offer. Detection goes through CPUID and the operating system's state flags,
// so an instruction set counts only when it may really be used.
#pragma once

#include <cstdint>
#include <string>

namespace lowbit {

struct CpuFeatures {
  bool avx2 = false;    // with FMA and F16C
  bool avx512 = false;  // F, BW, VL, DQ
  bool avx512_vnni = false;
  bool avx512_bf16 = false;
  bool amx_int8 = false;  // tiles permitted by the kernel for this process
  bool amx_bf16 = false;
  std::string name;  // "AMD EPYC 7763 64-Core Processor"
};

// Detected once; also asks Linux for permission to use AMX tiles.
const CpuFeatures& cpu_features();

struct MachineMemory {
  uint64_t total_bytes = 0;
  uint64_t available_bytes = 0;
};
MachineMemory machine_memory();

struct ProcessMemory {
  uint64_t peak_rss_bytes = 0;   // VmHWM: includes mapped files
  uint64_t rss_bytes = 0;        // VmRSS
  uint64_t anonymous_bytes = 0;  // RssAnon, now
};
ProcessMemory process_memory();

}  // namespace lowbit
