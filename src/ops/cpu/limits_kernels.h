// Loops that do nothing but read memory or multiply, for ops/machine_limits.h. Each file has its own flags.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lowbit {

// Reads `bytes` (a multiple of 64 * streams) as `streams` (1, 2, 4, 8 or 16) equal parts side by side. The
// result depends on every byte, so that no load can be dropped.
uint64_t read_streams_ref(const void* data, size_t bytes, int streams) noexcept;
uint64_t read_streams_avx2(const void* data, size_t bytes, int streams) noexcept;
uint64_t read_streams_avx512(const void* data, size_t bytes, int streams) noexcept;

// Runs `rounds` rounds; returns operations per round. *sink keeps the result alive.
double multiply_add_ref(int64_t rounds, float* sink) noexcept;
double multiply_add_avx2(int64_t rounds, float* sink) noexcept;
double multiply_add_avx512(int64_t rounds, float* sink) noexcept;
double multiply_tiles_bf16_amx(int64_t rounds, float* sink) noexcept;
double multiply_tiles_int8_amx(int64_t rounds, float* sink) noexcept;

}  // namespace lowbit
