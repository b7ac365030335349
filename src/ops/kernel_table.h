// The seam between an op and its kernels. An op has an ordered table of kernels, best first, the scalar
// reference last; choose_kernel takes the first that this machine and these arguments allow, or the one that
// the caller forced.
#pragma once

#include "base/cpu.h"
#include "base/fail.h"
#include "ops/context.h"

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

enum class Isa { kRef, kAvx2, kAvx512, kAvx512Vnni, kAmxBf16, kAmxInt8 };

bool isa_available(Isa isa);
const char* isa_requirement(Isa isa);  // "AVX2, FMA, F16C"

// A kernel computes a part [begin, end) of an op's work; what is split is said at the op's argument struct.
// It throws nothing and allocates nothing. `scratch` has the bytes that the op's header promises, private to
// the worker.
template <class Args>
struct Kernel {
  std::string_view name;
  Isa isa;
  bool (*fits)(const Args&);  // null: every argument
  void (*run)(const Args&, int64_t begin, int64_t end, void* scratch) noexcept;
};

// What the caller wants for this op: a name, or empty.
std::string_view forced_kernel(const OpContext& context, std::string_view op);
[[noreturn]] void fail_forced_kernel(std::string_view op, std::string_view name, std::string_view reason);

template <class Args>
const Kernel<Args>& choose_kernel(const OpContext& context, std::string_view op,
                                  std::span<const Kernel<Args>> table, const Args& args) {
  if (std::string_view forced = forced_kernel(context, op); !forced.empty()) {
    for (const Kernel<Args>& kernel : table) {
      if (kernel.name != forced) continue;
      if (!isa_available(kernel.isa)) {
        fail_forced_kernel(op, forced, std::string("this processor lacks ") + isa_requirement(kernel.isa));
      }
      if (!kernel.fits || kernel.fits(args)) return kernel;
    }
    // A name forced for all ops holds where an op has it; forced for one op it must exist.
    if (context.kernels->all != forced)
      fail_forced_kernel(op, forced, "the op has no such kernel for these arguments");
  }
  for (const Kernel<Args>& kernel : table) {
    if (isa_available(kernel.isa) && (!kernel.fits || kernel.fits(args))) return kernel;
  }
  fail(ErrorCode::kInternal, "{}: no kernel fits", op);
}

// A row of `lowbit doctor`: which kernels exist, which would run here, and why not.
struct KernelListing {
  std::string op, kernel;
  bool available = false;
  std::string requirement;
};
std::vector<KernelListing> list_kernels();  // in ops/kernel_list.cc: every table once

}  // namespace lowbit
