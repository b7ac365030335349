// Packed integers and fp8 of compressed-tensors.
#include "checkpoint/compressed.h"
#include "checkpoint/compressed_fixture.h"
#include "format/bits.h"
#include "format/codebook.h"
#include "lowbit/inspect.h"

#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <random>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kOut = 5, kIn = 40;

using testing::expect_parts;

CompressedSettings affine(int bits, int group_size, bool sym) {
  return {.format = Format::kAffine, .affine = {.bits = bits, .group_size = group_size, .sym = sym}};
}

// Random codes of every kind.
QuantizedTensor some_weight(const CompressedSettings& settings) {
  std::mt19937 random(7);
  const bool is_fp8 = settings.format == Format::kFp8;
  const int bits = is_fp8 ? 8 : settings.affine.bits;
  const int64_t size = is_fp8 || settings.affine.group_size < 0 ? kIn : settings.affine.group_size;
  QuantizedTensor weight{
      .format = settings.format, .bits = bits, .group_size = size, .out_features = kOut, .in_features = kIn};
  weight.codes = Tensor::zeros(DType::kI32, {packed_words(kIn, bits), kOut});
  for (int64_t row = 0; row < kOut; ++row) {
    std::vector<uint8_t> codes(kIn);
    for (uint8_t& code : codes) code = static_cast<uint8_t>(random() % (1u << bits));
    for (uint8_t& code : codes) code = is_fp8 && (code & 0x7f) == 0x7f ? 0 : code;
    pack_bits(codes.data(), 1, kIn, bits, weight.codes.mutable_data<uint32_t>() + row, kOut);
  }
  Tensor scales = Tensor::allocate(DType::kF32, {weight.groups(), kOut});
  for (int64_t i = 0; i < scales.element_count(); ++i)
    scales.mutable_data<float>()[i] = 0.001f * static_cast<float>(random() % 1000);
  weight.scales = is_fp8 ? scales : converted(scales, DType::kF16);
  if (!settings.affine.sym) {
    weight.zero_points = Tensor::allocate(DType::kU8, {weight.groups(), kOut});
    for (int64_t i = 0; i < weight.zero_points.element_count(); ++i)
      weight.zero_points.mutable_data<uint8_t>()[i] = static_cast<uint8_t>(random() % (1u << bits));
  }
  return weight;
}

bool are_equal(const Tensor& a, const Tensor& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         std::memcmp(a.bytes(), b.bytes(), a.byte_count()) == 0;
}

// A folder with that matrix, written by the functions under test.
struct Folder : testing::CompressedFolder {
  CompressedSettings settings;
  QuantizedTensor weight;

  explicit Folder(const CompressedSettings& given) : settings(given), weight(some_weight(given)) {
    for (const NamedTensor& named : compressed_tensors("m", weight, settings.affine.sym))
      tensors.emplace(named.name, named.make ? named.make() : named.tensor);
    tensors.emplace("head.weight", Tensor::zeros(DType::kBF16, {2, 2}));
    config = Json::Object{{"model_type", "llama"},
                          {"quantization_config", compressed_config_json(settings, Json::Array{"head"})}};
  }

  QuantizedTensor read_weight() { return std::get<QuantizedTensor>(read().weights.at("m.weight")); }
  Folder& with(const std::string& name, Tensor tensor) {
    tensors["m." + name] = std::move(tensor);
    return *this;
  }
  Folder& replace(const std::string& from, const std::string& to) {
    replace_in_config(from, to);
    return *this;
  }
};

const CompressedSettings kKinds[] = {affine(4, 8, true),   affine(4, 8, false),     affine(4, -1, true),
                                     affine(8, 16, true),  affine(8, -1, false),    affine(2, 16, false),
                                     affine(4, 16, false), {.format = Format::kFp8}};

TEST(CompressedPacked, WhatIsWrittenIsRead) {
  for (const CompressedSettings& settings : kKinds) {
    SCOPED_TRACE(fmt::format("{} bits, groups of {}", settings.affine.bits, settings.affine.group_size));
    Folder folder(settings);
    const Checkpoint checkpoint = folder.read();
    EXPECT_EQ(checkpoint.weights.size(), 2u);
    EXPECT_TRUE(checkpoint.notes.empty());
    EXPECT_EQ(checkpoint.quantization->dialect, "compressed-tensors");
    const auto& weight = std::get<QuantizedTensor>(checkpoint.weights.at("m.weight"));
    EXPECT_EQ(weight.format, settings.format);
    EXPECT_EQ(weight.group_size, folder.weight.group_size);
    EXPECT_TRUE(are_equal(weight.codes, folder.weight.codes));
    EXPECT_TRUE(are_equal(weight.scales, folder.weight.scales));
    EXPECT_EQ(weight.zero_points.empty(), settings.affine.sym);
    EXPECT_TRUE(settings.affine.sym || are_equal(weight.zero_points, folder.weight.zero_points));
  }
}

