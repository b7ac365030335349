#include "tensor/dtype.h"

#include <cmath>

namespace lowbit {
namespace {

struct Row {
  DType dtype;
  std::string_view name;
  uint8_t size;
};

constexpr Row kRows[] = {
    {DType::kF64, "F64", 8},   {DType::kF32, "F32", 4},        {DType::kF16, "F16", 2},
    {DType::kBF16, "BF16", 2}, {DType::kI64, "I64", 8},        {DType::kI32, "I32", 4},
    {DType::kI16, "I16", 2},   {DType::kI8, "I8", 1},          {DType::kU64, "U64", 8},
    {DType::kU32, "U32", 4},   {DType::kU16, "U16", 2},        {DType::kU8, "U8", 1},
    {DType::kBool, "BOOL", 1}, {DType::kF8E4M3, "F8_E4M3", 1},
};

}  // namespace

size_t dtype_size(DType dtype) { return kRows[static_cast<size_t>(dtype)].size; }

std::string_view dtype_name(DType dtype) { return kRows[static_cast<size_t>(dtype)].name; }

std::optional<DType> parse_dtype(std::string_view name) {
  for (const Row& row : kRows) {
    if (row.name == name) return row.dtype;
  }
  return std::nullopt;
}

bool is_floating(DType dtype) { return dtype <= DType::kBF16; }

NumberRange number_range(DType dtype) {
  // Bits of the significand behind the point, and the exponents of the largest and the smallest normal
  // number.
  const auto floating = [](int bits, int most, int least) {
    const double step = std::ldexp(1, -bits), largest = std::ldexp(2 - step, most);
    return NumberRange{-largest, largest, std::ldexp(1, least), step};
  };
  const auto bits = static_cast<int>(dtype_size(dtype) * 8);
  switch (dtype) {
    case DType::kF64:
      return floating(52, 1023, -1022);
    case DType::kF32:
      return floating(23, 127, -126);
    case DType::kF16:
      return floating(10, 15, -14);
    case DType::kBF16:
      return floating(7, 127, -126);
    case DType::kI64:
    case DType::kI32:
    case DType::kI16:
    case DType::kI8:
      return {-std::ldexp(1, bits - 1), std::ldexp(1, bits - 1) - 1, 1, 1};
    case DType::kU64:
    case DType::kU32:
    case DType::kU16:
    case DType::kU8:
      return {0, std::ldexp(1, bits) - 1, 1, 1};
    case DType::kF8E4M3:  // one pattern of the largest exponent is NaN
      return {-448, 448, std::ldexp(1, -6), 0.125};
    case DType::kBool:
      break;
  }
  return {0, 1, 1, 1};
}

}  // namespace lowbit
