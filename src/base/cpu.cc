#include "base/cpu.h"

#include <algorithm>
#include <cpuid.h>
#include <cstring>
#include <fstream>
#include <sys/syscall.h>
#include <unistd.h>

namespace lowbit {
namespace {

struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf = 0) {
  Registers r;
  if (__get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d) == 0) return {};
  return r;
}

bool bit(unsigned value, int index) { return (value >> index) & 1u; }

uint64_t saved_states() {
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

// Linux hands out the 8 KiB of tile state only on request (Documentation/arch/x86/xstate.rst).
bool request_tiles() {
  constexpr int kArchReqXcompPerm = 0x1023, kXfeatureXtiledata = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtiledata) == 0;
}

CpuFeatures detect() {
  CpuFeatures features;
  char brand[49] = {};
  for (unsigned i = 0; i < 3; ++i) {
    const Registers r = cpuid(0x80000002u + i);
    std::memcpy(brand + 16 * i, &r, 16);
  }
  features.name = brand;
  while (!features.name.empty() && features.name.back() == ' ') features.name.pop_back();

  const Registers one = cpuid(1), seven = cpuid(7), seven_one = cpuid(7, 1);
  if (!bit(one.c, 27)) return features;  // OSXSAVE
  const uint64_t states = saved_states();
  const bool ymm = (states & 0x6) == 0x6, zmm = (states & 0xe6) == 0xe6,
             tiles = (states & 0x60000) == 0x60000;
  features.avx2 = ymm && bit(one.c, 28) && bit(one.c, 12) && bit(one.c, 29) && bit(seven.b, 5);
  features.avx512 =
      features.avx2 && zmm && bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) && bit(seven.b, 31);
  features.avx512_vnni = features.avx512 && bit(seven.c, 11);
  features.avx512_bf16 = features.avx512 && bit(seven_one.a, 5);
  if (features.avx512 && tiles && bit(seven.d, 24) && request_tiles()) {
    features.amx_bf16 = bit(seven.d, 22);
    features.amx_int8 = bit(seven.d, 25);
  }
  return features;
}

uint64_t read_number(const char* file, std::string_view key) {
  std::ifstream in(file);
  std::string word;
  while (in >> word) {
    if (word == key) {
      uint64_t number = 0;
      in >> number;
      return number;
    }
  }
  return 0;
}

uint64_t read_kib(const char* file, std::string_view key) { return read_number(file, key) * 1024; }

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

MachineMemory machine_memory() {
  MachineMemory memory{read_kib("/proc/meminfo", "MemTotal:"), read_kib("/proc/meminfo", "MemAvailable:")};
  // A container may have less; "max", or no such file, says that it has not.
  uint64_t most = 0, used = 0;
  if (std::ifstream("/sys/fs/cgroup/memory.max") >> most &&
      std::ifstream("/sys/fs/cgroup/memory.current") >> used) {
    // What is cached of files is given up when memory is wanted.
    used -= std::min(used, read_number("/sys/fs/cgroup/memory.stat", "inactive_file"));
    memory.total_bytes = std::min(memory.total_bytes, most);
    memory.available_bytes = std::min(memory.available_bytes, most > used ? most - used : 0);
  }
  return memory;
}

ProcessMemory process_memory() {
  const char* const kStatus = "/proc/self/status";
  return {read_kib(kStatus, "VmHWM:"), read_kib(kStatus, "VmRSS:"), read_kib(kStatus, "RssAnon:")};
}

}  // namespace lowbit