// Drawn in docs/formats/compressed_tensors.md.
TEST(CompressedPacked, BytesLieWhereTheDocumentDrawsThem) {
  Folder folder(affine(4, 8, false));
  const Tensor dense = dequantized(folder.weight);
  const auto* words = folder.tensors.at("m.weight_packed").data<uint32_t>();
  const auto* zeros = folder.tensors.at("m.weight_zero_point").data<uint32_t>();  // [1, 5]
  ASSERT_EQ(folder.tensors.at("m.weight_packed").shape(), (Shape{kOut, kIn / 8}));
  ASSERT_EQ(folder.tensors.at("m.weight_zero_point").shape(), (Shape{1, kIn / 8}));
  const Tensor scales = converted(folder.tensors.at("m.weight_scale"), DType::kF32);
  for (int64_t row = 0; row < kOut; ++row) {
    for (int64_t column = 0; column < kIn; ++column) {
      const int64_t group = column / 8;
      const int code = static_cast<int>(words[row * kIn / 8 + column / 8] >> (column % 8 * 4) & 15),
                zero = static_cast<int>(zeros[group] >> (row * 4) & 15);
      EXPECT_EQ(dense.data<float>()[row * kIn + column],
                scales.data<float>()[row * kIn / 8 + group] * static_cast<float>(code - zero));
    }
  }
}

// tests/golden/make_compressed_golden.py: the package compressed-tensors 0.20.1 made the files, and the
// weights as it decompresses them, in the type of the scales.
TEST(CompressedPacked, FilesOfThePackageDecodeAsItDoes) {
  for (const char* name : {"w4a16-group", "w4a16-channel-asym", "w4a16-group-asym", "w8a16-group",
                           "fp8-channel", "fp8-tensor-dynamic"}) {
    SCOPED_TRACE(name);
    const fs::path folder = fs::path(LOWBIT_SOURCE_DIR) / "tests" / "golden" / "compressed" / name;
    const Checkpoint checkpoint = read_checkpoint(folder);
    ASSERT_EQ(checkpoint.weights.size(), 1u);
    const Tensor theirs = open_safetensors(folder / "golden.safetensors").tensors.at(0).tensor;
    const Tensor ours =
        converted(dequantized(std::get<QuantizedTensor>(checkpoint.weights.at("m.weight"))), theirs.dtype());
    EXPECT_TRUE(are_equal(ours, theirs));
    // And back.
    const auto& weight = std::get<QuantizedTensor>(checkpoint.weights.at("m.weight"));
    size_t found = 0;
    for (const NamedTensor& named : compressed_tensors("m", weight, weight.zero_points.empty())) {
      if (named.name == "m.weight_scale") continue;  // of another type
      EXPECT_TRUE(
          are_equal(named.make ? named.make() : named.tensor, checkpoint.files.tensors.at(named.name)))
          << named.name;
      ++found;
    }
    EXPECT_EQ(found, checkpoint.files.tensors.size() - 1);
    const bool is_dynamic = name == std::string("fp8-tensor-dynamic");
    EXPECT_EQ(checkpoint.notes.size(), is_dynamic ? 1u : 0u);
    if (is_dynamic) expect_parts(checkpoint.notes.at(0), {"fp8 (a scale per token)", "stay floats"});
  }
}

