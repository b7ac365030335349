// What the kernels that round dense matrices get. Plain data only: files of special instruction sets include
// this.
#pragma once

#include "format/levels.h"

#include <cstdint>

namespace lowbit {

class Tensor;

enum class Elements : uint8_t { kBF16, kF16, kF32, kF64 };

// A matrix, one row behind the other; `tensor` is the same.
struct DenseValues {
  const Tensor* tensor = nullptr;
  const void* data = nullptr;
  Elements type = Elements::kF32;
  int64_t count = 0;
};

// Groups of the flattened matrix as encode_group of format/codebook.h has them, two codes to a byte
// (FlatCodes). Units: groups.
struct EncodeGroupsArgs {
  DenseValues values;
  int64_t group_size = 0;          // even; the last group may be short
  const Levels* levels = nullptr;  // 16 at most
  uint8_t* bytes = nullptr;
  float* scales = nullptr;  // of each group; NaN where a value is not finite
};
void encode_groups_ref(const EncodeGroupsArgs&, int64_t begin, int64_t end, void* scratch) noexcept;
void encode_groups_avx2(const EncodeGroupsArgs&, int64_t begin, int64_t end, void* scratch) noexcept;
void encode_groups_avx512(const EncodeGroupsArgs&, int64_t begin, int64_t end, void* scratch) noexcept;

// Rows of int8 (format/int8.h) of values rounded to F16. Units: rows.
struct EncodeRowsArgs {
  DenseValues values;
  int64_t columns = 0;
  // A row's scale and the factor of its codes from its largest magnitude.
  void (*set_grid)(float largest, float* scale, float* factor) = nullptr;
  int8_t* codes = nullptr;
  float* scales = nullptr;  // NaN where a value is not finite: such a row has no codes
};
void encode_rows_ref(const EncodeRowsArgs&, int64_t begin, int64_t end, void* scratch) noexcept;
void encode_rows_avx2(const EncodeRowsArgs&, int64_t begin, int64_t end, void* scratch) noexcept;
void encode_rows_avx512(const EncodeRowsArgs&, int64_t begin, int64_t end, void* scratch) noexcept;

// Of a group or a row of so many values.
constexpr int64_t encode_scratch_bytes(int64_t count) { return (count + 1) * 5 + 64; }

}  // namespace lowbit
