#include "checkpoint/compressed.h"

#include "checkpoint/compressed_fixture.h"
#include "format/int8.h"

#include <cmath>
#include <cstring>
#include <gtest/gtest.h>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

using testing::expect_parts;

// A folder with one matrix [3, 6], written by the functions under test.
struct Folder : testing::CompressedFolder {
  Tensor codes = Tensor::allocate(DType::kI8, {3, 6});

  explicit Folder(ActivationFormat activations, int zero_point = 0, bool is_symmetric = true) {
    for (int i = 0; i < 18; ++i) codes.mutable_data<int8_t>()[i] = static_cast<int8_t>(i * 15 - 128);
    const CompressedMatrix matrix{"m", activations, DType::kBF16, 6, {0.25f, zero_point}, !is_symmetric};
    tensors.emplace(compressed_codes(matrix, 3).name, compressed_code_bytes(matrix, codes));
    for (const NamedTensor& named : compressed_tensors_beside(matrix, std::vector<float>{0.5f, 0, 2}))
      tensors.emplace(named.name, named.tensor);
    tensors.emplace("head.weight", Tensor::zeros(DType::kBF16, {2, 2}));
    config = Json::Object{
        {"model_type", "llama"},
        {"quantization_config",
         compressed_config_json({.groups = {{.inputs = {activations, is_symmetric}}}}, Json::Array{"head"})}};
  }

  std::string refusal_with(const std::string& from, const std::string& to) {
    replace_in_config(from, to);
    return refusal(ErrorCode::kUnsupported);
  }
};

constexpr ActivationFormat kAll[] = {ActivationFormat::kNone, ActivationFormat::kInt8Dynamic,
                                     ActivationFormat::kInt8Static};

TEST(Compressed, WhatIsWrittenIsRead) {
  for (const ActivationFormat activations : kAll) {
    Folder folder(activations);
    const Checkpoint checkpoint = folder.read();
    EXPECT_EQ(checkpoint.weights.size(), 2u);
    EXPECT_EQ(checkpoint.quantization->dialect, "compressed-tensors");
    const auto& weight = std::get<QuantizedTensor>(checkpoint.weights.at("m.weight"));
    EXPECT_EQ(weight.format, Format::kInt8);
    EXPECT_EQ(weight.activations, activations);
    EXPECT_EQ(weight.outlier_threshold, 0);
    const bool is_static = activations == ActivationFormat::kInt8Static;
    EXPECT_EQ(weight.input_grid, (is_static ? InputGrid{0.25f, 0} : InputGrid{}));
    const Tensor dense = dequantized(weight);
    constexpr float kScales[] = {0.5f, 0, 2};
    for (int i = 0; i < 18; ++i)
      EXPECT_EQ(dense.data<float>()[i], kScales[i / 6] * static_cast<float>(i * 15 - 128)) << i;
  }
}

TEST(Compressed, AZeroPointOfInputsIsReadAndSummedUp) {
  Folder folder(ActivationFormat::kInt8Static, -3, false);
  const Checkpoint checkpoint = folder.read();
  EXPECT_EQ(checkpoint.weights.size(), 2u);
  const auto& weight = std::get<QuantizedTensor>(checkpoint.weights.at("m.weight"));
  EXPECT_EQ(weight.input_grid, (InputGrid{0.25f, -3}));
  for (int row = 0; row < 3; ++row) {
    int sum = 0;
    for (int column = 0; column < 6; ++column) sum += (6 * row + column) * 15 - 128;
    EXPECT_EQ(weight.input_offsets.data<int32_t>()[row], -3 * sum);
  }
}

// Some modules may be left float inputs: by name, by pattern, or as any other linear.
TEST(Compressed, GroupsMayTreatTheirInputsDifferently) {
  const auto activations_with = [](Json targets, Json others) {
    Folder folder(ActivationFormat::kInt8Static);
    Json config = compressed_config_json(
        {.groups = {{.inputs = {ActivationFormat::kInt8Static}}, {.targets = {"x"}}}}, Json::array());
    EXPECT_EQ(config.get("format").as_string(), "mixed-precision");
    Json groups = config.get("config_groups"), first = groups.get("group_0"), second = groups.get("group_1");
    EXPECT_EQ(second.get("format").as_string(), "pack-quantized");
    first.set("targets", std::move(others));
    second.set("targets", std::move(targets));
    groups.set("group_0", first);
    groups.set("group_1", second);
    config.set("config_groups", groups);
    folder.config.set("quantization_config", config);
    folder.tensors.erase("m.input_scale");
    return std::get<QuantizedTensor>(folder.read().weights.at("m.weight")).activations;
  };
  const Json::Array linear = {"Linear"};
  EXPECT_EQ(activations_with(Json::Array{"y", "m"}, linear), ActivationFormat::kNone);
  EXPECT_EQ(activations_with(Json::Array{"re:^m$"}, linear), ActivationFormat::kNone);
  EXPECT_EQ(activations_with(linear, Json::Array{"re:other"}), ActivationFormat::kNone);
  const auto refusal = [&](Json targets, Json others) {
    return testing::error_of(ErrorCode::kCorruptFile,
                             [&] { activations_with(std::move(targets), std::move(others)); });
  };
  expect_parts(refusal(Json::Array{"y"}, linear), {"m.input_scale is missing"});
  expect_parts(refusal(Json::Array{"y"}, Json::Array{"z"}), {"m is in none"});
  expect_parts(refusal(Json::array(), linear), {"group_1", "targets"});
}

