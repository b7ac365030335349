#include "ops/cpu/limits_kernels.h"

#include <immintrin.h>
#include <string.h>

namespace lowbit {
namespace {
#include "ops/cpu/vector_avx512.inc"
}  // namespace

namespace {
#include "ops/cpu/limits.inc"
}  // namespace

uint64_t read_streams_avx512(const void* data, size_t bytes, int streams) noexcept {
  return read_all(data, bytes, streams);
}

double multiply_add_avx512(int64_t rounds, float* sink) noexcept { return multiply_add(rounds, sink); }

}  // namespace lowbit
