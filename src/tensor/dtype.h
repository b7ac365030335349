// Element types, under the names that safetensors uses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace lowbit {

enum class DType : uint8_t {
  kF64,
  kF32,
  kF16,
  kBF16,
  kI64,
  kI32,
  kI16,
  kI8,
  kU64,
  kU32,
  kU16,
  kU8,
  kBool,
  kF8E4M3  // as a file holds it; operators know it as the codes of Format::kFp8
};

size_t dtype_size(DType dtype);            // bytes of one element
std::string_view dtype_name(DType dtype);  // "BF16"
std::optional<DType> parse_dtype(std::string_view name);
bool is_floating(DType dtype);  // those that operators compute with: not kF8E4M3

// The numbers that a type can hold.
struct NumberRange {
  double lowest = 0, largest = 0;
  double smallest_normal = 0;  // above 0; below it floating types lose bits
  double step_at_one = 0;      // from 1 to the next larger number
};
NumberRange number_range(DType dtype);

}  // namespace lowbit