TEST(CompressedPacked, OtherSpellingsAreRead) {
  // Zero points of old files.
  Folder old(affine(4, 8, false));
  Tensor zeros = Tensor::allocate(DType::kI8, {kOut, kIn / 8});
  for (int64_t i = 0; i < zeros.element_count(); ++i)
    zeros.mutable_data<int8_t>()[i] =
        static_cast<int8_t>(old.weight.zero_points.data<uint8_t>()[i % 5 * kOut + i / 5] - 8);
  EXPECT_TRUE(
      are_equal(old.with("weight_zero_point", zeros).read_weight().zero_points, old.weight.zero_points));
  // Symmetric ones may have some.
  Folder symmetric(affine(4, 8, true));
  symmetric.with("weight_zero_point", Tensor::zeros(DType::kI8, {kOut, kIn / 8})).read();
  // The group of each column, by falling activation.
  Folder order(affine(4, 8, true));
  Tensor index = Tensor::allocate(DType::kI32, {kIn});
  for (int32_t i = 0; i < kIn; ++i) index.mutable_data<int32_t>()[i] = i % 5;
  const QuantizedTensor shuffled = order.with("weight_g_idx", index).read_weight();
  const Tensor ours = dequantized(shuffled), plain = dequantized(order.weight);
  const Tensor scales = converted(order.weight.scales, DType::kF32);
  for (int64_t row = 0; row < kOut; ++row) {
    for (int64_t column = 0; column < kIn; ++column) {
      const float scale = scales.data<float>()[column / 8 * kOut + row];
      if (scale == 0) continue;
      EXPECT_FLOAT_EQ(
          ours.data<float>()[row * kIn + column],
          plain.data<float>()[row * kIn + column] / scale * scales.data<float>()[column % 5 * kOut + row]);
    }
  }
  for (int32_t i = 0; i < kIn; ++i) index.mutable_data<int32_t>()[i] = -1;
  EXPECT_TRUE(order.with("weight_g_idx", index).read_weight().column_order.empty());
  // Scales of the matrix, and of rows without a second size.
  Folder single({.format = Format::kFp8});
  Tensor one = Tensor::allocate(DType::kBF16, {1});
  one.mutable_data<uint16_t>()[0] = 0x3f00;  // 0.5
  const QuantizedTensor weight = single.with("weight_scale", one).read_weight();
  for (int64_t row = 0; row < kOut; ++row) EXPECT_EQ(weight.scales.data<float>()[row], 0.5f);
  single.with("weight_scale", Tensor::zeros(DType::kF32, {kOut})).read();
  // Inputs in fp8 are said to stay floats, and their scales are no weights.
  Folder inputs({.format = Format::kFp8});
  inputs.with("input_scale", one)
      .replace(
          "\"input_activations\": null",
          R"("input_activations": {"num_bits": 8, "type": "float", "symmetric": true, "strategy": "tensor", "dynamic": false})");
  const Checkpoint checkpoint = inputs.read();
  EXPECT_EQ(checkpoint.weights.size(), 2u);
  expect_parts(checkpoint.notes.at(0), {"static scales", "stay floats"});
}

TEST(CompressedPacked, InspectionCountsEachWeightOnce) {
  for (const CompressedSettings& settings : kKinds) {
    Folder folder(settings);
    folder.read();
    const Json json = parse_json(inspect_json(folder.folder.path()), "inspect");
    EXPECT_EQ(json.get("parameters").as_integer(), kOut * kIn + 4);
    int64_t bytes = 0;
    for (const Json& component : json.get("components").as_array())
      bytes += component.get("bytes").as_integer();
    EXPECT_EQ(bytes, json.get("bytes").as_integer());
  }
}

TEST(CompressedPacked, ScalesThatF16CannotHoldAreSaid) {
  Folder folder(affine(4, 8, true));
  Tensor scales = converted(folder.tensors.at("m.weight_scale"), DType::kF32);
  scales.mutable_data<float>()[3] = 0.1f;
  EXPECT_TRUE(folder.with("weight_scale", converted(scales, DType::kBF16)).read().notes.empty())
      << "8 bits of a BF16 fit";
  expect_parts(folder.with("weight_scale", scales).read().notes.at(0), {"1 modules rounded to F16"});
  scales.mutable_data<float>()[3] = 1e6f;
  expect_parts(folder.with("weight_scale", scales).refusal(ErrorCode::kUnsupported),
               {"m.weight_scale", "F16 cannot hold"});
}

TEST(CompressedPacked, OtherSchemesAreRefusedByTheirKey) {
  const auto refusal = [](const CompressedSettings& settings, const std::string& from,
                          const std::string& to) {
    return Folder(settings).replace(from, to).refusal(ErrorCode::kUnsupported);
  };
  const CompressedSettings packed = affine(4, 8, false), fp8{.format = Format::kFp8};
  expect_parts(refusal(packed, "\"num_bits\": 4", "\"num_bits\": 3"), {"group_0", "weights", "2, 4 or 8"});
  expect_parts(refusal(packed, "\"num_bits\": 4", "\"num_bits\": \"4\""), {"weights", "2, 4 or 8"});
  expect_parts(refusal(packed, "\"group_size\": 8", "\"group_size\": 0"), {"weights", "group_size"});
  expect_parts(refusal(packed, "\"strategy\": \"group\"", "\"strategy\": \"block\""), {"weights", "block"});
  expect_parts(refusal(packed, "\"symmetric\": false", "\"symmetric\": \"no\""),
               {"weights", "symmetric or not"});
  expect_parts(refusal(fp8, "\"num_bits\": 8", "\"num_bits\": 4"), {"weights", "8 bits"});
  expect_parts(refusal(fp8, "\"strategy\": \"channel\"", "\"strategy\": \"block\""),
               {"weights", "channel or tensor"});
  expect_parts(refusal(fp8, "\"input_activations\": null",
                       "\"input_activations\": {\"num_bits\": 8, \"type\": \"int\"}"),
               {"input_activations"});
  expect_parts(refusal(packed, "\"pack-quantized\", \"ignore\"", "\"int-quantized\", \"ignore\""),
               {"format is \"int-quantized\"", "pack-quantized where"});
  const std::string second =
      R"("group_1": {"targets": ["re:.*down"], "weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}, "group_0")";
  expect_parts(refusal(packed, "\"group_0\"", second), {"config_groups", "alike"});
}

