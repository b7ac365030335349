#include "tensor/tensor.h"

#include "support.h"
#include "tensor/half.h"

#include <cmath>
#include <cstring>
#include <gtest/gtest.h>

namespace lowbit {
namespace {

TEST(Half, EveryF16RoundTripsAndMatchesTheCompilersConversion) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = f16_to_float(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(f16_to_float(float_to_f16(value))));
      continue;
    }
    ASSERT_EQ(float_to_f16(value), bits);
  }
}

TEST(Half, F16RoundsToNearestEven) {
  // Halfway between each two neighbours the even one wins; a hair to either side decides otherwise.
  for (uint32_t bits = 0; bits < 0x7bffu; ++bits) {
    const float low = f16_to_float(static_cast<uint16_t>(bits)),
                high = f16_to_float(static_cast<uint16_t>(bits + 1));
    const float middle = low + (high - low) / 2;
    ASSERT_EQ(float_to_f16(middle), bits + (bits & 1u));
    ASSERT_EQ(float_to_f16(std::nextafter(middle, 0.0f)), bits);
    ASSERT_EQ(float_to_f16(std::nextafter(middle, INFINITY)), bits + 1);
  }
  EXPECT_EQ(float_to_f16(65519.9f), 0x7bffu);
  EXPECT_EQ(float_to_f16(65520.0f), 0x7c00u);
  EXPECT_EQ(float_to_f16(-1e30f), 0xfc00u);
}

TEST(Half, Bf16RoundsToNearestEven) {
  EXPECT_EQ(bf16_to_float(float_to_bf16(1.0f + 0x1p-8f)), 1.0f);
  EXPECT_EQ(bf16_to_float(float_to_bf16(1.0f + 0x1.8p-7f)), 1.0f + 0x1p-6f);
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(NAN))));
  EXPECT_EQ(float_to_bf16(3.4e38f), 0x7f80u);
}

TEST(Tensor, RowsShareStorage) {
  Tensor tensor = Tensor::zeros(DType::kF32, {3, 2});
  tensor.mutable_data<float>()[4] = 7;
  const Tensor last = tensor.rows(2, 1);
  EXPECT_EQ(last.data<float>()[0], 7);
  EXPECT_EQ(last.shape(), (Shape{1, 2}));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.bytes()) % 64, 0u);
}

TEST(Tensor, ImpossibleShapesAreErrors) {
  testing::error_of(ErrorCode::kInvalidArgument, [] { Tensor::allocate(DType::kF32, {-1}); });
  testing::error_of(ErrorCode::kInvalidArgument, [] {
    Tensor::allocate(DType::kF32, {int64_t{1} << 40, int64_t{1} << 40});
  });
  testing::error_of(ErrorCode::kOutOfMemory, [] { Tensor::allocate(DType::kF64, {int64_t{1} << 61}); });
}

TEST(Tensor, ConversionKeepsWhatBothTypesHold) {
  const float values[] = {0, -1.5f, 0.25f, 96, -0x1p-10f};
  Tensor source = Tensor::zeros(DType::kF32, {5});
  std::memcpy(source.mutable_bytes(), values, sizeof values);
  const DType floating[] = {DType::kF64, DType::kF32, DType::kF16, DType::kBF16};
  for (DType from : floating) {
    for (DType to : floating) {
      const Tensor result = converted(converted(source, from), to);
      ASSERT_EQ(result.dtype(), to);
      EXPECT_EQ(result.shape(), source.shape());
      for (int i = 0; i < 5; ++i) EXPECT_EQ(float_at(result, i), values[i]) << dtype_name(from);
    }
  }
  EXPECT_EQ(converted(source, DType::kF32).bytes(), source.bytes());
  const Tensor integers = Tensor::zeros(DType::kI32, {2});
  testing::error_of(ErrorCode::kInternal, [&] { converted(integers, DType::kF32); });
  testing::error_of(ErrorCode::kInternal, [&] { converted(source, DType::kI8); });
}