// tests/golden/make_compressed_golden.py: the package compressed-tensors 0.20.1 made the files, and the
// weights as it decompresses them, in BF16.
TEST(Compressed, FilesOfThePackageDecodeAsItDoes) {
  for (const char* name : {"w8a8", "w8a16", "w8a8-static", "w8a8-static-asymmetric"}) {
    SCOPED_TRACE(name);
    const fs::path folder = fs::path(LOWBIT_SOURCE_DIR) / "tests" / "golden" / "compressed" / name;
    const Checkpoint checkpoint = read_checkpoint(folder);
    ASSERT_EQ(checkpoint.weights.size(), 1u);
    const auto& weight = std::get<QuantizedTensor>(checkpoint.weights.at("m.weight"));
    const bool is_static = std::string_view(name).find("static") != std::string_view::npos;
    EXPECT_EQ(weight.activations, is_static                     ? ActivationFormat::kInt8Static
                                  : name == std::string("w8a8") ? ActivationFormat::kInt8Dynamic
                                                                : ActivationFormat::kNone);
    std::map<std::string, Tensor> golden;
    for (const NamedTensor& named : open_safetensors(folder / "golden.safetensors").tensors)
      golden.emplace(named.name, named.tensor);
    const Tensor ours = converted(dequantized(weight), DType::kBF16);
    const Tensor theirs = golden.at("m.weight");
    ASSERT_EQ(ours.shape(), theirs.shape());
    EXPECT_EQ(std::memcmp(ours.bytes(), theirs.bytes(), ours.byte_count()), 0);
    if (!is_static) continue;
    // Inputs and their codes, as the package rounds them.
    const Tensor inputs = golden.at("inputs"), codes = golden.at("codes");
    EXPECT_EQ(weight.input_grid.zero_point == 0, name == std::string_view("w8a8-static"));
    for (int64_t i = 0; i < inputs.element_count(); ++i)
      ASSERT_EQ(encode_input(inputs.data<float>()[i], weight.input_grid), codes.data<int8_t>()[i]) << i;
  }
}

// Scales may be one for the matrix, of any float type, and zero points may be there as long as they are 0;
// the config may stand under the key of old versions.
TEST(Compressed, OtherSpellingsAreRead) {
  Folder folder(ActivationFormat::kInt8Dynamic);
  Tensor scale = Tensor::allocate(DType::kF32, {1});
  scale.mutable_data<float>()[0] = 0.25f;
  folder.tensors["m.weight_scale"] = scale;
  folder.tensors["m.weight_zero_point"] = Tensor::zeros(DType::kI8, {1});
  folder.config.set("compression_config", folder.config.get("quantization_config"));
  folder.config.erase("quantization_config");
  const Checkpoint checkpoint = folder.read();
  EXPECT_EQ(checkpoint.weights.size(), 2u);
  EXPECT_EQ(checkpoint.config.find("compression_config"), nullptr);
  const Tensor dense = dequantized(std::get<QuantizedTensor>(checkpoint.weights.at("m.weight")));
  EXPECT_EQ(dense.data<float>()[17], 0.25f * (17 * 15 - 128));
}

TEST(Compressed, OtherSchemesAreRefusedByTheirKey) {
  const auto refusal = [](const char* from, const char* to) {
    return Folder(ActivationFormat::kInt8Dynamic).refusal_with(from, to);
  };
  expect_parts(refusal("\"num_bits\": 8", "\"num_bits\": 4"), {"group_0", "input_activations", "none"});
  expect_parts(refusal("\"strategy\": \"channel\"", "\"strategy\": \"group\""),
               {"weights", "then a group_size"});
  expect_parts(refusal("\"dynamic\": true", "\"dynamic\": false"), {"input_activations", "static"});
  expect_parts(Folder(ActivationFormat::kInt8Static)
                   .refusal_with("\"strategy\": \"tensor\"", "\"strategy\": \"token\""),
               {"input_activations", "strategy tensor"});
  expect_parts(refusal("\"symmetric\": true", "\"symmetric\": false"), {"symmetric"});
  expect_parts(refusal("\"int-quantized\", \"ignore\"", "\"nvfp4-pack-quantized\", \"ignore\""),
               {"format is \"nvfp4-pack-quantized\"", "float-quantized"});
  expect_parts(refusal("\"kv_cache_scheme\": null", "\"kv_cache_scheme\": {}"), {"kv_cache_scheme"});
  Folder empty(ActivationFormat::kNone);
  empty.config.set("quantization_config",
                   Json::Object{{"quant_method", "compressed-tensors"}, {"config_groups", Json::Object{}}});
  expect_parts(empty.refusal(), {"config_groups"});
}