TEST(CompressedPacked, AConfigThatLiesIsRefused) {
  const CompressedSettings packed = affine(4, 8, true), fp8{.format = Format::kFp8};
  const auto lie = [](const CompressedSettings& settings, const std::string& from, const std::string& to) {
    return Folder(settings).replace(from, to).refusal();
  };
  expect_parts(lie(packed, "\"num_bits\": 4", "\"num_bits\": 8"),
               {"m.weight_packed", "[5, 5]", "8 bits of [5, 40]"});
  expect_parts(lie(packed, "\"group_size\": 8", "\"group_size\": 16"),
               {"m.weight_scale", "[5, 5]", "[5, 3]"});
  expect_parts(lie(packed, "\"symmetric\": true", "\"symmetric\": false"),
               {"m.weight_zero_point is missing"});
  expect_parts(lie(packed, "\"pack-quantized\", \"ignore\"", "\"float-quantized\", \"ignore\""),
               {"float-quantized", "pack-quantized"});
  expect_parts(lie(fp8, "\"float-quantized\", \"ignore\"", "\"pack-quantized\", \"ignore\""),
               {"pack-quantized", "float-quantized"});
  // The format says nothing against it, the tensors do.
  Folder int8({.format = Format::kFp8});
  int8.with("weight", Tensor::zeros(DType::kI8, {kOut, kIn}));
  expect_parts(int8.refusal(), {"m.weight", "I8", "F8_E4M3"});
}

TEST(CompressedPacked, BrokenFilesAreRefusedByTheNameOfTheTensor) {
  for (const CompressedSettings& settings : kKinds) {
    for (const auto& [name, tensor] : Folder(settings).tensors) {
      if (name == "head.weight") continue;
      Folder folder(settings);
      folder.tensors.erase(name);
      expect_parts(folder.refusal(), {name == "m.weight_scale" ? "not quantized" : name + " is missing"});
      folder.tensors[name] = Tensor::zeros(tensor.dtype(), {3, 7});
      if (name != "m.weight") expect_parts(folder.refusal(), {name, "[3, 7]"});
      folder.tensors[name] = Tensor::zeros(DType::kBool, tensor.shape());
      expect_parts(folder.refusal(), {name, "BOOL"});
    }
  }
  const CompressedSettings packed = affine(4, 8, false), fp8{.format = Format::kFp8};
  Tensor shape = Tensor::allocate(DType::kI64, {2});
  for (const auto& [out, in] :
       {std::pair<int64_t, int64_t>{kOut, kIn + 1}, {kOut, -kIn}, {kOut + 1, kIn}, {kOut, INT64_MAX}}) {
    shape.mutable_data<int64_t>()[0] = out;
    shape.mutable_data<int64_t>()[1] = in;
    expect_parts(Folder(packed).with("weight_shape", shape).refusal(),
                 {"m.weight_packed", fmt::format("[{}, {}]", out, in)});
  }
  Tensor scales = converted(Folder(packed).tensors.at("m.weight_scale"), DType::kF32);
  scales.mutable_data<float>()[3] = NAN;
  expect_parts(Folder(packed).with("weight_scale", scales).refusal(), {"m.weight_scale", "scale 3"});
  Tensor zeros = Tensor::zeros(DType::kI8, {kOut, kIn / 8});
  zeros.mutable_data<int8_t>()[7] = 8;
  expect_parts(Folder(packed).with("weight_zero_point", zeros).refusal(),
               {"m.weight_zero_point", "element 7 is 8", "-8 to 7"});
  Tensor codes = Tensor::zeros(DType::kF8E4M3, {kOut, kIn});
  static_cast<uint8_t*>(codes.mutable_bytes())[kIn + 2] = 0xff;
  expect_parts(Folder(fp8).with("weight", codes).refusal(), {"m.weight", "row 1, column 2", "0xff", "NaN"});
  expect_parts(Folder(fp8).with("weight", Tensor::zeros(DType::kF8E4M3, {0, kIn})).refusal(),
               {"m.weight", "[0, 40]"});
  Tensor index = Tensor::zeros(DType::kI32, {kIn});
  index.mutable_data<int32_t>()[1] = 5;
  expect_parts(Folder(packed).with("weight_g_idx", index).refusal(),
               {"m.weight_g_idx", "group 5", "5 groups"});
  expect_parts(Folder(packed).with("weight_g_idx", Tensor::zeros(DType::kI32, {kIn - 1})).refusal(),
               {"m.weight_g_idx", "[39]", "[40]"});
}

}  // namespace
}  // namespace lowbit