TEST(Tensor, AnEmptyOneOfAFileHasAnAddressAndNoBytes) {
  const Tensor tensor = Tensor::borrow(nullptr, nullptr, DType::kF16, {0, 7});
  EXPECT_FALSE(tensor.empty());
  EXPECT_EQ(tensor.byte_count(), 0u);
  EXPECT_FALSE(tensor.is_writable());
  EXPECT_EQ(tensor.reshaped({7, 0}).shape(), (Shape{7, 0}));
  EXPECT_EQ(tensor.rows(0, 0).byte_count(), 0u);
}

TEST(Tensor, APartIsElementsOfAnotherKindWithinTheSameBytes) {
  Tensor bytes = Tensor::zeros(DType::kU8, {64});
  Tensor part = bytes.part(16, DType::kF32, {2, 3});
  part.mutable_data<float>()[5] = 1.5f;
  EXPECT_EQ(static_cast<const char*>(part.bytes()), static_cast<const char*>(bytes.bytes()) + 16);
  EXPECT_EQ(part.byte_count(), 24u);
  EXPECT_EQ(float_at(bytes.part(36, DType::kF32, {1}), 0), 1.5f);
  bytes = {};
  EXPECT_EQ(float_at(part, 5), 1.5f);  // the storage stays
}

TEST(Tensor, TransposingSwapsRowsAndColumnsOfAnyElement) {
  for (DType dtype : {DType::kU8, DType::kBF16, DType::kF32, DType::kF64}) {
    const int64_t rows = 37, columns = 66, size = static_cast<int64_t>(dtype_size(dtype));
    Tensor matrix = Tensor::allocate(dtype, {rows, columns});
    char* bytes = static_cast<char*>(matrix.mutable_bytes());
    for (int64_t i = 0; i < rows * columns * size; ++i) bytes[i] = static_cast<char>(i * 31 + i / 256);
    const Tensor turned = transposed(matrix);
    ASSERT_EQ(turned.shape(), (Shape{columns, rows}));
    const char* there = static_cast<const char*>(turned.bytes());
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < columns; ++column) {
        ASSERT_EQ(std::memcmp(there + (column * rows + row) * size, bytes + (row * columns + column) * size,
                              static_cast<size_t>(size)),
                  0);
      }
    }
  }
}

TEST(DType, NamesRoundTrip) {
  for (int i = 0; i <= static_cast<int>(DType::kF8E4M3); ++i) {
    const DType dtype = static_cast<DType>(i);
    EXPECT_EQ(parse_dtype(dtype_name(dtype)), dtype);
  }
  EXPECT_FALSE(parse_dtype("F8"));
}

TEST(DType, RangesAreThoseOfTheFormats) {
  EXPECT_EQ(number_range(DType::kF32).largest, static_cast<double>(std::numeric_limits<float>::max()));
  EXPECT_EQ(number_range(DType::kF32).smallest_normal,
            static_cast<double>(std::numeric_limits<float>::min()));
  EXPECT_EQ(number_range(DType::kF64).largest, std::numeric_limits<double>::max());
  EXPECT_EQ(number_range(DType::kF64).step_at_one, std::numeric_limits<double>::epsilon());
  EXPECT_EQ(number_range(DType::kF16).largest, 65504);
  EXPECT_EQ(number_range(DType::kF16).smallest_normal, 0x1p-14);
  EXPECT_EQ(number_range(DType::kBF16).largest, 0x1.FEp127);  // 3.39e38
  EXPECT_EQ(number_range(DType::kBF16).lowest, -0x1.FEp127);
  EXPECT_EQ(number_range(DType::kBF16).step_at_one, 0x1p-7);
  EXPECT_EQ(number_range(DType::kF8E4M3).largest, 448);
  EXPECT_EQ(number_range(DType::kI8).lowest, -128);
  EXPECT_EQ(number_range(DType::kU8).largest, 255);
  EXPECT_EQ(number_range(DType::kU32).largest, 4294967295.0);
}

}  // namespace
}  // namespace lowbit