TEST(Compressed, BrokenFilesAreRefusedByTheNameOfTheTensor) {
  for (const char* name : {"m.weight_packed", "m.weight_shape", "m.weight_scale"}) {
    Folder folder(ActivationFormat::kNone);
    folder.tensors.erase(name);
    expect_parts(folder.refusal(), {name == std::string("m.weight_packed")  ? "m.weight is missing"
                                    : name == std::string("m.weight_scale") ? "not quantized"
                                                                            : "m.weight_shape is missing"});
  }
  const auto with = [](ActivationFormat activations, const std::string& name, const Tensor& tensor) {
    Folder folder(activations);
    folder.tensors[name] = tensor;
    return folder.refusal();
  };
  const auto none = ActivationFormat::kNone, dynamic = ActivationFormat::kInt8Dynamic;
  expect_parts(with(none, "m.weight_packed", Tensor::zeros(DType::kI32, {3, 1})),
               {"m.weight_packed", "[3, 1]"});
  expect_parts(with(none, "m.weight_shape", Tensor::zeros(DType::kI64, {2})), {"m.weight_packed", "[0, 0]"});
  expect_parts(with(none, "m.weight_shape", Tensor::zeros(DType::kF32, {2})), {"m.weight_shape", "F32"});
  expect_parts(with(dynamic, "m.weight", Tensor::zeros(DType::kU8, {3, 6})), {"m.weight", "U8", "I8"});
  expect_parts(with(dynamic, "m.weight_scale", Tensor::zeros(DType::kF32, {2, 1})),
               {"m.weight_scale", "[2, 1]"});
  expect_parts(with(dynamic, "m.weight_scale", Tensor::zeros(DType::kI32, {3, 1})),
               {"m.weight_scale", "I32"});
  Tensor ones = Tensor::zeros(DType::kI8, {3, 1});
  ones.mutable_data<int8_t>()[2] = 1;
  expect_parts(with(dynamic, "m.weight_zero_point", ones), {"m.weight_zero_point", "symmetric"});
  Tensor infinite = Tensor::zeros(DType::kF32, {3, 1});
  infinite.mutable_data<float>()[1] = INFINITY;
  expect_parts(with(dynamic, "m.weight_scale", infinite), {"m.weight_scale", "scale 1 of 3"});
  expect_parts(with(dynamic, "m.input_scale", infinite), {"m.input_scale", "no static inputs"});

  const auto fixed = ActivationFormat::kInt8Static;
  const auto one = [](float value) {
    Tensor tensor = Tensor::allocate(DType::kF32, {1});
    tensor.mutable_data<float>()[0] = value;
    return tensor;
  };
  for (const float bad : {0.0f, -0.5f, NAN, INFINITY})
    expect_parts(with(fixed, "m.input_scale", one(bad)), {"m.input_scale", "positive"});
  expect_parts(with(fixed, "m.input_scale", Tensor::zeros(DType::kF32, {2})), {"m.input_scale", "[2]"});
  expect_parts(with(fixed, "m.input_scale", Tensor::zeros(DType::kI8, {1})), {"m.input_scale", "I8"});
  expect_parts(with(fixed, "m.input_zero_point", ones.rows(2, 1)), {"m.input_zero_point", "symmetric"});
  Folder scaleless(fixed);
  scaleless.tensors.erase("m.input_scale");
  expect_parts(scaleless.refusal(), {"m.input_scale is missing"});
  Folder asymmetric(fixed, 5, false);
  asymmetric.tensors["m.input_zero_point"] = one(5);
  expect_parts(asymmetric.refusal(), {"m.input_zero_point", "F32"});
  Tensor far = Tensor::allocate(DType::kI32, {1});
  far.mutable_data<int32_t>()[0] = 200;
  asymmetric.tensors["m.input_zero_point"] = far;
  expect_parts(asymmetric.refusal(), {"m.input_zero_point is 200", "-128 to 127"});
  asymmetric.tensors.erase("m.input_zero_point");
  expect_parts(asymmetric.refusal(), {"m.input_zero_point is missing"});
}

}  // namespace
}  // namespace lowbit
