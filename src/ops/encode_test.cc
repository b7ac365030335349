#include "ops/encode.h"

#include "format/nested_scales.h"
#include "ops/ops_test_support.h"
#include "support.h"
#include "tensor/half.h"

#include <limits>

namespace lowbit {
namespace {

using testing::Bench;
using testing::Numbers;
using testing::same_bits;

constexpr DType kTypes[] = {DType::kBF16, DType::kF16, DType::kF32, DType::kF64};

// [rows, columns] with all that rounding may meet: ties, zeros, groups of zeros, tiny and large values.
Tensor values(int64_t rows, int64_t columns, Codebook codebook, uint32_t seed) {
  Numbers numbers(seed);
  Tensor tensor = Tensor::allocate(DType::kF32, {rows, columns});
  float* to = tensor.mutable_data<float>();
  for (int64_t i = 0; i < tensor.element_count(); ++i) {
    to[i] = numbers.normal(i % 3 == 0 ? 1e-3f : 1.0f);
    if (i % 11 == 0) to[i] = i % 22 ? 0.0f : -0.0f;
    if (i % 7 == 0 && !codebook.empty()) {
      const auto code = static_cast<size_t>(numbers.between(0, 14));
      to[i] = (codebook[code] + codebook[code + 1]) / 2;
    }
    if (i % 64 == 5) to[i] = 1;  // a scale with which ties stay ties
    if (i / 128 % 5 == 2) to[i] = 0;
    if (i / 128 % 5 == 3) to[i] *= 1e-39f;
    if (i / 128 % 5 == 4) to[i] *= 1e4f;
  }
  return tensor;
}

bool same_bytes(const Tensor& a, const Tensor& b) {
  return a.byte_count() == b.byte_count() && std::memcmp(a.bytes(), b.bytes(), a.byte_count()) == 0;
}

TEST(Encode, EveryKernelGivesTheBytesOfTheReferenceInGroups) {
  for (const std::string& kernel : testing::available(encode_kernels(), "encode_codebook")) {
    for (const Format format : {Format::kNf4, Format::kFp4}) {
      for (const DType type : kTypes) {
        if (type == DType::kF64 && kernel != "ref") continue;
        for (const auto& [rows, columns] :
             {std::pair<int64_t, int64_t>{1, 1}, {1, 31}, {37, 100}, {16, 512}}) {
          for (const int64_t group_size : {2, 32, 64, 100, 4096}) {
            SCOPED_TRACE(fmt::format("{} {} {} [{}, {}] group {}", kernel, format_name(format),
                                     dtype_name(type), rows, columns, group_size));
            const Tensor weight = converted(values(rows, columns, codebook_of(format), 3), type);
            Bench reference("ref"), bench(kernel, 2);
            const FlatEncoded expected = encode_flat(reference.context(), weight, format, group_size),
                              got = encode_flat(bench.context(), weight, format, group_size);
            EXPECT_TRUE(same_bits(got.scales, expected.scales));
            EXPECT_TRUE(same_bytes(got.bytes, expected.bytes));
          }
        }
      }
    }
  }
}

TEST(Encode, EveryKernelGivesTheBytesOfTheReferenceInRows) {
  for (const std::string& kernel : testing::available(encode_kernels(), "encode_int8")) {
    for (const DType type : kTypes) {
      if (type == DType::kF64 && kernel != "ref") continue;
      for (const int64_t columns : {1, 31, 64, 1003}) {
        for (const DType scales : {DType::kF32, DType::kF16, DType::kBF16}) {
          SCOPED_TRACE(fmt::format("{} {} {} columns, scales {}", kernel, dtype_name(type), columns,
                                   dtype_name(scales)));
          const Tensor weight = converted(values(23, columns, {}, 4), type);
          Bench reference("ref"), bench(kernel, 2);
          const Int8Rows expected = encode_int8_rows(reference.context(), weight, scales),
                         got = encode_int8_rows(bench.context(), weight, scales);
          EXPECT_TRUE(same_bits(got.scales, expected.scales));
          EXPECT_TRUE(same_bytes(got.codes, expected.codes));
        }
      }
    }
  }
}

// Against the format's own words for one group.
TEST(Encode, GroupsAreThoseOfTheFlattenedMatrix) {
  const Tensor weight = values(5, 50, codebook_of(Format::kNf4), 5);
  Bench bench;
  const FlatEncoded got = encode_flat(bench.context(), weight, Format::kNf4, 64);
  ASSERT_EQ(got.scales.size(), 4u);
  for (int64_t group = 0; group < 4; ++group) {
    const int64_t first = 64 * group, count = std::min<int64_t>(64, 250 - first);
    std::vector<uint8_t> codes(64);
    const float scale = encode_group(
        levels_of(Format::kNf4), {weight.data<float>() + first, static_cast<size_t>(count)}, codes.data(), 1);
    EXPECT_EQ(got.scales[static_cast<size_t>(group)], scale);
    for (int64_t i = 0; i < count; ++i) {
      EXPECT_EQ(code_at({.bytes = got.bytes.data<uint8_t>()}, first + i), codes[static_cast<size_t>(i)]);
    }
  }
}

// As layers hold them they are made in parts; rows that are no whole groups, at once.
TEST(Encode, LayersGetTheCodesOfFiles) {
  for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{1, 64}, {131, 192}, {37, 96}, {5, 1003}}) {
    const Tensor weight = converted(values(rows, columns, codebook_of(Format::kNf4), 7), DType::kBF16);
    Bench bench("", 2);
    for (const bool is_nested : {false, true}) {
      SCOPED_TRACE(fmt::format("[{}, {}] {}", rows, columns, is_nested));
      FlatEncoded flat = encode_flat(bench.context(), weight, Format::kNf4, 64);
      if (is_nested) flat.scales = unnested(nested(flat.scales, mean_of(flat.scales)));
      const FlatCodes codes{Format::kNf4, 64, rows, columns, flat.bytes.data<uint8_t>()};
      const Weight got = encoded(bench.context(), weight, {.use_double_quant = is_nested});
      const std::optional<QuantizedTensor> expected = from_flat_codes(codes, flat.scales);
      ASSERT_EQ(expected.has_value(), std::holds_alternative<QuantizedTensor>(got));
      if (!expected) continue;
      EXPECT_EQ(std::get<QuantizedTensor>(got).group_size, expected->group_size);
      EXPECT_TRUE(same_bytes(std::get<QuantizedTensor>(got).codes, expected->codes));
      EXPECT_TRUE(same_bytes(std::get<QuantizedTensor>(got).scales, expected->scales));
    }
    const Int8Rows in_rows = encode_int8_rows(bench.context(), weight);
    const auto got = std::get<QuantizedTensor>(encoded(bench.context(), weight, {.format = Format::kInt8}));
    const QuantizedTensor expected = from_int8_rows(in_rows.codes.data<int8_t>(), in_rows.scales, columns);
    EXPECT_TRUE(same_bytes(got.codes, expected.codes));
    EXPECT_TRUE(same_bytes(got.scales, expected.scales));
  }
}

