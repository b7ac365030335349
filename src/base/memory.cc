#include "base/memory.h"

#include <cstdlib>
#include <sys/mman.h>

namespace lowbit {
namespace {

constexpr size_t kLine = 64;
[[maybe_unused]] constexpr size_t kLarge = size_t{8} << 20;

}  // namespace

#if defined(LOWBIT_CHECKS)

// Exactly as many bytes as asked for, and none from Linux directly: a sanitizer sees each step outside.
void* allocate_memory(size_t bytes) {
  void* memory = nullptr;
  return ::posix_memalign(&memory, kLine, bytes > 0 ? bytes : 1) == 0 ? memory : nullptr;
}

void free_memory(void* memory, size_t) { std::free(memory); }

#else

void* allocate_memory(size_t bytes) {
  if (bytes < kLarge) return std::aligned_alloc(kLine, (bytes + kLine) / kLine * kLine);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  madvise(memory, bytes, MADV_HUGEPAGE);
  return memory;
}

void free_memory(void* memory, size_t bytes) {
  if (bytes < kLarge) {
    std::free(memory);
  } else {
    munmap(memory, bytes);
  }
}

#endif

}  // namespace lowbit
