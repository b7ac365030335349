// Memory for tensors and scratch.
#pragma once

#include <cstddef>

namespace lowbit {

// At least `bytes`, aligned to 64 bytes, not initialised; null when it is not to be had. Large pieces come
// from Linux directly, in pages of 2 MiB where it has them (strided passes over hundreds of megabytes
// otherwise wait for page tables), and go back to it at once.
void* allocate_memory(size_t bytes);
void free_memory(void* memory, size_t bytes);  // bytes: as asked for

}  // namespace lowbit