// Groups of four are no whole words: layers have no form for them.
TEST(Encode, GroupsThatAreNoWholeWordsStayDense) {
  const Tensor weight = converted(values(5, 16, codebook_of(Format::kNf4), 8), DType::kBF16);
  Bench bench;
  EXPECT_TRUE(std::holds_alternative<Tensor>(encoded(bench.context(), weight, {.group_size = 4})));
}

TEST(Encode, RefusesWhatIsNotFinite) {
  for (const auto& [op, format] :
       {std::pair{"encode_codebook", Format::kNf4}, {"encode_int8", Format::kInt8}}) {
    for (const std::string& kernel : testing::available(encode_kernels(), op)) {
      for (const float poison :
           {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity(), 1e6f}) {
        if (poison == 1e6f && format != Format::kInt8) continue;  // F16 cannot hold it
        for (const int64_t at : {0, 70, 299}) {
          Tensor weight = values(3, 100, {}, 6);
          weight.mutable_data<float>()[at] = poison;
          Bench bench(kernel);
          const std::string message = testing::error_of(
              ErrorCode::kInvalidArgument, [&] { encoded(bench.context(), weight, {.format = format}); });
          EXPECT_NE(message.find("[3, 100]"), std::string::npos) << message;
        }
      }
    }
  }
}

}  // namespace
}  // namespace lowbit
